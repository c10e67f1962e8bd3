"""What counts as a well-formed value: amounts, times, days, names, emails, zones and metadata.

The `parse_` functions read what arrives on the wire and raise `ValueError` with a message for the caller. The `check_`
functions hold a value of a named field against its rule and raise `InvalidInput`.
"""

import json
import math
import re
from collections.abc import Sequence
from datetime import UTC, date, datetime
from functools import cache
from importlib.resources import files
from typing import Any
from unicodedata import is_normalized
from zoneinfo import ZoneInfo

import orjson

from resolvers.errors import InvalidInput

#: The greatest amount of credits: what a signed 64-bit integer holds.
MAX_AMOUNT = 2**63 - 1

#: The greatest integer up to which a JSON number means the same to every client: many read numbers as doubles and round
#: what is beyond (RFC 8259, section 6).
MAX_EXACT = 2**53 - 1

#: An organization's name and a meter's two stand in one index, whose rows PostgreSQL bounds to 2,704 bytes.
ORG_LENGTH = 64
NAME_LENGTH = 256
KEY_LENGTH = 255
USAGE_NAME_LENGTH = 128
REASON_LENGTH = 500

#: The most that a metadata object may take as compact JSON, in bytes.
METADATA_BYTES = 16 * 1024

#: The most objects and lists within each other in metadata: an answer holds it within some levels of its own.
METADATA_LEVELS = 100

#: The maximum of a time's decimals; those beyond microseconds are cut off.
MAX_DECIMALS = 30

#: The most digits of an amount.
_MAX_DIGITS = 19
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_INSTANT = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2})"
    rf"(\.[0-9]{{1,{MAX_DECIMALS}}})?([Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])",
    re.ASCII,
)
_TO_ZEROS = bytes.maketrans(b"123456789", b"000000000")

#: Text that shows nothing: white space, what Unicode calls default ignorable, and the blank of Braille.
_BLANK = re.compile(
    r"[\s\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164"
    r"\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]+"
)
_REFUSED_CHARACTERS = re.compile("[\x00\ud800-\udfff]")


def parse_json(text: bytes | str) -> Any:
    """Return the JSON value, with integers of any length kept exactly.

    Raises `ValueError` for what is no JSON in UTF-8, a lone surrogate, a number beyond every double, or deep nesting.
    """
    try:
        value = orjson.loads(text)
    except ValueError as error:
        raise ValueError(_not_utf_8(text) or str(error)) from None
    if b"0" * 19 in (text.encode() if isinstance(text, str) else text).translate(_TO_ZEROS):
        # orjson makes a rounded float of an integer that 64 bits do not hold.
        try:
            return json.loads(text)
        except RecursionError:
            raise ValueError("depth limit exceeded") from None
    return value


def _not_utf_8(text: bytes | str) -> str | None:
    """Return where the text stops being UTF-8, if it does."""
    if isinstance(text, bytes):
        try:
            text.decode()
        except UnicodeDecodeError as error:
            return f"byte {error.start + 1} of it, 0x{text[error.start]:02X}, is not."
    return None


