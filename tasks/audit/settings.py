"""Settings of the stage `audit`."""

from pydantic import Field

from tasks.settings import Share, checked


@checked
class AuditSettings:
    """Which promises are checked."""

    held_out_share: Share = Field(description="topics whose held-out share is lower are named")
