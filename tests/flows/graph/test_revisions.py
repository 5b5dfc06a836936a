"""What git holds at a revision, read without a checkout."""

import threading
from pathlib import Path

from flows.graph import dvc_state, revisions


def test_files_of_git_are_read_without_a_thread_that_could_hang(two_versions, monkeypatch):
    started = []
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda self: (started.append(str(self._target)), start(self))[1])
    with dvc_state.opened() as repo:
        assert "stages:" in revisions.read_file(repo, Path("dvc.yaml"), "HEAD")
        with repo.switch("HEAD"):  # as DVC itself reads them
            assert repo.stage.load_all("dvc.yaml")
    assert [one for one in started if "_write_to_queue" in one] == []
