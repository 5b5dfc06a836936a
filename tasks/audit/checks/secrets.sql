-- shown: Used rows that look as if they held a key, an e-mail address, or a phone or card number.
WITH said AS (SELECT id, array_to_string(list_transform(messages, lambda one: one.content), ' ') AS text
    FROM examples WHERE used AND split <> 'general'),
digits AS (SELECT id, unnest(list_transform(regexp_extract_all(text, '\b(?:\d[ -]?){12,18}\d\b'),
    lambda one: regexp_replace(one, '\D', '', 'g'))) AS card FROM said),
sums AS (SELECT id, card, list_sum(list_transform(range(1, len(card) + 1), lambda place:
    CASE WHEN place % 2 = 1 THEN substr(reverse(card), place, 1)::INT
    ELSE substr('0246813579', substr(reverse(card), place, 1)::INT + 1, 1)::INT END)) AS total FROM digits),
found AS (
    SELECT id, 'a key' AS what FROM said WHERE regexp_matches(text, '\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}'
        || '|\bsk-[A-Za-z0-9_-]{20,}|\bxox[abprs]-[A-Za-z0-9-]{10,}|-----BEGIN [A-Z ]*PRIVATE KEY-----')
    UNION ALL SELECT id, 'an e-mail address' FROM said
        WHERE regexp_matches(text, '[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}')
    UNION ALL SELECT id, 'a phone number' FROM said
        WHERE regexp_matches(text, '\+\d{1,3}[ .-]?\(?\d{2,4}\)?(?:[ .-]?\d{2,4}){2,4}\b')
    UNION ALL SELECT id, 'a card number' FROM sums WHERE total % 10 = 0)
SELECT id || ' (' || string_agg(DISTINCT what, ', ' ORDER BY what) || ')' FROM found GROUP BY id
