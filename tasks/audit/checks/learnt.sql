-- promise: No row that an earlier version chose asks what is held out now.
SELECT DISTINCT id || ' (its prompt is held out)' FROM texts
WHERE earlier = 'learnt' AND prompt IN (FROM measured)
