-- shown: Used rows that look as if they held a key or token, an e-mail address, a phone or card number, or an IBAN.
WITH said AS (SELECT id, array_to_string(list_transform(messages, lambda one: one.content || ' '
    || regexp_replace(one.details, '\\+[nrt"]', ' ', 'g')), ' ') AS text
    FROM examples WHERE used AND split <> 'general'),
digits AS (SELECT id, unnest(list_transform(regexp_extract_all(text,  -- as the card networks begin and group them
    '\b(?:[3-6]\d|2[2-7])\d\d(?:[ .-]?\d{4}[ .-]?\d{4}[ .-]?\d{1,7}|[ .-]?\d{6}[ .-]?\d{5})\b'),
    lambda one: regexp_replace(one, '\D', '', 'g'))) AS card FROM said),
sums AS (SELECT id, card, list_sum(list_transform(range(1, len(card) + 1), lambda place:
    CASE WHEN place % 2 = 1 THEN substr(reverse(card), place, 1)::INT
    ELSE substr('0246813579', substr(reverse(card), place, 1)::INT + 1, 1)::INT END)) AS total FROM digits),
groups AS (SELECT id, string_split(unnest(regexp_extract_all(text,
    '\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b')), ' ') AS parts FROM said),
accounts AS (SELECT id, iban FROM (SELECT id, unnest(list_transform(range(1, len(parts) + 1),  -- a word may follow it
    lambda count: array_to_string(parts[:count], ''))) AS iban FROM groups) WHERE len(iban) >= 15),
remainders AS (SELECT id, list_reduce(list_transform(string_split(array_to_string(list_transform(  -- A is 10, Z is 35
    string_split(iban[5:] || iban[:4], ''), lambda one: CASE WHEN one > '9' THEN (ascii(one) - 55)::VARCHAR ELSE one END
    ), ''), ''), lambda one: one::INT), lambda rest, one: (rest * 10 + one) % 97) AS remainder FROM accounts),
found AS (
    SELECT id, 'a key' AS what FROM said WHERE regexp_matches(text, '\bA[KS]IA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}'
        || '|\bgithub_pat_[A-Za-z0-9_]{22,}|\bglpat-[A-Za-z0-9_-]{20,}|\bAIza[A-Za-z0-9_-]{35}'
        || '|\bsk-(?:[a-z0-9]+-){0,2}[A-Za-z0-9_]{20,}|\b[rs]k_(?:live|test)_[A-Za-z0-9]{16,}|\bhf_[A-Za-z0-9]{30,}'
        || '|\bnpm_[A-Za-z0-9]{36}|\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}'
        || '|\bxox[abprs]-[A-Za-z0-9-]{10,}|\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}'
        || '|-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----')
    UNION ALL SELECT id, 'an e-mail address' FROM said
        WHERE regexp_matches(text, '[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}')
    UNION ALL SELECT id, 'a phone number' FROM said
        WHERE regexp_matches(text, '\+\d{1,3}[ .-]?\(?\d{2,4}\)?(?:[ .-]?\d{2,4}){2,4}\b|\(\d{3}\) ?\d{3}[ .-]\d{4}\b'
            || '|(?:^|[^\w.,-])(?:0[1-9]\d{1,3}[ /-]\d{6,8}|0[1-9][ -]\d{8}|0[1-9]\d{1,2} \d{3,4} \d{4}'
            || '|(?:1[ .-])?\d{3}[.-]\d{3}[.-]\d{4})(?:$|[^\w.,-]|[.,](?:$|\D))')
    UNION ALL SELECT id, 'a card number' FROM sums WHERE total % 10 = 0
    UNION ALL SELECT id, 'an IBAN' FROM remainders WHERE remainder = 1)
SELECT id || ' (' || string_agg(DISTINCT what, ', ' ORDER BY what) || ')' FROM found GROUP BY id
