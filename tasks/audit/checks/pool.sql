-- promise: Every row of the subset is a used row of the pool.
SELECT DISTINCT id FROM subset ANTI JOIN pool USING (id)
