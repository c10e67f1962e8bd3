"""Ids: a prefix that names the kind, and 24 hexadecimal digits in the order of time."""

import re
import secrets
import time

CUSTOMER = "cus_"
BILLING_METER = "mtr_"
API_KEY = "key_"
LEDGER_ENTRY = "ent_"

_ID = re.compile(r"(cus_|mtr_|key_)[0-9a-f]{24}", re.ASCII)
_ENTRY_ID = re.compile(r"ent_([0-9a-f]{24})_([1-9][0-9]{0,17})", re.ASCII)

_last = 0


def new_id(prefix: str) -> str:
    """Return a new id: 48 bits of the time in milliseconds, then 48 random ones.

    In one process each is greater than the last.
    """
    global _last  # noqa: PLW0603  # The last id of this process, so that rows made in one millisecond keep their order.
    _last = max(_last + 1, (time.time_ns() // 1_000_000) << 48 | secrets.randbits(48))
    return f"{prefix}{_last:024x}"


def is_id(value: str, prefix: str) -> bool:
    """Whether the text has the form of an id of this kind; if not, it names nothing and need not be looked up."""
    return value.startswith(prefix) and _ID.fullmatch(value) is not None


def entry_id(meter_id: str, seq: int) -> str:
    """Return the id of a ledger entry, which names its meter, so that a lookup reads one partition."""
    return f"{LEDGER_ENTRY}{meter_id.removeprefix(BILLING_METER)}_{seq}"


def parse_entry_id(value: str) -> tuple[str, int] | None:
    """Return the meter's id and the entry's `seq` that the id of a ledger entry names, or None."""
    match = _ENTRY_ID.fullmatch(value)
    return (BILLING_METER + match[1], int(match[2])) if match else None
