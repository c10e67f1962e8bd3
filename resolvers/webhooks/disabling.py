"""Disabling endpoints: what becomes of what is pending for them."""

from functools import partial

from storage.engine.database import Database
from storage.engine.transactions import Writer
from storage.meters import webhook_deliveries

#: Why an endpoint is disabled: for people.
BY_REQUEST = "It was disabled by a request."
GONE = "It answered 410 Gone."
FAILING = "For 5 days every attempt has failed."


async def fail_pending(database: Database, endpoint_id: str) -> None:
    """Fail what is pending for an endpoint that is disabled."""
    for bucket in database.buckets.values:
        work = partial(_fail, endpoint_id=endpoint_id)
        await database.write(work, bucket=bucket, is_repeatable=True)


async def _fail(writer: Writer, *, endpoint_id: str) -> None:
    await webhook_deliveries.fail_pending_of(writer, endpoint_id)
