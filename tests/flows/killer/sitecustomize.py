"""Kill this process, and the group that it was started in, at the n-th renaming of a file to a path with some text.

A test puts this folder on PYTHONPATH and sets KILL_AT=text:n. The audit hook runs before the rename: n - 1 files stand.
"""

import os
import signal
import sys

text, _, limit = os.environ.get("KILL_AT", "").rpartition(":")
seen = []


def watch(event, arguments):
    if event == "os.rename" and text in str(arguments[1]):
        seen.append(arguments[1])
        if len(seen) == int(limit):
            os.killpg(0, signal.SIGKILL)


if text:
    sys.addaudithook(watch)
