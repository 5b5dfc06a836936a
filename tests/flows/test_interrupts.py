"""Ctrl-C, at any moment: one line, exit status 130 within five seconds, nobody left, and the next run goes on.

So with SIGTERM, which the process alone gets, and the status 143, and with SIGHUP of a closed terminal, and 129.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from worlds.projects import GRAPHS, ROOT, Project, drive_by_flow, environment
from worlds.terminals import run_in_terminal

from flows import interrupts

INTERRUPTER = ROOT / "tests/flows/interrupter"
COMMAND = "from flows import pipeline\n\npipeline.run(workers='2')\n"  # what `tamis run` does, without models
BUSY = """    import torch

    while True:
        torch.randn(900, 900).matrix_power(400)
"""
ASLEEP = "    __import__('time').sleep(100)\n"
OURS = ("no estimate of this run", "another flow runs", "computing", "fresh in ", "computed in ", "restored in ")


@pytest.fixture
def project(fresh, tmp_path) -> Project:
    """A copy of the small project that the flow has run, and a command that is called `tamis`."""
    made, _ = fresh(GRAPHS["small"], "flow")
    shutil.copytree(made.root, tmp_path / "small")
    (tmp_path / "tamis").write_text(COMMAND)
    return Project(tmp_path / "small")


def start(project: Project, at: str = "", **more: str) -> subprocess.Popen:
    """Start the command as a shell does, to be interrupted at an event, `name|text|seconds`."""
    path = f"{INTERRUPTER}:{project.root}:{ROOT}"
    env = environment(PYTHONPATH=path, PYTHONUNBUFFERED="1", **({"INTERRUPT_AT": at} if at else {}), **more)
    command = [sys.executable, str(project.root.parent / "tamis")]
    return subprocess.Popen(
        command,
        cwd=project.root,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_hangups,
    )


def heed_hangups() -> None:
    """Let a closed terminal end a child, though the tests may run under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def refuse_unless_ended_well(process: subprocess.Popen, project: Project, number: int = signal.SIGINT) -> str:
    """Check status, time, lines, and that no process of the group is left; returns what was printed."""
    out, err = process.communicate(timeout=100)
    sent = float((project.root / "interrupted").read_text())
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}[number], err
    assert time.time() - sent < 5
    *said, last = err.splitlines()
    assert last == interrupts.LINES[number]
    assert [line for line in said if not any(word in line for word in OURS) and "shard" not in line] == bars(said)
    assert out == ""
    assert wait_until(lambda: not any(in_group(one, process.pid) for one in psutil.process_iter(["status"])), 5)
    return err


def wait_until(holds: Callable[[], bool], seconds: float) -> bool:
    """Return whether something comes to hold in time."""
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.1)
    return holds()


def in_group(one: psutil.Process, group: int) -> bool:
    """Return whether a process lives and is of a group; one that was killed may wait to be taken note of."""
    try:
        return os.getpgid(one.pid) == group and one.info["status"] != psutil.STATUS_ZOMBIE
    except ProcessLookupError:
        return False


def bars(lines: list[str]) -> list[str]:
    """Return the lines of progress bars, which are our own."""
    return [line for line in lines if "per second" in line or not line.strip()]


def goes_on(project: Project, computed: list[str]) -> bool:
    """Return whether the next run computes these stages, and leaves nothing to do."""
    return drive_by_flow(project) == computed and project.status() == {}


def chosen(project: Project) -> str:
    return (project.root / "data/choose/version=v1/chosen.txt").read_text()


@pytest.mark.parametrize(
    "at",
    [
        "import|rich|0",
        "import|prefect.flows|0",
        "import|dvc.repo|0.1",
        "subprocess.Popen|uvicorn|0.05",
        pytest.param("subprocess.Popen|uvicorn|2", marks=pytest.mark.slow),
    ],
)
def test_interrupt_while_starting_up(project, at):
    project.apply(GRAPHS["small"].late)
    refuse_unless_ended_well(start(project, at), project)
    assert goes_on(project, ["choose@v1", "total@v1"])


@pytest.mark.parametrize(
    "work", [pytest.param(ASLEEP, id="asleep"), pytest.param(BUSY, id="torch", marks=pytest.mark.slow)]
)
def test_interrupt_in_a_stage_leaves_the_last_good_artifacts(project, work, server):
    before = chosen(project)
    project.apply(GRAPHS["small"].late)
    project.edit("small/choose.py", "    os.replace", f"{work}    os.replace")
    err = refuse_unless_ended_well(start(project, "open|choose/version=v1/part|0.5", PREFECT_API_URL=server), project)
    assert "choose@v1        computing" in err
    assert chosen(project) == before
    project.edit("small/choose.py", work, "")
    assert goes_on(project, ["choose@v1", "total@v1"])


def test_interrupt_in_shards_on_threads(project, server):
    project.apply(GRAPHS["small"].shards)
    project.edit("small/score.py", "        os.replace", f"    {ASLEEP}        os.replace")
    refuse_unless_ended_well(start(project, "open|.draft w|0.5", PREFECT_API_URL=server), project)
    project.edit("small/score.py", f"    {ASLEEP}", "")
    assert goes_on(project, ["score@v1", "choose@v1", "total@v1"])


