"""The sweeper: it has what is due of meters written that no command touches.

It decides nothing: an expiry is exact without it, and readers see it at once. Its commands only write it, so that the
ledger, and what hangs on it, has it within some seconds.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from gateway.services import Services
from resolvers.errors import Unavailable
from resolvers.meters.booking import Settle
from storage import billing_meters
from storage.engine.database import DatabaseUnavailable

if TYPE_CHECKING:
    from storage.billing_meters import MeterName

_log = logging.getLogger(__name__)

#: How long it waits between two looks, in seconds.
SECONDS = 2.0

#: How many meters it looks for at once, and how many of them one transaction settles.
METERS_AT_ONCE = 10_000
METERS_IN_GROUP = 200


@asynccontextmanager
async def sweeping(services: Services) -> AsyncIterator[None]:
    """Sweep while the body runs."""
    task = asyncio.create_task(_sweep_again_and_again(services))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _sweep_again_and_again(services: Services) -> None:
    while True:
        await asyncio.sleep(SECONDS)
        try:
            while await sweep(services) == METERS_AT_ONCE:
                pass
        except (DatabaseUnavailable, Unavailable):
            # It has been reported, and is tried again.
            continue
        except Exception:  # noqa: BLE001  # Whatever it is, what is due later is to be written.
            _log.exception("The sweeper failed; it goes on")


async def sweep(services: Services) -> int:
    """Have what is due written of some meters, and return of how many. Raises `Unavailable`."""
    async with services.database.read() as reader:
        due = await billing_meters.due(reader, services.clock(), limit=METERS_AT_ONCE)
    of_organization: dict[str, list[MeterName]] = defaultdict(list)
    for name in due:
        of_organization[name.org_id].append(name)
    for names in of_organization.values():
        for first in range(0, len(names), METERS_IN_GROUP):
            # One group after the other, so that debits come in between.
            await services.meter_writer.submit([Settle(name) for name in names[first : first + METERS_IN_GROUP]])
    return len(due)
