-- promise: No validation row asks what is held out, and none asks what a chosen or learnt row asks.
SELECT DISTINCT id || ' (its prompt is held out)' FROM validating WHERE prompt IN (FROM measured)
UNION SELECT id || ' (chosen or learnt, and its prompt validates)' FROM texts
WHERE (earlier = 'learnt' OR id IN (FROM chosen_ids)) AND prompt IN (SELECT prompt FROM validating)
