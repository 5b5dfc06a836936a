-- shown: Rows that this version withdraws or edits, though an earlier version chose them and a model was trained on them.
SELECT concat_ws(' ', id, topic, '"' || regexp_replace(left(prompt, 40), '\s+', ' ', 'g') || '"',
    'edited to ' || edited_to) FROM withdrawn WHERE earlier = 'learnt'
