"""Who is blamed for a deprecation: lines of ours always, foreign packages with --latest unless they are listed."""

import re
import warnings
from threading import Thread
from types import SimpleNamespace

import deprecations
import pytest
from deprecations import take_found

OLD = """
import logging, warnings
def stale(): warnings.warn("stale() is deprecated", FutureWarning, stacklevel=1)
def noted(): logging.getLogger("old").warning("noted() is deprecated")
def told(): warnings.warn("look out", RuntimeWarning)
"""
BETWEEN = "def use(name): return getattr(OLD, name)()"


def plant(name: str, text: str, **names) -> SimpleNamespace:
    """Return a module that seems to be installed."""
    space = {"__name__": name, **names}
    exec(compile(text, f"/planted/site-packages/{name}.py", "exec"), space)
    return SimpleNamespace(**space)


old = plant("old", OLD)
between = plant("between", BETWEEN, OLD=old)


@pytest.fixture
def latest():
    """Judge as under --latest; pytest undoes it after the test."""
    deprecations.watch(SimpleNamespace(getoption=lambda name: True))


def list_only(monkeypatch, **entry: str) -> None:
    monkeypatch.setattr(deprecations, "read_list", lambda: [entry])


@pytest.mark.parametrize("name", ["stale", "noted"])
def test_a_deprecation_that_our_line_causes_is_found_whatever_its_stacklevel(name):
    getattr(old, name)()
    found = take_found()
    assert found.startswith(f"{name}() is deprecated [warned by old, caused at ")
    assert re.search(r"test_deprecations.py:\d+; mend this line\]$", found)


def test_our_own_deprecation_is_found():
    warnings.warn("we ourselves", DeprecationWarning, stacklevel=1)
    assert "warned by ours" in take_found()


def test_our_callback_is_ours_though_a_foreign_package_calls_it():
    plant("caller", "def run(call): return call()").run(lambda: old.stale())
    assert "mend this line" in take_found()


def test_a_wrapper_on_the_way_is_not_blamed():
    plant("torch.utils._contextlib", "def run(call): return call()").run(old.stale)
    assert "mend this line" in take_found()


def test_what_a_thread_warns_of_is_found():
    thread = Thread(target=lambda: old.stale())
    thread.start()
    thread.join()
    assert "mend this line" in take_found()


def test_a_test_fails_for_what_was_found():
    old.stale()
    with pytest.raises(pytest.fail.Exception, match="mend this line"):
        deprecations.fail_found()


@pytest.mark.parametrize("name", ["stale", "noted"])
def test_a_foreign_deprecation_passes_under_the_lock(name, request):
    if request.config.getoption("latest"):
        pytest.skip("the latest packages are judged otherwise")
    between.use(name)
    assert take_found() == ""


def test_a_foreign_deprecation_that_is_not_listed_is_found_with_the_latest_packages(latest):
    between.use("stale")
    assert re.search(r"caused by between at /planted.*; list it in foreign_deprecations.toml", take_found())


def test_a_listed_one_passes_with_the_latest_packages(latest, monkeypatch):
    list_only(monkeypatch, source="old", cause="between", message="stale() is")
    between.use("stale")
    assert take_found() == ""


@pytest.mark.parametrize("other", [{"source": "new"}, {"cause": "pytest"}, {"message": "noted() is"}])
def test_an_entry_of_another_source_cause_or_message_does_not_cover_it(latest, monkeypatch, other):
    list_only(monkeypatch, **({"source": "old", "cause": "between", "message": "stale() is"} | other))
    between.use("stale")
    assert "list it" in take_found()


def test_a_listed_one_is_found_all_the_same_where_our_line_causes_it(latest, monkeypatch):
    list_only(monkeypatch, source="old", cause="ours", message="stale() is")
    old.stale()
    assert "mend this line" in take_found()


def test_a_line_that_calls_compiled_code_is_the_cause_and_not_its_caller(monkeypatch):
    frames = []
    caller = plant("caller", "def look(see): return see()", see=None)
    monkeypatch.setattr(deprecations, "MACHINERY", {*deprecations.MACHINERY, __name__})
    caller.look(lambda: frames.append(deprecations.find_blame(deprecations.sys._getframe())))
    assert (frames[0].source, frames[0].cause) == ("python", "caller")


def test_other_warnings_are_errors_as_ever():
    with pytest.raises(RuntimeWarning, match="look out"):
        old.told()


def test_every_entry_of_the_list_says_who_at_which_version_and_where_it_is_followed():
    for entry in deprecations.read_list():
        assert set(entry) == {"source", "cause", "version", "message", "link"}
        assert entry["link"].startswith("https://")
