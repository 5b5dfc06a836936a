"""What other packages are kept from writing on a user's screen, and what a machine is known by."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect.logging.handlers import APILogWorker

from flows import environment


class Refusing:
    """A client whose server takes nothing."""

    async def request(self, *_, **__):
        raise ConnectionError("database is locked")


def test_a_log_line_that_the_server_did_not_take_is_no_talk(capsys: pytest.CaptureFixture):
    worker = APILogWorker.__new__(APILogWorker)
    worker._client = Refusing()
    asyncio.run(worker._handle_batch([b"{}"]))
    assert capsys.readouterr() == ("", "")


CPUINFO = """processor\t: 0
vendor_id\t: {vendor}
cpu family\t: 6
model name\t: {model}
cpu MHz\t\t: {speed}
flags\t\t: fpu avx2
"""


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return the name of a machine whose processor is told of in some words."""
    monkeypatch.setattr(environment, "CPUINFO", tmp_path / "cpuinfo")

    def name(vendor="GenuineIntel", model="Xeon", speed="2100.0"):
        environment.CPUINFO.write_text(CPUINFO.format(vendor=vendor, model=model, speed=speed))
        return environment.name_machine()

    return name


def test_a_host_name_on_another_processor_is_another_machine(told: Callable[..., str]):
    assert told(vendor="AuthenticAMD", model="EPYC") != told()


def test_a_processor_that_clocks_otherwise_at_the_moment_is_the_same_machine(told: Callable[..., str]):
    assert told(speed="3400.5") == told()


def test_a_machine_that_tells_no_processor_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(environment, "CPUINFO", tmp_path / "missing")
    assert len(environment.name_machine()) == 8
