"""The desk's server: on this machine's own address, under its own names, and told of to nobody."""

import importlib.util
import itertools
import socket
import sys
from contextlib import closing

import pytest
from worlds.projects import run_child

from flows import serving_desk


def list_words(monkeypatch, *, browser: bool = False) -> list[str]:
    found = []
    monkeypatch.setattr(serving_desk.os, "execv", lambda program, words: found.extend([program, *words]))
    serving_desk.serve(8600, browser=browser)
    return found


def test_it_listens_on_its_own_address_and_sends_nothing(monkeypatch, capsys):
    words = list_words(monkeypatch)
    given = list(itertools.pairwise(words))
    assert words[:4] == [sys.executable, sys.executable, "-m", "streamlit"]
    for pair in (
        ("--server.address", "127.0.0.1"),
        ("--server.port", "8600"),
        ("--browser.gatherUsageStats", "false"),
        ("--server.allowedHosts", "127.0.0.1"),
        ("--server.allowedHosts", "localhost"),
        ("--server.headless", "true"),
    ):
        assert pair in given
    assert capsys.readouterr().err == "the desk is at http://127.0.0.1:8600; Ctrl-C ends it\n"


def test_the_browser_is_opened_where_that_is_asked_for(monkeypatch):
    words = list_words(monkeypatch, browser=True)
    assert words[words.index("--server.headless") + 1] == "false"


def test_without_streamlit_it_says_what_brings_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(serving_desk.DeskError, match=r"pip install 'tamis\[desk\]'"):
        serving_desk.serve(8600, browser=False)


def test_the_server_answers(real_copy, tmp_path):
    """With every option as it is given: an unknown one ends Streamlit at once."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = f"""
import subprocess, sys, time, urllib.request
server = subprocess.Popen([sys.executable, "-m", "flows.cli", "desk", "--no-browser", "--port", "{port}"])
for _ in range(300):
    try:
        print(urllib.request.urlopen("http://127.0.0.1:{port}/_stcore/health").read().decode())
        break
    except OSError:
        time.sleep(0.1)
server.kill()
"""
    done = run_child([sys.executable, "-c", code], real_copy)
    assert done.stdout.splitlines()[-1] == "ok", done.stderr
