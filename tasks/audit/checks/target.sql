-- promise: No row of the target task asks what is held out, and none is chosen.
SELECT DISTINCT id || ' (its prompt is held out)' FROM texts
WHERE split = 'target' AND prompt IN (FROM measured)
UNION SELECT id || ' (chosen)' FROM chosen_ids JOIN target USING (id)
