"""The stages without Prefect: what the other engine and DVC find afterwards, shards on threads, patience."""

import sys
import threading
import time

import pytest
from worlds.projects import GRAPHS, Project, drive_by_dvc, drive_by_flow, importing_from, run_child

from flows import drive
from flows.graph import dvc_state


@pytest.fixture
def here(small, monkeypatch) -> Project:
    """The small project before its first run, as the current folder."""
    monkeypatch.chdir(small.root)
    return small


def test_the_other_drivers_find_nothing_to_do_afterwards(here, server):
    with importing_from(here.root):
        assert [one.how for one in drive.run(workers="2")] == ["computed"] * 4
        assert [one.how for one in drive.run()] == ["fresh"] * 4
    assert here.status() == {}
    assert drive_by_flow(here) == []
    assert drive_by_dvc(here) == []
    assert here.computed() == GRAPHS["small"].all()


def test_prefect_is_not_imported(here):
    code = "import sys; from flows import engines; engines.run('local', []); print('prefect' in sys.modules)"
    done = run_child([sys.executable, "-c", code], here, PYTHONPATH=str(here.root))
    assert done.stdout == "False\n", done.stderr


def test_shards_run_at_once_and_give_results_in_order(here):
    seen = []

    def make(name, version, *, map):
        barrier = threading.Barrier(2)

        def work(item: int) -> int:
            barrier.wait(10)
            time.sleep(0.05 * (3 - item))
            return item

        seen.append(list(map(work, [0, 1, 2, 3])))
        for path in dvc_state.plan()[0].outputs:
            (here.root / path).parent.mkdir(parents=True, exist_ok=True)
            (here.root / path).write_text("x")

    with importing_from(here.root), pytest.MonkeyPatch.context() as patch:
        patch.setattr(drive, "_implementation", lambda planned: (make, "letters", "v1"))
        patch.setattr(dvc_state, "plan", lambda versions=(), plan=dvc_state.plan: plan(versions)[:1])
        drive.run(workers="2")
    assert seen == [[0, 1, 2, 3]]


def test_it_waits_for_a_stage_that_another_process_holds(here, monkeypatch, capsys):
    monkeypatch.setattr(drive, "PAUSE", 0.05)
    monkeypatch.setattr(sys, "argv", ["dvc", "repro"])
    with importing_from(here.root):
        dvc_state.plan()
        held = dvc_state.claim("letters@v1")
        held.__enter__()
        monkeypatch.setattr(sys, "argv", ["tamis", "run"])
        timer = threading.Timer(4, lambda: held.__exit__(None, None, None))
        timer.start()
        assert [one.how for one in drive.run()] == ["computed"] * 4
        timer.join()
    assert capsys.readouterr().err.count("letters@v1       waiting for another process: ") == 1


def test_error_of_a_stage_names_it_and_what_was_made_before_stays(here):
    here.edit("params.yaml", "rows: 5", "rows: 0")
    with importing_from(here.root), pytest.raises(ValueError, match="0 rows are too few") as caught:
        drive.run()
    assert caught.value.stage == "choose@v1"
    states = {address: state for address, state, _ in dvc_state.standings(dvc_state.plan())}
    assert (states["letters@v1"], states["score@v1"]) == ("fresh", "fresh")
