-- promise: The chosen rows cost no more than the budget.
SELECT format('{} {}, at most {}', spent, unit, most) FROM (
    SELECT *, CASE unit WHEN 'rows' THEN (SELECT count(*) FROM chosen_ids)
        ELSE (SELECT coalesce(sum(response_tokens), 0) FROM chosen)::BIGINT END AS spent FROM budget)
WHERE spent > most
