-- shown: Topics of more than 2% of the pool without a chosen row.
SELECT format('{} ({:.1f}% of the pool)', topic, 100 * share) FROM (
    SELECT topic, count(*) / sum(count(*)) OVER () AS share FROM pool GROUP BY topic)
JOIN topics USING (topic) WHERE share > 0.02 AND rows = 0
