"""A version signed off: who accepted the artifacts that dvc.lock names, and what has changed since."""

import hashlib
import json
import subprocess
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows import params
from flows.checks import refuse_unknown
from flows.graph import dvc_files, dvc_state, revisions
from flows.graph.stages import PARAMS
from flows.params import Params
from flows.stage import RUN
from flows.stage_calls import CACHE, ask_audit, find_folders
from tasks.decisions import find_decisions
from tasks.settings import hint

ROOT = Path(".")
LOCKS = CACHE / "recorded.json"  # what was read of dvc.lock files
SHOWN = 3  # names in a message


class ApprovalError(ValueError):
    """A version cannot be approved as it is."""


@dataclass(frozen=True)
class Signed:
    """What stands of a version's approval."""

    version: str
    by: str | None  # None: nobody approved it
    when: str | None
    note: str | None
    despite: tuple[str, ...]
    state: str  # approved | changed since | not approved | not known
    changed: tuple[str, ...]  # artifacts that are not those that were approved
    settings: tuple[str, ...]  # that params.yaml gives otherwise now than the version was made by
    inputs: tuple[str, ...]  # raw data and other files that people give, and that are other ones now
    damaged: str | None = None  # why its dvc.lock cannot be read, so that it is not known what stands


def approve(
    version: str, values: Params, *, by: str | None, note: str, despite: Sequence[str], shown: str | None = None
) -> Signed:
    """Record that somebody accepts a version as it is made; returns what then stands.

    Args:
        version: the data version.
        values: the parameters.
        by: who; None: git's user.
        note: what they say of it.
        despite: promises that are broken and accepted so.
        shown: what `digest_recorded` said of the version when they were shown it; None: they look for themselves.

    Raises:
        ParamsError: there is no such version.
        ApprovalError: the version is not up to date, is another one than was shown, a promise is broken that is not
            among `despite`, or nobody signs.
    """
    from tasks.approvals import Approval, add_approval

    refuse_unknown(version, values.versions)
    stages = [one for one in dvc_state.plan([version]) if one.version == version]
    stale = [(address, state, why) for address, state, why in dvc_state.standings(stages) if state != "fresh"]
    _refuse_stale(version, [one for one in stale if one[0] != f"audit@{version}"])
    accepted = _refuse_broken(version, values, despite)
    if not accepted:  # a broken promise ends stage audit, so that it is never fresh: what it checks was checked here
        _refuse_stale(version, stale)
    signer, artifacts = name_signer(by), list_artifacts(version)
    if shown is not None and shown != _digest(artifacts):
        raise ApprovalError(
            f"the artifacts of {version} are other ones than were shown; read what is shown of them now, then approve"
        )
    when = datetime.now(UTC).isoformat(timespec="seconds")
    add_approval(ROOT, Approval(version, signer, when, note, accepted, artifacts))
    return find_signed(version)


def digest_recorded(version: str) -> str:
    """Return a digest of a version's artifacts as its dvc.lock records them, by which `approve` knows what was shown.

    Take it before they are read: a run that ends in between makes it an older one, which is refused.
    """
    return _digest(_read_locks([version])[version]["outs"])


def _digest(artifacts: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(artifacts, sort_keys=True).encode()).hexdigest()


def find_signed(version: str) -> Signed:
    """Return what stands of a version's approval."""
    return find_all_signed([version])[version]


def find_all_signed(versions: Iterable[str]) -> dict[str, Signed]:
    """Return what stands of some versions' approvals, by version."""
    from tasks.approvals import find_last, list_changed, read_approvals

    approvals, now, found = read_approvals(ROOT), _make_plain(params.load(ROOT / PARAMS)), {}
    locks = _read_locks(versions)
    inputs = list_changed_inputs({version: lock["inputs"] for version, lock in locks.items() if lock["inputs"]})
    for version, lock in locks.items():
        if "damaged" in lock:
            found[version] = Signed(version, None, None, None, (), "not known", (), (), (), lock["damaged"])
            continue
        last, settings = find_last(approvals, version), tuple(list_changed_settings(lock["settings"], now))
        since = settings, inputs.get(version, ())
        found[version] = Signed(version, None, None, None, (), "not approved", (), *since)
        if last is not None:
            changed = tuple(list_changed(last, _digest_now(lock["outs"])))
            state = "changed since" if changed else "approved"
            found[version] = Signed(version, last.by, last.when, last.note, last.despite, state, changed, *since)
    return found


