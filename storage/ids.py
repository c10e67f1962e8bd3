"""Ids: a prefix that names the kind, and 24 hexadecimal digits in the order of time.

A meter's has three more, which say where it lies: see `storage.engine.buckets`. Those of older meters lack them.
"""

import re
import secrets
import time

CUSTOMER = "cus_"
BILLING_METER = "mtr_"
API_KEY = "key_"
LEDGER_ENTRY = "ent_"
CREDIT_GRANT = "grt_"
HOLD = "hld_"

#: What lies in the ledger of a meter: their ids name the meter and a number, so that a lookup reads one partition.
NUMBERED = (LEDGER_ENTRY, CREDIT_GRANT, HOLD)

_ID = re.compile(r"(cus_|key_)[0-9a-f]{24}|mtr_[0-9a-f]{24}([0-9a-f]{3})?", re.ASCII)
_NUMBERED_ID = re.compile(r"([0-9a-f]{24}(?:[0-9a-f]{3})?)_([1-9][0-9]{0,17})", re.ASCII)

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


def bits_of_meter(meter_id: str) -> int | None:
    """Return the bits that a meter's id says, or None where it is from before ids did."""
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
