-- shown: Chosen rows that repeat another chosen row's text, blanks aside, as examples.deduplicate: false allows.
SELECT id || ' (' || alike || ' chosen rows say the same)' FROM (
    SELECT id, count(*) OVER (PARTITION BY same_as) AS alike FROM chosen) WHERE alike > 1
