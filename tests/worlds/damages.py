"""What can become of a small file: cut short, written over, edited, or a folder or a link put in its place."""

from pathlib import Path

FOLDER = "a folder in its place"
LINK = "a link that leads nowhere"
DAMAGES: dict[str, bytes] = {
    "empty": b"",
    "cut short": b'{"seconds": 1.5, "not',
    "bytes that are no text": b"\xff\xfe\x00\xfa",
    "a list": b"[1, 2]",
    "another object": b'{"something": "else"}',
    "nested too deep": b"[" * 100_000,
}
ALL = (*DAMAGES, FOLDER)
IN_PLACE = (FOLDER, LINK)  # of a file that is only there to be locked, these alone are damage


def damage(path: Path, how: str) -> None:
    """Let a file be damaged in a way of `ALL` or `IN_PLACE`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if how == FOLDER:
        path.mkdir()
    elif how == LINK:
        path.symlink_to("gone/away")
    else:
        path.write_bytes(DAMAGES[how])
