-- shown: Mean response tokens of the chosen rows beside those of the pool, where they differ by more than a tenth.
SELECT format('chosen {:.1f}, pool {:.1f} ({:+.0f}%)', mine, theirs, 100 * (mine / theirs - 1)) FROM (
    SELECT (SELECT avg(response_tokens) FROM chosen) AS mine, (SELECT avg(response_tokens) FROM pool) AS theirs)
WHERE abs(mine / theirs - 1) > 0.1
