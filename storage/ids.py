"""Ids: a prefix that names the kind, and 24 hexadecimal digits in the order of time.

A meter's has three more, which say where it lies: see `storage.engine.buckets`. Those of older meters lack them.
"""

import re
import secrets
import time
from datetime import UTC, datetime, timedelta

CUSTOMER = "cus_"
BILLING_METER = "mtr_"
API_KEY = "key_"
LEDGER_ENTRY = "ent_"
CREDIT_GRANT = "grt_"
HOLD = "hld_"
EVENT = "evt_"
ALERT = "alr_"
AUTO_REFILL_REQUEST = "arr_"
WEBHOOK_ENDPOINT = "whe_"
WEBHOOK_DELIVERY = "whd_"

#: What an event's place among all of its tenant begins with, which is no id, but a cursor.
EVENT_POSITION = "evp_"

#: What lies in the ledger of a meter: their ids name the meter and a number, so that a lookup reads one partition.
NUMBERED = (LEDGER_ENTRY, CREDIT_GRANT, HOLD, AUTO_REFILL_REQUEST)

_ID = re.compile(
    r"(cus_|key_|alr_|whe_)[0-9a-f]{24}|(mtr_|whd_)[0-9a-f]{24}([0-9a-f]{3})?|evp_[0-9a-f]{48}([0-9a-f]{3})?", re.ASCII
)
_NUMBERED_ID = re.compile(r"([0-9a-f]{24}(?:[0-9a-f]{3})?)_([1-9][0-9]{0,17})", re.ASCII)

#: What stands in an event's id before the digits of an endpoint, whose own it is; a meter's have nothing.
_OF_ENDPOINT = "w"

_last = 0


def new_id(prefix: str) -> str:
    """Return a new id: 48 bits of the time in milliseconds, then 48 random ones.

    In one process each is greater than the last.
    """
    global _last  # noqa: PLW0603  # The last id of this process, so that rows made in one millisecond keep their order.
    _last = max(_last + 1, (time.time_ns() // 1_000_000) << 48 | secrets.randbits(48))
    return f"{prefix}{_last:024x}"


def new_meter_id(bits: int) -> str:
    """Return a new id of a meter whose names have these bits."""
    return f"{new_id(BILLING_METER)}{bits:03x}"


def new_delivery_id(bits: int | None) -> str:
    """Return a new id of a webhook delivery, which lies where what has these bits lies; None: they are not known."""
    return new_id(WEBHOOK_DELIVERY) + ("" if bits is None else f"{bits:03x}")


def bits_of_meter(meter_id: str) -> int | None:
    """Return the bits that the id of a meter or a delivery says, or None where it is from before meters' ids did."""
    digits = meter_id[len(BILLING_METER) + 24 :]
    return int(digits, 16) if digits else None


def is_id(value: str, prefix: str) -> bool:
    """Whether the text has the form of an id of this kind; if not, it names nothing and need not be looked up."""
    return value.startswith(prefix) and _ID.fullmatch(value) is not None


def numbered_id(prefix: str, meter_id: str, seq: int) -> str:
    """Return the id of what has this number in the ledger of a meter."""
    return f"{prefix}{meter_id.removeprefix(BILLING_METER)}_{seq}"


def parse_numbered_id(value: str, prefix: str) -> tuple[str, int] | None:
    """Return the meter's id and the `seq` that the id of a ledger entry, a grant or a hold names, or None."""
    match = _NUMBERED_ID.fullmatch(value, len(prefix)) if value.startswith(prefix) else None
    return (BILLING_METER + match[1], int(match[2])) if match else None


def event_id(owner_id: str, number: int) -> str:
    """Return the id of the event of this number of a meter, or of a webhook endpoint."""
    if owner_id.startswith(WEBHOOK_ENDPOINT):
        return f"{EVENT}{_OF_ENDPOINT}{owner_id.removeprefix(WEBHOOK_ENDPOINT)}_{number}"
    return numbered_id(EVENT, owner_id, number)


def parse_event_id(value: str) -> tuple[str, int] | None:
    """Return the owner's id and the number that the id of an event names, or None."""
    prefix = EVENT + _OF_ENDPOINT
    if not value.startswith(prefix):
        return parse_numbered_id(value, EVENT)
    place = parse_numbered_id(value, prefix)
    return (WEBHOOK_ENDPOINT + place[0].removeprefix(BILLING_METER), place[1]) if place else None


def event_position(created_at: datetime, owner_id: str, number: int) -> str:
    """Return the event's place among all of its tenant: by its time, and of one time by its number."""
    microseconds = (created_at - _EPOCH) // timedelta(microseconds=1)
    return f"{EVENT_POSITION}{max(0, microseconds):014x}{number:010x}{owner_id[4:]}"


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
