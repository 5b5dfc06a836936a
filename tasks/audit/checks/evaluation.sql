-- promise: Every model answers every held-out row once, and nothing else.
WITH rows AS (SELECT arm, learner, coalesce(seed::VARCHAR, '') AS seed, held_out_of, id FROM evaluation),
found AS (SELECT *, count(*) AS times FROM rows GROUP BY ALL),
runs AS (SELECT arm, learner, seed, version AS held_out_of FROM rows, compared
    UNION SELECT arm, learner, seed, previous FROM rows, compared
    WHERE held_out_of NOT IN (version, 'general') AND learner <> 'in_context'
    UNION SELECT arm, learner, seed, 'general' FROM rows WHERE learner <> 'in_context'),
held_out AS (SELECT version AS held_out_of, id FROM texts, compared WHERE used AND split = 'held_out'
    UNION SELECT 'general', id FROM texts WHERE used AND split = 'general'
    UNION SELECT previous, id FROM texts_before, compared WHERE used AND split = 'held_out'),
asked AS (SELECT *, true AS asked FROM runs JOIN held_out USING (held_out_of))
SELECT concat_ws(' ', arm, learner, seed, id, 'of', held_out_of, coalesce(times, 0), 'times',
    if(asked, NULL, '(not to be answered)'))
FROM found FULL JOIN asked USING (arm, learner, seed, held_out_of, id)
WHERE times IS DISTINCT FROM 1 OR asked IS NULL
UNION ALL SELECT 'no arm at all' WHERE NOT EXISTS (FROM evaluation)
