import json


def write(chosen, out, *, map, factor):
    total = factor * sum(int(line.split()[0]) for line in chosen.read_text().splitlines())
    (out / "all").mkdir(exist_ok=True)
    (out / "all" / "total.txt").write_text(str(total))
    (out / "total.json").write_text(json.dumps({"total": total}))
