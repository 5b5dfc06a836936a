-- promise: No row is chosen twice; rows that repeat a text are rows of their own, see repetitions.
SELECT id || ' (' || count(*) || ' times)' FROM chosen_ids GROUP BY id HAVING count(*) > 1