def parse_amount(value: object) -> int:
    """Return the amount that a string of ASCII digits or an integer stands for.

    Raises `ValueError` for anything else: signs, fractions, exponents, booleans, other scripts' digits, more than 2**63
    - 1.
    """
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _MAX_DIGITS:
        amount = int(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        amount = value
    else:
        amount = -1
    if not 0 <= amount <= MAX_AMOUNT:
        raise ValueError(
            f"An amount is a whole number from 0 to {MAX_AMOUNT}, as an integer or a string of ASCII digits."
        )
    return amount


def parse_sent_amount(value: object) -> int:
    """Return the amount of a JSON value, where a great number may have been another one before a program wrote it.

    Raises `ValueError` as `parse_amount` does, and for a number greater than `MAX_EXACT`.
    """
    amount = parse_amount(value)
    if amount > MAX_EXACT and not isinstance(value, str):
        raise ValueError(
            f"An amount greater than {MAX_EXACT} must be a string of digits, "
            "as many clients round a JSON number so great."
        )
    return amount


def parse_day(value: object) -> date:
    """Return the day that a string `YYYY-MM-DD` stands for. Raises `ValueError` for anything else."""
    if isinstance(value, str) and _DAY.fullmatch(value):
        try:
            return date.fromisoformat(value)
        except ValueError:
            pass  # The message below says more than the library's.
    raise ValueError("A date is a day of the calendar, written YYYY-MM-DD.")


def parse_instant(value: object) -> datetime:
    """Return, in UTC, the moment that an RFC 3339 string with an offset and at most 30 decimals stands for.

    It is cut to microseconds, and never rounded, so that a repeated request means the same moment.

    Raises `ValueError` for anything else: a time without an offset, a week date, a leap second.
    """
    match = _INSTANT.fullmatch(value) if isinstance(value, str) else None
    if match is not None:
        time, decimals, offset = match.groups(default="")
        try:
            return datetime.fromisoformat(f"{time}{decimals[:7]}{offset}".upper()).astimezone(UTC)
        except (ValueError, OverflowError):
            pass  # The message below says more than the library's.
    raise ValueError(
        f"A time is written as in RFC 3339, with an offset and at most {MAX_DECIMALS} decimals: "
        "2026-01-31T09:30:00.25Z."
    )


def check_text(field: str, value: str, *, length: int, may_be_blank: bool = False) -> None:
    """Hold a text against its rule: 1 to `length` characters, one of them visible; no NUL and no lone surrogate.

    `may_be_blank`: the text is the beginning of another, which may begin with white space. Raises `InvalidInput`.
    """
    if not 1 <= len(value) <= length:
        raise InvalidInput(field, f"must have 1 to {length} characters; it has {len(value)}.")
    # Most names are ASCII, and a look at the whole of such a text is quicker than a pattern.
    is_ascii = value.isascii()
    if (not is_ascii or "\x00" in value) and _REFUSED_CHARACTERS.search(value):
        raise InvalidInput(field, "must not contain NUL or lone surrogates.")
    if not may_be_blank and (value.isspace() if is_ascii else _BLANK.fullmatch(value)):
        raise InvalidInput(field, "must have a visible character; it has white space alone.")


def check_org(field: str, value: str) -> None:
    """Hold an organization's name against its rule, which lets no two names look the same for what cannot be seen.

    Raises `InvalidInput`.
    """
    check_text(field, value, length=ORG_LENGTH)
    if value != value.strip():
        raise InvalidInput(field, "must not have white space around it.")
    # Printable is what has a shape of its own, and the ordinary space.
    if not value.isprintable():
        raise InvalidInput(field, "must not contain control characters, or others that cannot be seen.")
    if not is_normalized("NFC", value):
        raise InvalidInput(field, "must be normalized (Unicode NFC): it looks like another name.")


def check_email(field: str, value: str) -> None:
    """Hold an email address against the standards' syntax, without asking the network. Raises `InvalidInput`."""
    # Its patterns take a tenth of a second to compile, which no command is to wait for that checks no address.
    from email_validator import EmailNotValidError, validate_email  # noqa: PLC0415

    try:
        validate_email(value, check_deliverability=False)
    except EmailNotValidError as error:
        raise InvalidInput(field, f"must be a valid email address: {error}") from None


def check_timezone(field: str, value: str) -> None:
    """Hold the name of a zone against the IANA's list. Raises `InvalidInput`."""
    if value not in _zone_names():
        raise InvalidInput(field, "must be a zone of the IANA time zone database, like Europe/Zurich.")


def check_metadata(field: str, value: object) -> dict[str, Any]:
    """Return the metadata: an object of at most 16 KiB as compact JSON and 100 levels. Raises `InvalidInput`."""
    if not isinstance(value, dict):
        raise InvalidInput(field, "must be a JSON object.")
    level: list[Any] = [value]
    for _ in range(METADATA_LEVELS):
        below: list[Any] = []
        for part in level:
            if isinstance(part, dict):
                below += part.keys()
                below += part.values()
            elif isinstance(part, list):
                below += part
            else:
                _check_leaf(field, part)
        level = below
    if any(isinstance(part, dict | list) for part in level):
        raise InvalidInput(field, f"must not be nested deeper than {METADATA_LEVELS} levels.")
    for part in level:
        _check_leaf(field, part)
    size = len(orjson.dumps(value))
    if size > METADATA_BYTES:
        raise InvalidInput(field, f"must take at most {METADATA_BYTES} bytes as compact JSON; it takes {size}.")
    return value


def _check_leaf(field: str, leaf: object) -> None:
    if isinstance(leaf, str) and _REFUSED_CHARACTERS.search(leaf):
        raise InvalidInput(field, "must not contain NUL or lone surrogates.")
    if isinstance(leaf, int) and not -(2**63) <= leaf < 2**64:
        raise InvalidInput(field, "must not contain integers of more than 64 bits; write them as strings.")
    if isinstance(leaf, float) and not math.isfinite(leaf):
        raise InvalidInput(field, "must not contain numbers that are not finite.")


def check_usage_names(field: str, values: Sequence[str], *, most: int) -> None:
    """Hold the names of a query's usage against their rule: 1 to `most`, each a usage name. Raises `InvalidInput`."""
    if not 1 <= len(values) <= most:
        raise InvalidInput(field, f"must have 1 to {most} items; it has {len(values)}.")
    for value in values:
        check_text(field, value, length=USAGE_NAME_LENGTH)


def day_of(instant: datetime, timezone: str) -> date:
    """Return the day of the moment in the zone. Raises `ValueError` for a zone that there is not."""
    return instant.astimezone(_zone(timezone)).date() if timezone != "UTC" else instant.astimezone(UTC).date()


@cache
def _zone(name: str) -> ZoneInfo:
    """Return the zone as the pinned database has it, whatever the machine or `PYTHONTZPATH` has under the name."""
    if name not in _zone_names():
        raise ValueError(f"{name!r} is no zone of the IANA time zone database")
    with files("tzdata").joinpath("zoneinfo", *name.split("/")).open("rb") as file:
        return ZoneInfo.from_file(file, key=name)


@cache
def _zone_names() -> frozenset[str]:
    # The list that comes with the pinned database; the machine's own may hold names of the machine, like `localtime`.
    return frozenset(files("tzdata").joinpath("zones").read_text(encoding="utf-8").split())
