"""The stores' mirror: their parts under a URL of any file system that fsspec knows, for machines that share no folder.

A part is named by what it holds and never changed, so a mirror needs neither a lock nor a rename: what one side lacks
is copied whole from the other. A stage that computes fetches what others have computed before it asks its store, and
sends what it adds as it goes; what a killed one did not send is sent by the next.
"""

import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from flows.stage_calls import CACHE, Map, T
from flows.told import hide

FILLED = {  # stage -> the kinds of stores that it fills
    "embedding": ("embeddings",),
    "utility": ("pairs",),
    "scores": ("scores",),
    "gradients": ("gradients",),
    "evaluation": ("losses", "answers", "texts"),
}
OURS = re.compile(r"[a-z]+/[0-9a-f]{32}/part-[0-9a-f]{32}\.parquet")
TRIED = "writable"  # a file by which is tried whether a mirror can be written
PAUSE = 30.0  # seconds of shards between two looks at what is to be sent: what a machine that is lost loses

Through = Callable[[Map], Map]


class MirrorError(ValueError):
    """The mirror cannot be read or written."""


class Mirror:
    """One project's view of a mirror."""

    def __init__(self, url: str, *, say: Callable[[str], None]) -> None:
        """Open it.

        Raises:
            MirrorError: no file system is known by that URL, what it needs is not installed, or the folder above or
                the bucket is not there.
        """
        self.url, self._say = hide(url).rstrip("/"), say
        self._there: set[str] = set()  # names of files, below the root
        self._damaged: set[str] = set()  # of those that are not as they were written
        self._blocked: dict[str, str] = {}  # names -> what stands in their way there
        with self._refused("opened"):
            self._system, root = fsspec.core.url_to_fs(url)
            self._root = root.rstrip("/")
            if "://" not in url and not Path(url).is_absolute():
                raise ValueError("it is no address such as s3://bucket/stores, and no absolute path")
            above = self._root.rpartition("/")[0] or self._root
            if not self._system.exists(above):  # a bucket would be made by whoever writes first
                raise FileNotFoundError(f"there is no {above}")

    def fetch(self, kinds: Collection[str], models: Collection[str] | None) -> list[Path]:
        """Copy the parts that are not here; returns their paths here.

        A part that is damaged there is left and told of, and sent anew once it is computed here.

        Args:
            kinds: of stores.
            models: digests; folders that say another one's are left. None: all folders, and in these what a part here
                stands for, too.

        Raises:
            MirrorError: the mirror cannot be read.
        """
        with self._refused("read"):
            self._system.invalidate_cache()
            listed = [name for kind in kinds for name in self._list(kind)]
        self._there |= set(listed)
        fetched = []
        for folder, names in _by_folder(listed):
            if self._serves(folder, models):
                known = set() if models is None else _list_replaced(CACHE / folder)
                new = [name for name in names if not (CACHE / name).exists() and Path(name).name not in known]
                fetched += [CACHE / name for name in new if self._fetch_part(name)]
        return fetched

    def send(self, kinds: Collection[str], models: Collection[str] | None) -> int:
        """Copy the parts that are not there; returns how many. One in whose way something stands is told of and left.

        Args:
            kinds: of stores.
            models: as of `fetch`.

        Raises:
            MirrorError: the mirror cannot be written.
        """
        from tasks.artifacts.stores import ABOUT, PARTS

        sent = 0
        for folder in (path for kind in kinds for path in sorted((CACHE / kind).glob("*"))):
            done = self._there | self._blocked.keys()
            new = [path for path in (folder / ABOUT, *folder.glob(PARTS)) if _name(path) not in done]
            if new and (folder / ABOUT).exists() and self._serves(_name(folder), models):
                sent += sum(map(self._send_part, new))
        return sent

    def try_writing(self) -> None:
        """Write an empty file there and remove it, as hours of computing may come before the first part is sent.

        Raises:
            MirrorError: the mirror cannot be written.
        """
        with self._refused("written"):
            self._system.makedirs(self._root, exist_ok=True)
            self._system.pipe_file(f"{self._root}/{TRIED}", b"")
        with suppress(Exception):  # who may write there need not be allowed to remove; nobody reads the file
            self._system.rm_file(f"{self._root}/{TRIED}")

    def find(self, paths: Iterable[Path]) -> list[str]:
        """Return the addresses of those parts of the stores that are there, and of what is damaged there."""
        return [f"{self.url}/{name}" for name in self._meant(paths)]

    def remove(self, paths: Iterable[Path]) -> None:
        """Delete these parts of the stores there, and what is damaged there.

        Raises:
            MirrorError: the mirror cannot be written.
        """
        for name in self._meant(paths):
            with self._refused("written"):
                self._system.rm_file(f"{self._root}/{name}")
            self._there.discard(name)
            self._damaged.discard(name)

    def _meant(self, paths: Iterable[Path]) -> list[str]:
        return sorted((self._there & {_name(path) for path in paths}) | self._damaged)

    def _list(self, kind: str) -> list[str]:
        try:
            found = self._system.find(f"{self._root}/{kind}")
        except FileNotFoundError:
            return []
        return sorted(path.removeprefix(self._root).lstrip("/") for path in found)

    def _serves(self, folder: str, models: Collection[str] | None) -> bool:
        """Return whether a folder says that it is of one of these models; what it says is fetched, too."""
        from tasks.artifacts.stores import ABOUT, StoreError, read_about

        about, name = CACHE / folder / ABOUT, f"{folder}/{ABOUT}"
        if not about.exists() and name in self._there:
            try:
                self._copy(name, about, read_about)
            except StoreError:
                self._forget(name)
            except MirrorError as error:
                self._pass_over(name, error)
        return models is None or read_about(about).get("model_digest") in models

    def _fetch_part(self, name: str) -> bool:
        """Copy a part; returns whether it was whole."""
        from tasks.artifacts.tables import ArtifactError, provenance

        try:
            self._copy(name, CACHE / name, provenance)
        except ArtifactError:
            self._forget(name)
            return False
        except MirrorError as error:
            self._pass_over(name, error)
            return False
        return True

    def _send_part(self, path: Path) -> bool:
        """Copy a file of the stores there; returns whether nothing stands in its way."""
        name = _name(path)
        try:
            with self._refused("written"):
                self._system.makedirs(f"{self._root}/{_name(path.parent)}", exist_ok=True)
                self._system.put_file(str(path), f"{self._root}/{name}")
        except MirrorError:
            found = self._find_in_way(name)
            if found is None:
                raise
            if found not in self._blocked.values():
                self._say(
                    f"{self.url}/{found} is in the way of what is to be sent; remove it, and a later run sends that"
                )
            self._blocked[name] = found
            return False
        self._there.add(name)
        return True

    def _find_in_way(self, name: str) -> str | None:
        """Return what stands in a file's way there: a folder in its place, or a file in that of a folder above it."""
        if self._system.isdir(f"{self._root}/{name}"):
            return name
        above = [one.as_posix() for one in PurePosixPath(name).parents][:-1]
        return next((one for one in above if self._system.isfile(f"{self._root}/{one}")), None)

    def _forget(self, name: str) -> None:
        """Tell of a damaged file, and take it for one that is not there, so that it is sent anew."""
        self._there.discard(name)
        self._damaged.add(name)
        self._say(f"{self.url}/{name} is damaged and not taken; what it held is computed again")

    def _pass_over(self, name: str, error: MirrorError) -> None:
        """Tell of what cannot be fetched, where it is no file; else raise the error.

        It may be gone since it was listed, as another machine erases a row, or be a link that leads nowhere.
        """
        path = f"{self._root}/{name}"
        with suppress(Exception):
            self._system.invalidate_cache()
            above = [one["name"] for one in self._system.ls(path.rpartition("/")[0], detail=True)]
            if not self._system.isfile(path):
                self._there.discard(name)
                if path in above:
                    self._blocked[name] = name
                found = "is no file; remove it" if path in above else "is gone since it was listed"
                self._say(f"{self.url}/{name} {found}; what it held is computed again")
                return
        raise error

    def _copy(self, name: str, path: Path, check: Callable[[Path], Any]) -> None:
        """Bring a file here, whole or not at all, unless a check of the copy raises."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with self._refused("read"):
                self._system.get_file(f"{self._root}/{name}", str(part))
            check(part)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    @contextmanager
    def _refused(self, done: str) -> Iterator[None]:
        """Let whatever a file system raises name the setting."""
        try:
            yield
        except Exception as error:  # each has its own kinds of errors
            told = f"mirror.url is {self.url}, which cannot be {done} ({type(error).__name__}: {error})"
            raise MirrorError(hide(f"{told}; mend it, or set it to null")) from error


@contextmanager
def mirrored(url: str | None, stage: str, models: Callable[[], Collection[str]], say: Callable) -> Iterator[Through]:
    """Fetch what a stage may find computed, yield what lets a `map` send as it goes, and send the rest.

    Args:
        url: of the mirror; None: there is none.
        stage: that is to run.
        models: returns the digests of the models that are named today.
        say: tells the user a line.

    Raises:
        MirrorError: the mirror cannot be read, or at the end not be written; what was computed stands here.
    """
    kinds = FILLED.get(stage, ())
    if url is None or not kinds:
        yield lambda map: map
        return
    mirror, current = Mirror(url, say=say), models()
    try:
        mirror.try_writing()
    except MirrorError as error:  # which is no failure where all is found computed
        say(f"{error}; what is computed stands here, and cannot be sent")
    fetched = mirror.fetch(kinds, current)
    if fetched:
        say(f"{len(fetched):,} parts of stores came from {mirror.url}")
    send = partial(mirror.send, kinds, current)
    try:
        yield partial(_sending, send, say)
    except Exception:
        _send_or_tell(send, say)
        raise
    send()


def _sending(send: Callable[[], int], say: Callable[[str], None], map: Map) -> Map:
    """Return a `map` that sends what is new between shards; where that fails, it says so and goes on."""

    def run(function: Callable[[T], Any], items: Sequence[T], **more: Any) -> Iterator[Any]:
        last = time.monotonic()
        for result in map(function, items, **more):
            yield result
            if time.monotonic() - last >= PAUSE:
                _send_or_tell(send, say)
                last = time.monotonic()

    return run


def _send_or_tell(send: Callable[[], int], say: Callable[[str], None]) -> None:
    try:
        send()
    except MirrorError as error:
        say(f"{error}; what was to be sent stands here, and is sent later")


def _by_folder(names: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield folders of stores with the names of their parts; whatever else lies there is not ours."""
    folders: dict[str, list[str]] = {}
    for name in names:
        if OURS.fullmatch(name):
            folders.setdefault(name.rpartition("/")[0], []).append(name)
    yield from folders.items()


def _list_replaced(folder: Path) -> set[str]:
    """Return the names of the parts that parts of a folder stand for."""
    from tasks.artifacts.stores import check_parts

    return {name for one in check_parts(folder).values() for name in one["parameters"].get("replaces", ())}


def _name(path: Path) -> str:
    """Return the name of a file or folder of the stores in the mirror.

    >>> _name(CACHE / "pairs" / "0f" / "part-1.parquet")
    'pairs/0f/part-1.parquet'
    """
    return path.relative_to(CACHE).as_posix()
