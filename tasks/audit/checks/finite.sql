-- promise: Every gain, cover, objective and gate score is a finite number or none.
SELECT id || ' (' || name || ' ' || value || ')' FROM (
    UNPIVOT (SELECT id, gain::DOUBLE AS gain, objective::DOUBLE AS objective, cover::DOUBLE AS cover,
        gate_score::DOUBLE AS gate_score, gate_usual::DOUBLE AS gate_usual FROM subset)
    ON gain, objective, cover, gate_score, gate_usual INTO NAME name VALUE value)
WHERE NOT isfinite(value)
