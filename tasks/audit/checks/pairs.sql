-- promise: Every utility is a finite number, of a row of the pool or of the target task with a demo that it may have.
SELECT target_id || ' with demo ' || demo_id FROM utility
WHERE NOT isfinite(utility) OR target_id NOT IN (SELECT id FROM pool UNION SELECT id FROM target)
    OR demo_id NOT IN (SELECT id FROM pool UNION SELECT id FROM learnt UNION SELECT id FROM target)
