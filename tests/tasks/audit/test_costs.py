"""What a version's choice cost is read from what its stages said of their runs, and told in words."""

import json

import pytest

from tasks.audit.costs import SCORING, read_costs

RUNS = {
    **{name: {"scoring_seconds": 0.0, "scoring_flops": 0} for name in SCORING},
    "utility": {"scoring_seconds": 50.0, "scoring_flops": 5000, "kernel": "neighbours"},
    "selection": {"seconds": 0.5},
    "finetuning": {
        "training": {
            "chosen-0": {"seconds": 9.0, "flops": 900},
            "chosen-1": {"seconds": 11.0, "flops": 1100},
            "random-0": {"seconds": 7.0, "flops": 1000},
        },
        "full_flops": 4000,
    },
}


def write(root, kind="fraction", pilot=None, **changes) -> None:
    """Write what stages say of their runs, some of it changed; None: a stage did not run."""
    for name, run in {**RUNS, **changes}.items():
        folder = root / f"data/{name}/version=v1"
        folder.mkdir(parents=True)
        if run is not None:
            (folder / "run.json").write_text(json.dumps(run))
    chosen = {"pool_rows": 100, "budget": {"kind": kind}, "pilot": pilot}
    (root / "data/selection/version=v1/selection.json").write_text(json.dumps(chosen))


def test_training_on_all_rows_goes_by_its_tokens_where_it_is_not_run(tmp_path):
    write(tmp_path)
    found = read_costs(tmp_path, "v1")
    assert found["scoring"] == {"seconds": 50.0, "flops": 5000}
    assert found["choosing"] == {"seconds": 0.5, "flops": 0}
    assert found["training_chosen"] == {"seconds": 10.0, "flops": 1000}
    assert found["training_full"] == {"seconds": 40.0, "flops": 4000, "measured": False}
    cost, break_even = found["told"]
    assert cost.endswith("training on all rows 40.0 s, 4e+03 FLOPs (not run: by its tokens, at the rate of the choice)")
    assert break_even == (
        "scoring has paid after 2 trainings on these rows (by FLOPs after 2); for one training at no size of the pool"
    )


def test_training_on_all_rows_that_was_run_is_what_it_took(tmp_path):
    trained = RUNS["finetuning"]["training"] | {"full-0": {"seconds": 80.0, "flops": 4100}}
    write(tmp_path, finetuning={"training": trained, "full_flops": 4000})
    found = read_costs(tmp_path, "v1")
    assert found["training_full"] == {"seconds": 80.0, "flops": 4100, "measured": True}
    assert "not run" not in found["told"][0]
    assert found["told"][1].startswith("scoring has paid after 1 training on these rows (by FLOPs after 2); for one tr")


@pytest.mark.parametrize(
    ("kind", "kernel", "said"),
    [
        ("fraction", "neighbours", "at no size of the pool"),
        ("count", "neighbours", "from 106 rows of the pool on"),
        ("fraction", "exact", "up to 98 rows of the pool"),
        ("count", "exact", "from 34 to 97 rows of the pool"),
    ],
)
def test_the_size_of_the_pool_plays_its_part_where_costs_grow_otherwise_than_it(tmp_path, kind, kernel, said):
    write(tmp_path, kind, utility={"scoring_seconds": 30.0, "scoring_flops": 5000, "kernel": kernel})
    assert read_costs(tmp_path, "v1")["told"][1].endswith(f"for one training {said}")


@pytest.mark.parametrize("name", ["utility", "selection", "finetuning"])
def test_nothing_is_told_where_a_stage_did_not_say_what_it_took(tmp_path, name):
    write(tmp_path, **{name: None})
    assert read_costs(tmp_path, "v1") is None


def test_a_pilot_is_part_of_choosing_whether_its_trainings_were_kept_or_not(tmp_path):
    write(tmp_path, pilot={"seconds": 12.0, "flops": 700})
    assert read_costs(tmp_path, "v1")["choosing"] == {"seconds": 12.0, "flops": 700}


def test_a_pilots_trainings_are_as_long_in_a_larger_pool(tmp_path):
    write(tmp_path, utility={"scoring_seconds": 0.0, "scoring_flops": 0}, pilot={"seconds": 60.0, "flops": 700})
    told = read_costs(tmp_path, "v1")["told"][1]
    assert told.endswith("for one training from 200 rows of the pool on")  # a training saves 30 s of a pool of 100


def test_where_nothing_is_scored_it_is_choosing_that_pays(tmp_path):
    write(tmp_path, utility={"scoring_seconds": 0.0, "scoring_flops": 0})
    assert read_costs(tmp_path, "v1")["told"][1].startswith("choosing has paid after 1 training on these rows")
