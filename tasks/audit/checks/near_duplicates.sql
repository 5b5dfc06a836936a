-- shown: Chosen rows of almost the same words as another chosen row.
SELECT id || ' (' || alike || ' chosen rows are alike)' FROM (
    SELECT chosen.id, count(*) OVER (PARTITION BY coalesce(near_duplicate_of, row)) AS alike FROM chosen)
WHERE alike > 1
