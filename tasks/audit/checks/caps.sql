-- promise: No topic has more chosen rows than its cap.
SELECT format('{}: {} rows, at most {}', topic, rows, most) FROM topics JOIN caps USING (topic)
WHERE rows > most
