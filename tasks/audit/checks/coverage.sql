-- shown: Topics without a chosen row.
SELECT topic FROM topics WHERE rows = 0