@pytest.mark.parametrize(
    ("at", "computed"),
    [
        ("os.rename|dvc.lock|0", ["total@v1"]),
        ("open|rwlock w|0", ["choose@v1", "total@v1"]),
        pytest.param("os.rename|cache/runs/|0", ["total@v1"], marks=pytest.mark.slow),
    ],
)
def test_interrupt_while_recording_breaks_no_file(project, server, at, computed):
    project.apply(GRAPHS["small"].late)
    refuse_unless_ended_well(start(project, at, PREFECT_API_URL=server), project)
    assert goes_on(project, computed)


@pytest.mark.slow
def test_interrupt_at_the_end(project):
    process = start(project, "os.kill| 15|0")
    refuse_unless_ended_well(process, project)
    assert goes_on(project, [])


@pytest.mark.parametrize(
    "number",
    [pytest.param(one, marks=[] if one == signal.SIGTERM else [pytest.mark.slow]) for one in interrupts.LINES],
)
def test_signal_that_only_the_process_gets_ends_the_server_as_well(project, number):
    project.apply(GRAPHS["small"].late)
    project.edit("small/choose.py", "    os.replace", f"{ASLEEP}    os.replace")
    process = start(project)
    lines = iter(process.stderr.readline, "")
    assert any("choose@v1        computing" in line for line in lines)
    (project.root / "interrupted").write_text(str(time.time()))
    process.send_signal(number)
    refuse_unless_ended_well(process, project, number)
    project.edit("small/choose.py", ASLEEP, "")
    assert goes_on(project, ["choose@v1", "total@v1"])


def test_a_fork_is_ended_alone():
    """As `multiprocessing` ends its workers; the signal's number must not reach the watcher of the parent."""
    code = """
import multiprocessing, time
from flows import interrupts
interrupts.install()
child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(100,))
child.start()
child.terminate()
child.join(10)
time.sleep(1)
print(child.exitcode)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "-15\n", "")


def test_interrupt_in_a_terminal_is_one_line_below_the_bar_and_shows_the_cursor(project, monkeypatch, server):
    project.apply(GRAPHS["small"].shards)
    project.edit("small/score.py", "        draft =", f"    {ASLEEP}        draft =")
    monkeypatch.setenv("PYTHONPATH", f"{project.root}:{ROOT}")
    monkeypatch.setenv("PREFECT_API_URL", server)
    sent = []

    def act(process: subprocess.Popen, text: str) -> None:
        if "0/4" in text and not sent:
            sent.append(time.monotonic())
            os.killpg(process.pid, signal.SIGINT)

    shown = run_in_terminal([sys.executable, str(project.root.parent / "tamis")], project.root, act=act)
    assert time.monotonic() - sent[0] < 5
    assert shown.status == 130
    assert shown.text.endswith(f"\n{interrupts.LINES[signal.SIGINT]}\n")
    assert shown.text.rfind("\x1b[?25h") > shown.text.rfind("\x1b[?25l") > 0


def test_interrupt_of_a_stage_that_dvc_runs(tmp_path, toy_folder):
    GRAPHS["real"].make(tmp_path / "real", str(toy_folder))
    env = environment(PYTHONPATH=f"{INTERRUPTER}:{ROOT}", INTERRUPT_AT="import|tasks.examples|0")
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.stage", "examples", "v1"],
        cwd=tmp_path / "real",
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    refuse_unless_ended_well(process, Project(tmp_path / "real"))


@pytest.mark.parametrize(("before", "ends"), [("", 129), ("signal.signal(signal.SIGHUP, signal.SIG_IGN)", 7)])
def test_a_closed_terminal_ends_no_process_that_is_to_outlive_it(before, ends):
    """As `nohup` starts one."""
    code = f"""
import os, signal, sys, time
{before}
from flows import interrupts
interrupts.install()
os.kill(os.getpid(), signal.SIGHUP)
time.sleep(1)
sys.exit(7)
"""
    env = environment(PYTHONPATH=str(ROOT))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, check=False, preexec_fn=heed_hangups)
    assert done.returncode == ends


def test_programs_that_import_us_keep_their_handling_of_interrupts():
    code = "import signal; own = signal.getsignal(2); import flows; print(signal.getsignal(2) is own)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), cwd=ROOT)
    assert done.stdout == "True\n"


def test_section_that_must_be_whole_is_waited_for_no_longer_than_it_asks(tmp_path):
    code = f"""
import os, signal, sys, time
from pathlib import Path
from flows import interrupts

interrupts.install()
with interrupts.cleaning(lambda: Path({str(tmp_path / "cleaned")!r}).touch()):
    with interrupts.whole(float(sys.argv[1])):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
        Path({str(tmp_path / "whole")!r}).touch()
    Path({str(tmp_path / "after")!r}).touch()
    time.sleep(60)
"""
    for seconds, held in (("3", True), ("0.1", False)):
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code, seconds], capture_output=True, text=True, env=environment())
        assert (done.returncode, done.stderr) == (130, f"{interrupts.LINES[signal.SIGINT]}\n")
        assert time.monotonic() - began < 5
        assert [Path(tmp_path / name).exists() for name in ("cleaned", "whole", "after")] == [True, held, False]
        for name in ("cleaned", "whole"):
            Path(tmp_path / name).unlink(missing_ok=True)
