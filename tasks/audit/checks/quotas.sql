-- promise: Every layer and every group of modules holds at least its quota of the mask.
WITH parts AS (SELECT 'layer' AS kind, layer::VARCHAR AS label, chosen, entries FROM tensors WHERE layer IS NOT NULL
    UNION ALL SELECT 'module', module, chosen, entries FROM tensors WHERE module IS NOT NULL),
labels AS (SELECT kind, label, sum(chosen)::BIGINT AS chosen, sum(entries)::BIGINT AS entries FROM parts GROUP BY ALL),
wanted AS (SELECT *, floor(floor(share * (SELECT sum(chosen) FROM tensors)) / (SELECT count(*) FROM labels l
    WHERE l.kind = quotas.kind))::BIGINT AS least FROM quotas)
SELECT format('{} {}: {} parameters, at least {}', kind, label, chosen, least(least, entries))
FROM labels JOIN wanted USING (kind) WHERE chosen < least(least, entries)
