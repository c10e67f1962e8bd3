"""Knowing the alerts of workspaces: what other gateways make is read again and again, off the path of commands."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.services import Services
from gateway.workers.background import in_background
from storage.engine.database import DatabaseUnavailable

_log = logging.getLogger(__name__)

#: How long it waits between two looks, in seconds: what is made elsewhere is known here within five.
SECONDS = 2.0


@asynccontextmanager
async def following_alerts(services: Services) -> AsyncIterator[None]:
    """Know the alerts of workspaces while the body runs."""
    async with in_background(_follow(services)):
        yield


async def _follow(services: Services) -> None:
    while True:
        try:
            await follow(services)
        except DatabaseUnavailable:
            pass  # It has been reported, and is tried again.
        except Exception:  # noqa: BLE001  # A failure must not end the task.
            _log.exception("The alerts of workspaces cannot be read; it is tried again")
        await asyncio.sleep(SECONDS)


async def follow(services: Services) -> None:
    """Read what was made since the last time. Raises `DatabaseUnavailable`."""
    async with services.database.read() as reader:
        await services.meter_writer.alerts_of_workspaces.refresh(reader)
