"""What a run would compute and how long it would take, before it, and the time left while it goes on.

Stages that are up to date cost nothing. Of the others `tasks.estimate` counts rows, pairs and tokens, and seconds per
unit come from earlier runs on this machine or, where there were none, from a calibration of a few seconds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flows import params
from flows.environment import name_machine
from flows.graph.stages import Planned
from flows.stage import format_error, last_run, named, say
from flows.stage_calls import CACHE, encoder, folder, language
from flows.unread import list_notes
from tasks.artifacts.tables import ArtifactError

RATES = CACHE / "rates.json"
STEADY = 10.0  # seconds of a run that its first stages must outweigh before they change what is expected of the others


@dataclass(frozen=True)
class Line:
    """What is expected of a stage."""

    address: str  # utility@v1
    state: str  # fresh | stale | missing | running | waits
    work: Any  # `tasks.estimate.work.Work` that is left; None: it is fresh
    seconds: float  # 0: it is fresh


@dataclass(frozen=True)
class Estimate:
    """What is expected of a run."""

    lines: tuple[Line, ...]  # in the order of the flow
    planned: Mapping[str, Any] = field(default_factory=dict)  # address -> `tasks.estimate.plan.Planned`
    notes: tuple[str, ...] = ()  # on settings that do less than was meant, where anything is to be computed

    @property
    def seconds(self) -> float:
        """Return those of all stages."""
        return sum(line.seconds for line in self.lines)


@dataclass(frozen=True)
class Clock:
    """How a run keeps to its estimate."""

    left: Mapping[str, float]  # address -> expected seconds of what has not ended
    expected: float = 0.0  # seconds of what was computed
    spent: float = 0.0  # seconds that it took


def make_estimate(planned: Sequence[Planned]) -> Estimate:
    """Return what is expected of a run of planned stages.

    What earlier runs on this machine took is learnt first. Where seconds of a unit are still unknown, the models are
    loaded and measured, which takes a few seconds, and kept in `.cache/rates.json`.

    Raises:
        ParamsError: params.yaml cannot be used.
        ValueError: no raw files, or rows that cannot be divided.
    """
    from flows.graph import dvc_state

    values, standings = params.read(), dvc_state.standings(planned)
    fresh = frozenset(address for address, state, _ in standings if state == "fresh")
    if len(fresh) == len(standings):
        return Estimate(tuple(Line(address, state, None, 0.0) for address, state, _ in standings))
    from tasks.estimate import plan, rates

    models = rates.Models(language(values), encoder(values))
    addresses = [address for address, *_ in standings]
    expected = plan.plan_stages(addresses, values, models, where=folder, cache=CACHE, fresh=fresh)
    known = rates.read_rates(RATES)
    known = plan.learn_runs(known, expected, _read_runs(fresh), values, models)
    stale = {address: one for address, one in expected.items() if address not in fresh}
    known = plan.calibrate(known, plan.find_gaps(known, stale, values, models), models)
    try:
        rates.write_rates(known, RATES)
    except ArtifactError as error:  # a lost memory: the next estimate measures again
        say(f"what was measured is not kept: {error}")
    lines = []
    for address, state, _ in standings:
        seconds = plan.predict(known, stale[address], values, models) if address in stale else 0.0
        lines.append(Line(address, state, stale[address].left if address in stale else None, seconds))
    return Estimate(tuple(lines), stale, tuple(list_notes(values)))


def _read_runs(addresses: Sequence[str] | frozenset[str]) -> dict[str, dict[str, Any]]:
    """Return what is recorded of the last runs of some stages, of those that were made on this machine."""
    runs = {address: last_run(address) for address in addresses}
    return {address: run for address, run in runs.items() if run.get("machine") == name_machine()}


def learn(estimate: Estimate | None, computed: Sequence[str]) -> None:
    """Keep what the stages that a run has computed took, for the next estimate; never fails a run."""
    if estimate is None or not computed:
        return
    try:
        from tasks.estimate import plan, rates

        values = params.read()
        models = rates.Models(language(values), encoder(values))
        runs = _read_runs([address for address in computed if address in estimate.planned])
        known = plan.learn_runs(rates.read_rates(RATES), estimate.planned, runs, values, models)
        rates.write_rates(known, RATES)
    except Exception as error:
        say(f"what this run took could not be kept in {RATES}: {format_error(error)}")


def try_estimate(planned: Sequence[Planned]) -> Estimate | None:
    """Return what is expected of a run, or say in a line why that is not known: a run goes on without it.

    Raises:
        UnkeptError: the choice of a version cannot be made, which its stage would only say once others have computed.
    """
    try:
        return make_estimate(planned)
    except Exception as error:
        if not isinstance(error, params.ParamsError):
            _raise_unkept(error)
        say(f"no estimate of this run: {' '.join(format_error(error).split())}")
        return None


def _raise_unkept(error: Exception) -> None:
    """Raise an error again that says that the choice of a version cannot be made."""
    from tasks.estimate.rows import UnkeptError  # and models' libraries with it, which take seconds

    if isinstance(error, UnkeptError):
        with named(f"selection@{error.version}"):
            raise error


def print_estimate(estimate: Estimate | None, speak: Callable[[str], None] = say) -> None:
    """Print notes on settings, a line per stage that is not up to date with what is expected, and a total."""
    for note in estimate.notes if estimate else ():
        speak(note)
    for line in estimate.lines if estimate else ():
        if line.work is not None:
            speak(f"{line.address:<16} {line.state:<8} {tell_work(line):<60} {tell_seconds(line.seconds):>9}")
    if estimate:
        fresh, stages = sum(line.work is None for line in estimate.lines), len(estimate.lines)
        others = "" if fresh == stages else f"; the others take {tell_time(estimate.seconds)}"
        speak(f"{fresh} of {stages} stages are up to date{others}")


def make_table(estimate: Estimate) -> tuple[list[str], list[tuple[str, str, str, str]]]:
    """Return headings and a row per stage, with the total last, for people."""
    rows = [(line.address, line.state, tell_work(line), tell_seconds(line.seconds)) for line in estimate.lines]
    total = ("total", "", tell_time(estimate.seconds), tell_seconds(estimate.seconds))
    return ["stage", "state", "computes", "seconds"], [*rows, total]


def make_rows(estimate: Estimate) -> list[dict[str, Any]]:
    """Return a row per stage for programs: stage, version, state, every count of its work, seconds."""
    from tasks.estimate.work import Work

    found = []
    for line in estimate.lines:
        name, _, version = line.address.partition("@")
        counts = vars(line.work or Work())
        about = {"stage": name, "version": version, "state": line.state}
        found.append({**about, **counts, "seconds": round(line.seconds, 1)})
    return found


def tell_work(line: Line) -> str:
    """Return a stage's work in words, `at most 1,440 pairs, 180,000 tokens`."""
    work = line.work
    if work is None:
        return "up to date"
    counts = {
        "rows": 0 if work.pairs else work.rows,
        "pairs": work.pairs,
        "texts": work.texts if not work.rows else 0,
        "tokens": work.encoded if not work.forward + work.backward else work.forward + work.backward,
        "generated tokens": work.generated,
    }
    told = [f"{count:,} {name if count > 1 else name.removesuffix('s')}" for name, count in counts.items() if count]
    if work.arms:
        told.insert(0, f"{work.arms} {'arm' if work.arms == 1 else 'arms'}")
    return ("at most " if work.at_most and told else "") + (", ".join(told) or "nothing")


