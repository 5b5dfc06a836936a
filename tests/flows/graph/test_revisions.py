"""What git holds at a revision, read without a checkout."""

import threading
from pathlib import Path

import pytest

from flows.graph import dvc_state, revisions


def test_files_of_git_are_read_without_a_thread_that_could_hang(two_versions, monkeypatch):
    started = []
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda self: (started.append(str(self._target)), start(self))[1])
    with dvc_state.opened() as repo:
        revisions.push(repo, [("v1", "HEAD")])  # DVC itself reads them
        assert "stages:" in revisions.read_file(repo, Path("dvc.yaml"), "HEAD")
    assert [one for one in started if "_write_to_queue" in one] == []


def test_files_and_folders_of_a_revision(two_versions):
    pointer = two_versions.root / "data/raw/inner/rows.jsonl.dvc"
    pointer.parent.mkdir()
    pointer.write_text("outs:\n- path: rows.jsonl\n")
    (pointer.parent / "rows.txt").write_text("no pointer\n")
    (two_versions.root / "versions/notes").mkdir()
    (two_versions.root / "versions/notes/README.md").write_text("a folder without dvc.lock\n")
    two_versions.git("add", "--force", ".")
    two_versions.git("commit", "--quiet", "--message", "pointers")
    with dvc_state.opened() as repo:
        pointers = revisions.list_pointers(repo, Path("data/raw"), "HEAD")
        assert pointers == {"data/raw/inner/rows.jsonl.dvc": pointer.read_text()}
        assert revisions.list_pointers(repo, Path("data/none"), "HEAD") == {}
        assert revisions.list_pointers(repo, Path("data/raw"), "HEAD~1") == {}
        assert revisions.list_versions(repo, "HEAD") == ["v1", "v2"]
        assert revisions.read_file(repo, Path("data/raw"), "HEAD") == ""  # a folder
        assert revisions.read_file(repo, Path("data/raw/none"), "HEAD") == ""
        with pytest.raises(dvc_state.StateError, match=r"^git knows no revision 'none'; "):
            revisions.read_file(repo, Path("dvc.yaml"), "none")
