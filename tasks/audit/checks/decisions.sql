-- promise: No vetoed row is chosen, and each pinned row that the pool has is.
SELECT format('{} is vetoed and chosen', id) FROM chosen
    WHERE same_as IN (SELECT same_as FROM decisions WHERE kind = 'veto')
UNION ALL SELECT format('{} is pinned and left out', id) FROM decisions WHERE kind = 'pin'
    AND same_as IN (SELECT same_as FROM pool) AND same_as NOT IN (SELECT same_as FROM chosen)
