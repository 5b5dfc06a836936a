"""Coverage-guided fuzzing of the reader of JSON Lines: `python -m worlds.fuzz_lines -runs=20000`, with atheris.

Ends with status 0 when so many inputs were read or refused, and with a traceback at the first that was neither.
"""

import sys


def main() -> None:
    """Instrument the reader, which must not be imported before, and fuzz it."""
    import atheris  # not among what a set-up installs

    with atheris.instrument_imports(include=["tasks.examples", "tamis.examples"]):
        from test_fuzz import LINES, check

    def fuzz(data: bytes) -> None:
        """Read what the fuzzer made up, alone and between good lines."""
        check("rows.jsonl", data)
        check("rows.jsonl", LINES + data + b"\n" + LINES)

    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
