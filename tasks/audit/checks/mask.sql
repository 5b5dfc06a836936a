-- promise: The mask lists as many parameters as it counts, and as many as its budget says.
SELECT format('{}: {} entries in mask.parquet, counted as {}, and {} of {} in tensors.parquet', tensor,
    coalesce(listed, 0), coalesce(counted, 0), coalesce(t.chosen, 0), coalesce(entries, 0))
FROM tensors t FULL JOIN (SELECT tensor, sum(len(columns))::BIGINT AS listed, sum(chosen)::BIGINT AS counted
    FROM mask GROUP BY tensor) m USING (tensor)
WHERE t.chosen IS DISTINCT FROM coalesce(listed, 0) OR listed <> counted OR t.chosen > entries
UNION ALL SELECT format('{} of {} parameters, asked are {}', chosen, entries, most)
FROM mask_budget, (SELECT coalesce(sum(chosen), 0)::BIGINT AS chosen,
    coalesce(sum(entries), 0)::BIGINT AS entries FROM tensors)
WHERE chosen <> most
