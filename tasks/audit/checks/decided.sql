-- shown: Rows that a person vetoed or pinned, by whom and why.
SELECT format('{} of {}, by {}: {}', kind, id, "by", because) FROM decisions
