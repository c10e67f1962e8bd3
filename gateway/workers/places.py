"""Where the buckets of a divided database lie: found out before anything is asked of them, and again and again."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from gateway.workers.background import in_background
from storage.engine.database import Database, DatabaseUnavailable

_log = logging.getLogger(__name__)

#: How long it waits between two looks, in seconds. Until then a bucket that has moved is asked for where it was, which
#: is answered, too, only later.
SECONDS = 10.0

#: How long it waits where the database did not answer, and is not known to be undivided.
RETRY_SECONDS = 0.5

#: For how long a gateway that starts waits for the first answer.
FIRST_SECONDS = 1.0


@asynccontextmanager
async def following_buckets(database: Database) -> AsyncIterator[None]:
    """Know where they lie while the body runs.

    A gateway that took a divided database for a whole one would look for meters where they do not lie. So until the
    database has said what it is, all that is about meters is answered `UNAVAILABLE`.
    """
    if database.dialect == "sqlite":
        yield
        return
    database.forget_buckets()
    is_known = asyncio.Event()
    async with in_background(_follow(database, is_known)):
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_SECONDS):
                await is_known.wait()
        yield


async def _follow(database: Database, is_known: asyncio.Event) -> None:
    while True:
        if await _find(database):
            is_known.set()
        if is_known.is_set() and database.buckets.is_one:
            return
        await asyncio.sleep(SECONDS if is_known.is_set() else RETRY_SECONDS)


async def _find(database: Database) -> bool:
    """Return whether it was found out."""
    try:
        await database.find_buckets()
    except DatabaseUnavailable:
        return False
    except Exception:  # noqa: BLE001  # Whatever it is, it must not end the task, nor keep the gateway from starting.
        _log.exception("Where the buckets lie cannot be found out; it is tried again")
        return False
    return True
