-- promise: No chosen row is held out, and none asks what a held-out or a general row asks.
SELECT DISTINCT id || ' (held out, or its prompt is)' FROM chosen_ids JOIN texts USING (id)
WHERE prompt IN (FROM measured)
