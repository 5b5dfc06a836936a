"""What a stage says of its products and of the rows that it read, in a line or two, on whichever way it was run."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

SHOWN = 3  # names in a line
NOT_ROUNDED = (
    "models.matmul: bf16 rounds no product here: the device has no matrix units for it that PyTorch uses; what is "
    "computed is float32, and valid"
)
SPLIT = "several sequences, as the template writes turns otherwise once others follow"


def tell_outdated(versions: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each version that is read of as it was recorded, though it is not up to date.

    >>> list(tell_outdated({"v1": "utility@v1: changed"}))
    ['v1 is taken as recorded; it is not up to date (utility@v1: changed), and `tamis run v1` makes it anew']
    """
    for version, why in versions.items():
        yield f"{version} is taken as recorded; it is not up to date ({why}), and `tamis run {version}` makes it anew"


def tell_notes(version: str, notes: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines about products and raw rows, from what a stage said of its run; none where there is nothing to say.

    >>> list(tell_notes("v1", {"rows_read": 35, "rows_rejected": 3, "not_read": ["a.txt", "b.md"]}))
    ["35 rows read, 3 rejected (tamis sql 'FROM rejects'), 2 files not read: a.txt, b.md"]
    >>> list(tell_notes("v1", {"pairs": 7, "matmul_rounds": True}))
    []
    """
    if notes.get("matmul_rounds") is False:
        yield NOT_ROUNDED
    if notes.get("halved"):
        yield f"memory was short: {', '.join(map(tell_halving, notes['halved']))}; results differ by rounding alone"
    if "rows_read" not in notes:
        return
    rejected, unread = notes["rows_rejected"], notes["not_read"]
    told = [f"{count(notes['rows_read'], 'row')} read"]
    told.append(f"{rejected:,} rejected" + (" (tamis sql 'FROM rejects')" if rejected else ""))
    if notes.get("rows_erased"):
        told.append(tell_erased(notes["rows_erased"]))
    if unread:
        told.append(f"{count(len(unread), 'file')} not read: {_list(unread)}")
    yield ", ".join(told)
    others = [f"{note} ({count(rows, 'row')})" for note, rows in notes.get("notes", {}).items()]
    if notes.get("rows_split"):
        others.append(f"{SPLIT} ({count(notes['rows_split'], 'row')})")
    if others:
        yield f"of these rows: {'; '.join(others)}"
    if notes.get("files_moved"):
        yield tell_moved(version, notes["files_moved"])


def tell_erased(rows: int) -> str:
    """Return in words how many rows were left out as erased.

    >>> tell_erased(1)
    '1 erased (data/erased.json)'
    """
    return f"{rows:,} erased (data/erased.json)"


def tell_halving(halving: Mapping[str, Any]) -> str:
    """Return in words what was halved.

    >>> tell_halving({"what": "pack_tokens", "asked": 2048, "used": 512})
    'pack_tokens 512 in place of 2,048'
    """
    return f"{halving['what']} {halving['used']:,} in place of {halving['asked']:,}"


def tell_moved(version: str, moved: Sequence[str]) -> str:
    """Return in a line which raw files are not what they were when their version was added.

    >>> tell_moved("v2", ["a.jsonl has changed", "b.jsonl is gone"])
    '2 raw files of v2 are not as they were when v2 was added: a.jsonl has changed, b.jsonl is gone'
    >>> tell_moved("v2", ["a.jsonl has changed"])
    '1 raw file of v2 is not as it was when v2 was added: a.jsonl has changed'
    """
    as_before = "is not as it was" if len(moved) == 1 else "are not as they were"
    return f"{count(len(moved), 'raw file')} of {version} {as_before} when {version} was added: {_list(moved)}"


def _list(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def count(number: int, name: str) -> str:
    """Return a number of things in words.

    >>> count(1200, "row"), count(1, "file")
    ('1,200 rows', '1 file')
    """
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def hide(url: str) -> str:
    """Return an address without the name and password in it.

    >>> hide("s3://key:secret@bucket/in"), hide("/data/in")
    ('s3://***@bucket/in', '/data/in')
    """
    return re.sub(r"//[^/@]+@", "//***@", url)


def distinct(names: Sequence[str]) -> list[str]:
    """Return names of columns, each once.

    >>> distinct(["a", "b", "a"])
    ['a', 'b', 'a_2']
    """
    found: list[str] = []
    for name in names:
        number, once = 2, name
        while once in found:
            once, number = f"{name}_{number}", number + 1
        found.append(once)
    return found
