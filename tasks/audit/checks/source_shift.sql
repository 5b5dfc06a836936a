-- shown: Sources whose share of the chosen is 10 points off the pool's, or, of ten rows or more, twice or half of it.
WITH asked AS (
    SELECT coalesce(source, 'none') AS name, count(*) / sum(count(*)) OVER () AS asked FROM pool GROUP BY ALL),
taken AS (
    SELECT coalesce(source, 'none') AS name, count(*) AS rows, rows / sum(rows) OVER () AS given FROM chosen GROUP BY ALL),
shares AS (SELECT name, asked, coalesce(given, 0) AS given, coalesce(rows, 0) AS rows,
    asked * (SELECT count(*) FROM chosen) AS expected FROM asked LEFT JOIN taken USING (name))
SELECT format('{}: {:.1f}% of the chosen, {:.1f}% of the pool', name, 100 * given, 100 * asked) FROM shares
WHERE abs(given - asked) > 0.1 OR greatest(rows, expected) >= 10 AND greatest(given, asked) >= 2 * least(given, asked)
ORDER BY abs(given - asked) DESC, name
