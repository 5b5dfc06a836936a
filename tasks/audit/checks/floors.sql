-- promise: Every topic with a floor has so many chosen rows.
SELECT format('{}: {} rows, at least {}', topic, coalesce(rows, 0), least) FROM floors LEFT JOIN topics
USING (topic) WHERE coalesce(rows, 0) < least
