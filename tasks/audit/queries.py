"""The checks of checks/, each a file: a line that says what it promises or shows, and a query for what it finds."""

from dataclasses import dataclass
from pathlib import Path

CHECKS = Path(__file__).with_name("checks")
PROVENANCE = "Every artifact says what it was made from, and that is there as it was."  # the one that is no query


@dataclass(frozen=True)
class Query:
    """A check before it is run."""

    name: str
    promise: bool
    says: str
    sql: str


def read_queries() -> list[Query]:
    """Return the checks of checks/, promises first, by name."""
    found = []
    for path in sorted(CHECKS.glob("*.sql")):
        first, _, sql = path.read_text(encoding="utf-8").partition("\n")
        kind, _, says = first.removeprefix("-- ").partition(": ")
        found.append(Query(path.stem, kind == "promise", says, sql))
    return sorted(found, key=lambda one: not one.promise)