def tell_seconds(seconds: float) -> str:
    """Return seconds, to the tenth where they are few.

    >>> tell_seconds(0.0), tell_seconds(3.14159), tell_seconds(1234.5)
    ('0', '3.1', '1,234')
    """
    return "0" if not seconds else f"{seconds:.1f}" if seconds < 10 else f"{seconds:,.0f}"


def tell_time(seconds: float) -> str:
    """Return a length of time in words, as exact as an estimate is.

    >>> [tell_time(seconds) for seconds in (0.0, 12.0, 44.0, 200.0, 5000.0, 90000.0)]
    ['no time', 'about 10 s', 'about 40 s', 'about 3 min', 'about 1 h 25 min', 'about 25 h']
    """
    if seconds < 0.5:
        return "no time"
    if seconds < 90:
        return f"about {max(5, round(seconds / 5) * 5 if seconds < 10 else round(seconds, -1)):.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"about {minutes} min"
    hours, minutes = divmod(round(minutes / 5) * 5, 60)
    return f"about {hours} h {minutes} min" if minutes and hours < 10 else f"about {hours} h"


def start_clock(estimate: Estimate | None) -> Clock:
    """Return the clock of a run that begins; without an estimate it has nothing to tell."""
    return Clock({line.address: line.seconds for line in estimate.lines if line.seconds} if estimate else {})


def end_stage(clock: Clock, address: str, seconds: float, *, computed: bool) -> Clock:
    """Return the clock after a stage has ended.

    Args:
        clock: before.
        address: of the stage.
        seconds: that it took.
        computed: false where it was up to date or restored, which says nothing of how fast this machine is.
    """
    expected = clock.left.get(address, 0.0)
    left = {name: each for name, each in clock.left.items() if name != address}
    if not computed or not expected:
        return replace(clock, left=left)
    return Clock(left, clock.expected + expected, clock.spent + seconds)


def seconds_left(clock: Clock) -> float:
    """Return the seconds that the rest will take: as expected, at the pace of what was computed so far.

    left * (spent + `STEADY`) / (expected + `STEADY`): a first stage of two seconds changes little.

    >>> seconds_left(Clock({"utility@v1": 60.0}, expected=10.0, spent=30.0))
    120.0
    """
    return sum(clock.left.values()) * (clock.spent + STEADY) / (clock.expected + STEADY)


def tell_left(clock: Clock) -> str:
    """Return the time left in words, for the end of a line; nothing at the end of a run, or without an estimate.

    >>> tell_left(Clock({"utility@v1": 200.0})), tell_left(Clock({}))
    ('; about 3 min left', '')
    """
    seconds = seconds_left(clock)
    return f"; {tell_time(seconds)} left" if seconds >= 0.5 else ""
