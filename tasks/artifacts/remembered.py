"""What was found once and is kept, so that it need not be found again: losing it costs time and nothing else.

Of a file, what reading all of it told, as long as its size, times of change and inode stay: hashing gigabytes takes
minutes, so a digest or a check is done once per content and not once per command.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from tasks.artifacts.tables import ArtifactError, tell_folder, write_json

SETTLED = 2e9  # nanoseconds: a file that changed since then could change again within the clock's tick

T = TypeVar("T")


def remember(cache: Path, paths: Iterable[Path], find: Callable[[Path], T]) -> dict[Path, T]:
    """Return what `find` says of files; of those that are known and have not changed, without reading them.

    Args:
        cache: a JSON file that keeps what was found; one that cannot be read is made anew, and one that cannot be
            written keeps nothing.
        paths: the files.
        find: reads a file; what it returns must be fit for JSON. What it raises is not kept.
    """
    known, found, fresh = _read(cache), {}, {}
    try:
        for path in paths:
            about = path.stat()
            state = [about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino]
            key = str(path.absolute())
            if known.get(key, [None])[0] == state:
                found[path] = known[key][1]
                continue
            found[path] = find(path)
            if time.time_ns() - max(about.st_mtime_ns, about.st_ctime_ns) > SETTLED:
                fresh[key] = [state, found[path]]
    finally:
        if fresh:
            kept = {key: one for key, one in (_read(cache) | fresh).items() if Path(key).exists()}
            with suppress(ArtifactError):  # only a memory: what cannot be kept, on a read-only disk, is found again
                write_json(kept, cache)
    return found


def recall(path: Path, kinds: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any] | None:
    """Return a JSON object that is only kept to be found again; None: it is not there, or damaged.

    Args:
        path: of its file.
        kinds: names that it must have, each with what its value is.

    Raises:
        ArtifactError: a folder stands in the file's place, where what is found again could not be written.
    """
    if path.is_dir():
        raise ArtifactError(tell_folder(path))
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    sound = isinstance(found, dict) and all(isinstance(found.get(name), kind) for name, kind in kinds.items())
    return found if sound else None


def _read(cache: Path) -> dict[str, Any]:
    try:
        found = json.loads(cache.read_text(encoding="utf-8"))
        return {key: one for key, one in found.items() if isinstance(one, list) and len(one) == 2}
    except (OSError, ValueError, AttributeError):
        return {}
