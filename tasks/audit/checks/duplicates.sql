-- promise: No row is chosen twice.
SELECT id || ' (' || count(*) || ' times)' FROM chosen_ids GROUP BY id HAVING count(*) > 1
