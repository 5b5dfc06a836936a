-- shown: Sources of which the chosen rows have a share that is 10 points larger or smaller than the pool's.
WITH asked AS (SELECT coalesce(source, 'none') AS name, count(*) / sum(count(*)) OVER () AS share FROM pool GROUP BY ALL),
given AS (SELECT coalesce(source, 'none') AS name, count(*) / sum(count(*)) OVER () AS share FROM chosen GROUP BY ALL)
SELECT format('{}: {:.1f}% of the chosen, {:.1f}% of the pool', name, 100 * coalesce(given.share, 0), 100 * asked.share)
FROM asked LEFT JOIN given USING (name) WHERE abs(coalesce(given.share, 0) - asked.share) > 0.1
