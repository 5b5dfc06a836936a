-- shown: Rows that an earlier version chose, so that a model was trained on them, and that were withdrawn or edited since.
SELECT concat_ws(' ', l.id, l.topic, '"' || regexp_replace(left(w.prompt, 40), '\s+', ' ', 'g') || '"',
    'edited to ' || l.edited_to, 'gone since ' || nullif(l.gone_since, c.version)) FROM lingering l
LEFT JOIN withdrawn w USING (id) CROSS JOIN compared c
