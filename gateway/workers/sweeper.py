"""The sweeper: it has what is due of meters written that no command touches.

It decides nothing: an expiry is exact without it, and readers see it at once. Its commands only write it, so that the
ledger, and what hangs on it, has it within some seconds.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

from gateway.services import Services
from gateway.workers.background import in_background
from resolvers.errors import Unavailable
from resolvers.rules.booking import OVERDUE, Settle
from storage.engine.database import DatabaseUnavailable, LockTimeout
from storage.meters import billing_meters
from storage.meters.billing_meters import MeterName

_log = logging.getLogger(__name__)

#: How long it waits between two looks, in seconds.
SECONDS = 2.0

#: How many meters it looks for at once.
METERS_AT_ONCE = 10_000

#: How many of them are being settled at any time. The writer has them in its groups beside the commands of callers,
#: whose wait for a group they may not make much longer.
SETTLED_AT_ONCE = 160


@asynccontextmanager
async def sweeping(services: Services) -> AsyncIterator[None]:
    """Sweep while the body runs."""
    async with in_background(_sweep_again_and_again(services)):
        yield


async def _sweep_again_and_again(services: Services) -> None:
    while True:
        await asyncio.sleep(SECONDS)
        try:
            while await sweep(services) == METERS_AT_ONCE:
                pass
        except DatabaseUnavailable:
            # It has been reported, and is tried again.
            continue
        except Exception:  # noqa: BLE001  # A failure must not end the sweeper.
            _log.exception("The sweeper failed; it goes on")


async def sweep(services: Services) -> int:
    """Have what is due written of some meters, and return of how many it was. Raises `DatabaseUnavailable`."""
    now = services.clock()
    async with services.database.read() as reader:
        services.overdue_meters = len(await billing_meters.due(reader, now - OVERDUE, limit=METERS_AT_ONCE))
        due = await billing_meters.due(reader, now, limit=METERS_AT_ONCE)
    names = iter(due)
    return sum(await asyncio.gather(*[_settle(services, names) for _ in range(min(len(due), SETTLED_AT_ONCE))]))


async def _settle(services: Services, names: Iterator[MeterName]) -> int:
    """Settle one meter after the other, and return how many were settled.

    Each is a submission of its own: one that is locked, or that cannot be decided, holds up no other one.
    """
    settled = 0
    for name in names:
        try:
            await services.meter_writer.submit([Settle(name)])
        except Unavailable as error:
            # It has been reported. Where the meter was locked for all that time, the next one need not be.
            if not isinstance(error.__cause__, LockTimeout):
                break
        except Exception:  # noqa: BLE001  # A fault of one meter must not stop the others.
            _log.exception("What is due of a meter cannot be written")
        else:
            settled += 1
    return settled
