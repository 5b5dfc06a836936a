-- shown: Topics whose held-out share is below audit.held_out_share.
SELECT format('{}: {:.3f}', topic, share) FROM (SELECT topic, avg((split = 'held_out')::INT) AS share
FROM examples WHERE duplicate_of IS NULL AND split <> 'general' GROUP BY topic)
WHERE share < (SELECT share FROM least)
