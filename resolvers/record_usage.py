"""Recording usage: from a caller's values to decided, committed events."""

from collections.abc import Mapping, Sequence
from typing import Any

from resolvers.context import Context
from resolvers.errors import BadUserInput, InvalidInput, LimitExceeded, Refusal
from resolvers.usage import UsageEvent, UsageOutcome, usage_event


async def record_usage(context: Context, **values: Any) -> UsageOutcome:
    """Record one usage event, whose values are those of `usage_event`, and return the result once it is committed.

    Raises what `usage_event` and `decide` raise, `BillingMeterNotFound`, and `Unavailable`.
    """
    (result,) = await context.usage_writer.record([usage_event(context.actor, **values)])
    context.forget()
    if isinstance(result, Refusal):
        raise result
    return result


async def record_usage_batch(
    context: Context, items: Sequence[Mapping[str, Any] | InvalidInput]
) -> list[UsageOutcome | Refusal]:
    """Record events in one transaction, in their order, and return the result of each: a refused one leaves the others.

    The values of each item are those of `usage_event`, or it is what was wrong with them before; the field of an
    `InvalidInput` begins with the item's number.

    Raises `BadUserInput` for an empty batch, `LimitExceeded` for more items than the context's bounds, `Forbidden` when
    any item is not permitted, and `Unavailable`; then nothing is written.
    """
    if not items:
        raise BadUserInput("input must have at least 1 item.")
    most = context.bounds.batch_events
    if len(items) > most:
        raise LimitExceeded(f"input must have at most {most} items; it has {len(items)}.")
    checked = [_checked(context, values) for values in items]
    events = [event for event in checked if isinstance(event, UsageEvent)]
    recorded = iter(await context.usage_writer.record(events) if events else [])
    context.forget()
    results = [next(recorded) if isinstance(event, UsageEvent) else event for event in checked]
    for place, result in enumerate(results):
        if isinstance(result, InvalidInput):
            result.field = f"{place}.{result.field}"
    return results


def _checked(context: Context, values: Mapping[str, Any] | InvalidInput) -> UsageEvent | InvalidInput:
    if isinstance(values, InvalidInput):
        return values
    try:
        return usage_event(context.actor, **values)
    except InvalidInput as refusal:
        # As in a group: its traceback would keep the whole batch in memory.
        return refusal.with_traceback(None)
