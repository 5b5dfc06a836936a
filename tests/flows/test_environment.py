"""What other packages are kept from writing on a user's screen."""

import asyncio

import pytest
from prefect.logging.handlers import APILogWorker

import flows  # noqa: F401  it sets the environment


class Refusing:
    """A client whose server takes nothing."""

    async def request(self, *_, **__):
        raise ConnectionError("database is locked")


def test_a_log_line_that_the_server_did_not_take_is_no_talk(capsys: pytest.CaptureFixture):
    worker = APILogWorker.__new__(APILogWorker)
    worker._client = Refusing()
    asyncio.run(worker._handle_batch([b"{}"]))
    assert capsys.readouterr() == ("", "")
