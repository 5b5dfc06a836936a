-- promise: No row that is known to be wrong is held out, validates, or is of the target task.
SELECT DISTINCT id || ' (' || split || ')' FROM examples
WHERE planted IS NOT NULL AND used AND split <> 'pool'