def _read_locks(versions: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return `outs` and `inputs` (path -> digest) and the `settings` that versions' dvc.lock files record.

    Of a lock file that has not changed since, without parsing it anew, which takes a tenth of a second. What a file
    that cannot be read records is nothing, and why stands under `damaged`.
    """
    from tasks.artifacts.remembered import remember

    def read(path: Path) -> dict[str, str]:
        try:
            text = dvc_files.read(path)
            parts = _list_results(text), dvc_files.list_inputs(text), dvc_files.list_settings(text)
            return dict(zip(none, map(_dump, parts), strict=True))
        except dvc_files.LockError as error:
            told = f"{path} cannot be read ({error}); the next `tamis run` brings it back from git"
            return none | {"damaged": json.dumps(told)}

    places = {version: dvc_files.place_lock(version) for version in versions}
    none = {"outs": "{}", "inputs": "{}", "settings": "{}"}
    known = remember(LOCKS, [path for path in places.values() if path.exists()], read)
    return {
        version: {part: json.loads(text) for part, text in known.get(path, none).items()}
        for version, path in places.items()
    }


def _list_results(text: str) -> dict[str, str]:
    """Return the digests of what a dvc.lock records, but for when and how long its stages ran.

    A version that is made anew, with equal results, is the one that was approved.
    """
    return {path: md5 for path, md5 in dvc_files.list_outs(text).items() if Path(path).name != RUN}


def list_changed_inputs(recorded: Mapping[str, Mapping[str, str]]) -> dict[str, tuple[str, ...]]:
    """Return for each version the raw data and other files that people give and that are other ones now, sorted.

    The version's artifacts and its approval stand; its next run would make others. Raw data that are elsewhere are not
    known to have changed; decisions on rows may have come or gone.

    Args:
        recorded: version -> path -> digest, as its dvc.lock has them.
    """
    decided = {version: find_decisions(Path(), version).as_posix() for version in recorded}
    now = _digest_now([path for version, one in recorded.items() for path in (*one, decided[version])])
    return {
        version: tuple(
            sorted(
                path
                for path in {*one, decided[version]}
                if now.get(path) != one.get(path) and (path in now or path == decided[version])
            )
        )
        for version, one in recorded.items()
    }


def list_changed_settings(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the settings that are other ones now than a version was made by, as dotted names, sorted.

    The version's artifacts and its approval stand; its next run would make others.

    Args:
        recorded: by dotted names, as its dvc.lock has them.
        now: those of params.yaml.
    """
    found = {name for key, value in recorded.items() for name in _list_other(key, value, _find_setting(now, key))}
    return sorted(found)


def _dump(value: Any) -> str:
    return json.dumps(value, default=str)  # YAML has dates


def _make_plain(value: Any) -> Any:
    return json.loads(_dump(value))


def _find_setting(values: Any, name: str) -> Any:
    """Return the value of a dotted name; None where there is none, as DVC takes it."""
    for key in name.split("."):
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def _list_other(name: str, recorded: Any, now: Any) -> list[str]:
    """Return the names of what differs, as deep as both are sections."""
    if isinstance(recorded, Mapping) and isinstance(now, Mapping):
        return [
            one
            for key in dict.fromkeys([*recorded, *now])
            for one in _list_other(f"{name}.{key}", recorded.get(key), now.get(key))
        ]
    return [] if recorded == now else [name]


def list_artifacts(version: str) -> dict[str, str]:
    """Return the digests of a version's artifacts as they are now, by path: of those that its dvc.lock records.

    What is not there is not among them.
    """
    return _digest_now(_read_locks([version])[version]["outs"])


def _digest_now(recorded: Collection[str]) -> dict[str, str]:
    if not recorded:
        return {}
    with dvc_state.opened() as repo:
        now = revisions.digest_now(repo, recorded)
    return {path: digest for path, digest in now.items() if digest is not None}


def check_promises(version: str, values: Params) -> list[Any]:
    """Return what every check finds in a version's artifacts as they are, `Check`s, promises first.

    Raises:
        ArtifactError: an artifact is missing or was edited.
    """
    from tasks.audit.audit import check_version

    return check_version(find_folders(values, version), **ask_audit(values, version))


def _refuse_broken(version: str, values: Params, despite: Sequence[str]) -> tuple[str, ...]:
    """Return the promises that are broken, all of which are accepted.

    Raises:
        ApprovalError: one is not, or what is accepted is no promise.
    """
    checks = [one for one in check_promises(version, values) if one.promise]
    names = [one.name for one in checks]
    unknown = [name for name in despite if name not in names]
    if unknown:
        near = hint(unknown[0], names)
        raise ApprovalError(f"{unknown[0]!r} is no promise{near}; they are {', '.join(names)}")
    broken = [one for one in checks if one.found and one.name not in despite]
    if broken:
        told = "; ".join(f"{one.name}: {', '.join(one.found[:SHOWN])}" for one in broken)
        words = " ".join(f"--despite {one.name}" for one in broken)
        raise ApprovalError(f"{len(broken)} promises of {version} are broken ({told}); mend that, or give {words}")
    return tuple(one.name for one in checks if one.found)


def _refuse_stale(version: str, stale: Sequence[tuple[str, str, str]]) -> None:
    """Raise ApprovalError where a stage of a version is not up to date."""
    if stale:
        address, state, why = stale[0]
        raise ApprovalError(f"{address} is {state}{f' ({why})' if why else ''}; `tamis run {version}` first")


def name_signer(by: str | None) -> str:
    """Return who signs: a name that is given, or the one that git would write into a commit.

    Raises:
        ApprovalError: there is none.
    """
    if by is None:
        done = subprocess.run(["git", "var", "GIT_AUTHOR_IDENT"], capture_output=True, text=True)
        by = done.stdout.partition("<")[0]
    if not by.strip():
        raise ApprovalError("nobody signs: no name is given, or git knows none here; give --by NAME")
    return by.strip()
