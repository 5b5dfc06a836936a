-- shown: Chosen rows of almost the same words as a held-out row.
WITH likes AS (SELECT id, split, coalesce(near_duplicate_of, row) AS words FROM examples)
SELECT DISTINCT id FROM likes JOIN chosen_ids USING (id)
WHERE words IN (SELECT words FROM likes WHERE split = 'held_out')
