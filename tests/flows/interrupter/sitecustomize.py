"""Send the group of this process what Ctrl-C sends, at an event of Python's audit hooks, or a while after it.

A test puts this folder on PYTHONPATH and sets INTERRUPT_AT=event|text|seconds: the first event of that name with the
text in its arguments. When the signal was sent is written to the file `interrupted` in the folder of the process.
"""

import os
import signal
import sys
import threading
import time

event_name, text, seconds = os.environ.pop("INTERRUPT_AT", "||").split("|")
seen = []


def interrupt():
    with open("interrupted", "w") as file:
        file.write(str(time.time()))
    os.killpg(0, signal.SIGINT)


def watch(event, arguments):
    if event == event_name and not seen and text in " ".join(map(str, arguments)):
        seen.append(arguments)
        if float(seconds):
            timer = threading.Timer(float(seconds), interrupt)
            timer.daemon = True
            timer.start()
        else:
            interrupt()


if event_name:
    sys.addaudithook(watch)
