"""`benchmarks/noise.py`: its pool is what it says, and cover is a share of what is attainable."""

import json
import math
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def noise():
    """The script as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield import_module("noise")


@pytest.fixture
def data(tmp_path) -> Path:
    """A version of a made-up tldr, and a later one beside it, in which some responses are edited."""
    rows = [
        {"prompt": f"c{command}: task {task}", "response": f"c{command} do{task}", "topic": f"c{command}-{task}"}
        for command in range(30)
        for task in range(3)
    ]
    rows += [{"prompt": f"c{c}: show help", "response": f"c{c} --help", "topic": f"c{c}"} for c in range(30)]
    later = [{**row, "response": row["response"] + " -q"} for row in rows if row["topic"].endswith("-2")]
    for name, lines in (("v1", rows), ("v2", later)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return tmp_path / "v1.jsonl"


@pytest.mark.parametrize("how", ["across", "within"])
def test_a_fifth_of_the_rows_has_the_response_of_another_and_a_fifth_is_nearly_repeated(noise, data, how):
    pool = noise.exchange(noise.make_base(data, 40, 0), how, 0)
    assert len(pool) == len({row.text for row in pool}) == 40
    wrong = [row for row in pool if row.corrupted]
    assert len(wrong) == 8
    for row in wrong:
        assert (row.text[1].partition(" ")[0] == row.topic) == (how == "within")
    assert sum(row.group == "boilerplate" for row in pool) == 8
    assert len({row.group for row in pool}) == 40 - 8 - 7  # near-duplicates, and boilerplate but one


def test_no_row_is_of_a_command_by_which_the_study_confirms(noise, data):
    apart = [{"prompt": f"p{n}", "response": f"r{n}", "topic": f"{noise.APART[0]}-{n}"} for n in range(9)]
    with data.open("a") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in apart)
    assert {row["topic"] for row in noise.read(data)} == {f"c{n}" for n in range(30)}


def test_draws_exchange_other_rows_and_a_row_has_one_wrong_response(noise, data):
    base = noise.make_base(data, 40, 0)
    pools = [noise.exchange(base, "across", seed) for seed in range(5)]
    assert [noise.exchange(base, "across", seed) for seed in range(5)] == pools
    wrong = {row.text for pool in pools for row in pool if row.corrupted}
    assert len(wrong) > 8
    assert len(wrong) == len({prompt for prompt, _ in wrong})


def test_a_file_with_too_few_rows_is_refused_by_what_it_lacks(noise, data):
    with pytest.raises(SystemExit, match=r"v1\.jsonl gives 30 of 40 boilerplate; lower --rows or give another file"):
        noise.make_base(data, 200, 0)


def test_cover_is_the_share_of_the_best_help_and_leaves_out_chosen_and_corrupted_targets(noise):
    texts = [("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")]
    pool = [noise.Row(text, "t", text[0], corrupted=text[0] == "d") for text in texts]
    utility = np.array([[9, 4, 2, 1], [1, 9, 8, 2], [1, 1, 9, 1], [1, 1, 1, 9]], float)
    helped = noise.Helped(utility, texts, {text: place for place, text in enumerate(texts)})
    assert noise.measure_cover({texts[2]}, pool, helped) == pytest.approx((2 / 4 + 8 / 8) / 2)
    assert noise.measure_cover({texts[3]}, pool, helped) == pytest.approx((1 / 4 + 2 / 8 + 1) / 3)


def test_shares_of_picks_count_corrupted_and_repeated_ones(noise):
    pool = [noise.Row((name, name), "t", name[0], corrupted=name == "b1") for name in ("a1", "a2", "b1", "c1")]
    helped = noise.Helped(np.ones((0, 4)), [], {})
    picks = {"one": [{row.text for row in pool[:3]}], "two": [{pool[0].text, pool[3].text}]}
    found = noise.judge(picks, pool, helped)
    assert found["one"] == pytest.approx({"corrupted": 1 / 3, "repeated": 1 / 3, "cover": math.nan}, nan_ok=True)
    assert found["two"]["corrupted"] == found["two"]["repeated"] == 0


def test_the_last_line_holds_the_figures_across_and_within_commands(noise, data, toy_folder, capsys):
    noise.main(data=data, rows=20, draws=1, targets=4, model=str(toy_folder), embedding=str(toy_folder))
    *table, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    names = {"corrupted_default", "corrupted_random", "corrupted_embedding", "cover_default", "cover_random"}
    assert {f"{name}{end}" for name in names for end in ("", "_within")} < found.keys()
    assert all(0 <= found[name] <= 1 for name in names)
    assert [line[:14].strip() for line in table[1:8]] == [*noise.SELECTORS]
