"""What the tests of Citus stand on."""

from collections.abc import AsyncIterator

import pytest

from tests.citus.cluster import drop_database, new_database


@pytest.fixture
async def url() -> AsyncIterator[str]:
    """The URL of a new database on all machines, which has no tables."""
    made = await new_database()
    yield made
    await drop_database(made)
