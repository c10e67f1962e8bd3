"""Recording usage: from a caller's values to a decided, committed event."""

from typing import Any

from resolvers.context import Context
from resolvers.errors import Refusal
from resolvers.usage import UsageOutcome, usage_event


async def record_usage(context: Context, **values: Any) -> UsageOutcome:
    """Record one usage event, whose values are those of `usage_event`, and return the result once it is committed.

    Raises what `usage_event` and `decide` raise, `BillingMeterNotFound`, and `Unavailable`.
    """
    (result,) = await context.usage_writer.record([usage_event(context.actor, **values)])
    context.loaders.clear()
    if isinstance(result, Refusal):
        raise result
    return result
