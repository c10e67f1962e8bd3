"""Invariants of a meter's ledger, each broken by hand, and what `verify` finds then."""

from typing import NamedTuple


class Spoilt(NamedTuple):
    """The statements that change the books, and what `verify` reports then."""

    name: str
    statements: tuple[str, ...]
    messages: list[str]


ENTRY = "UPDATE ledger_entries SET {} WHERE meter_id = :id AND seq = {}"
METER = "UPDATE billing_meters SET {} WHERE id = :id"
DAY = "UPDATE usage_days SET {} WHERE meter_id = :id AND usage_name = '{}'"
COLUMNS = (
    "kind, amount, total_credits_after, used_credits_after, limit_credits, usage_name, day, requested_amount, "
    "policy, voids_seq, sent_at, recorded_at, recorded_by, reason, metadata"
)
COPY = (
    f"INSERT INTO ledger_entries (meter_id, seq, key, {COLUMNS}) "  # noqa: S608  # The columns are those above, and no input.
    f"SELECT meter_id, {{}}, key || ' again', {COLUMNS} FROM ledger_entries WHERE meter_id = :id AND seq = {{}}"
)

SPOILT = [
    Spoilt(
        "the usage of a day is wrong",
        (DAY.format("total_usage = 19", "tokens"),),
        ["day 2026-03-15, 'tokens': the usage is 19 and should be 20"],
    ),
    Spoilt(
        "usage is moved to another day",
        (DAY.format("day = '2026-03-14'", "tokens"),),
        [
            "day 2026-03-14, 'tokens': the usage is 20 and should be 0",
            "day 2026-03-15, 'tokens': the usage of 20 is missing",
        ],
    ),
    Spoilt(
        "usage is moved to another name",
        (DAY.format("usage_name = 'images'", "tokens"),),
        [
            "day 2026-03-15, 'images': the usage is 20 and should be 0",
            "day 2026-03-15, 'tokens': the usage of 20 is missing",
        ],
    ),
    Spoilt(
        "a day is missing",
        ("DELETE FROM usage_days WHERE meter_id = :id AND usage_name = 'default'",),
        ["day 2026-03-16, 'default': the usage of 6 is missing"],
    ),
    Spoilt(
        "a day is too many",
        ("INSERT INTO usage_days (meter_id, day, usage_name, total_usage) VALUES (:id, '2026-03-17', 'default', 3)",),
        ["day 2026-03-17, 'default': the usage is 3 and should be 0"],
    ),
    Spoilt(
        "the used credits of the meter are wrong",
        (METER.format("used_credits = 25"),),
        ["its used credits is 25 and should be 26"],
    ),
    Spoilt(
        "the total credits of the meter are wrong, and so its limit",
        (METER.format("total_credits = 106"),),
        ["its total credits is 106 and should be 105"],
    ),
    Spoilt(
        "the limit is wrong",
        (METER.format("limit_credits = 1000"),),
        ["its limit is 1000 and should be 155", "its number of available bits is 8 and should be 10"],
    ),
    Spoilt(
        "the limit is missing",
        (METER.format("limit_credits = NULL"),),
        ["its limit is None and should be 155", "its number of available bits is 8 and should be None"],
    ),
    Spoilt(
        "the number of available bits is wrong",
        (METER.format("available_bits = 7"),),
        ["its number of available bits is 7 and should be 8"],
    ),
    Spoilt(
        "the number of available bits is missing",
        (METER.format("available_bits = NULL"),),
        ["its number of available bits is None and should be 8"],
    ),
    Spoilt(
        "there is a limit where there should be none",
        (METER.format("spend_cap = NULL"),),
        ["its spendCap is None and should be 50"],
    ),
    Spoilt(
        "overages are off and the limit is not",
        (METER.format("allow_overages = FALSE"),),
        ["its allowOverages is False and should be True"],
    ),
    Spoilt(
        "the used credits after an entry are wrong",
        (ENTRY.format("used_credits_after = 31", 3),),
        [
            "entry 3: the used credits after it are 31 and should be 30",
            "entry 4: the used credits after it are 30 and should be 31",
        ],
    ),
    Spoilt(
        "the total credits after an entry are wrong",
        (ENTRY.format("total_credits_after = 99", 2),),
        [
            "entry 2: the total credits after it are 99 and should be 100",
            "entry 3: the total credits after it are 100 and should be 99",
        ],
    ),
    Spoilt(
        "the amount of a debit is wrong",
        (ENTRY.format("amount = 21", 3),),
        [
            "entry 3: the used credits after it are 30 and should be 31",
            "entry 3: by PARTIAL it took 21 of 20 and should have taken 20",
            "day 2026-03-15, 'tokens': the usage is 20 and should be 21",
        ],
    ),
    Spoilt(
        "the amount of a refill is wrong",
        (ENTRY.format("amount = 6", 4),),
        ["entry 4: the total credits after it are 105 and should be 106"],
    ),
    Spoilt(
        "the amount of the opening is wrong",
        (ENTRY.format("amount = 99", 1),),
        ["entry 1: the total credits after it are 100 and should be 99"],
    ),
    Spoilt(
        "the amount of a void is wrong",
        (ENTRY.format("amount = 5", 5),),
        [
            "entry 5: it gave back 5 of 4",
            "entry 5: the used credits after it are 26 and should be 25",
            "day 2026-03-16, 'default': the usage is 6 and should be 5",
        ],
    ),
    Spoilt(
        "an amount is negative",
        (ENTRY.format("amount = -1", 6),),
        ["entry 6: its amount is -1"],
    ),
    Spoilt(
        "a change of settings has an amount",
        (ENTRY.format("amount = 1", 6),),
        ["entry 6: its amount is 1"],
    ),
    Spoilt(
        "a debit has no key",
        (ENTRY.format("key = NULL", 2),),
        ["entry 2: it has no key, and each USAGE has one"],
    ),
    Spoilt(
        "a void does not name what it voids",
        (ENTRY.format("voids_seq = NULL", 5),),
        ["entry 5: it has no voids_seq, and each VOID has one"],
    ),
    Spoilt(
        "a debit voids another one",
        (ENTRY.format("voids_seq = 2", 3),),
        ["entry 3: it has a voids_seq, which no USAGE has", "entry 2: more is voided than it took, or it is missing"],
    ),
    Spoilt(
        "what is voided is a refill",
        (ENTRY.format("voids_seq = 4", 5),),
        ["entry 4: more is voided than it took, or it is missing"],
    ),
    Spoilt(
        "a void is on another day than what it voids",
        (ENTRY.format("day = '2026-03-15', usage_name = 'tokens'", 5),),
        [
            "day 2026-03-15, 'tokens': the usage is 20 and should be 16",
            "day 2026-03-16, 'default': the usage is 6 and should be 10",
            "entry 2: more is voided than it took, or it is missing",
        ],
    ),
    Spoilt(
        "a debit is on another day than its usage",
        (ENTRY.format("day = '2026-03-13'", 3),),
        [
            "entry 3: its day is 2026-03-13 and should be 2026-03-15",
            "day 2026-03-15, 'tokens': the usage is 20 and should be 0",
            "day 2026-03-13, 'tokens': the usage of 20 is missing",
        ],
    ),
    Spoilt(
        "an entry is missing",
        ("DELETE FROM ledger_entries WHERE meter_id = :id AND seq = 3",),
        [
            "entry 4: it follows entry 2",
            "entry 4: the used credits after it are 30 and should be 10",
            "day 2026-03-15, 'tokens': the usage is 20 and should be 0",
        ],
    ),
    Spoilt(
        "the first entry is missing",
        ("DELETE FROM ledger_entries WHERE meter_id = :id AND seq = 1",),
        ["entry 2: it follows entry 0", "entry 2: the total credits after it are 100 and should be 0"],
    ),
    Spoilt(
        "the newest entry is missing",
        ("DELETE FROM ledger_entries WHERE meter_id = :id AND seq = 6",),
        [
            "its last entry is 6 and should be 5",
            "its allowOverages is True and should be False",
            "its spendCap is 50 and should be None",
            "its limit is 155 and should be 105",
        ],
    ),
    Spoilt(
        "all entries are missing",
        ("DELETE FROM ledger_entries WHERE meter_id = :id",),
        [
            "its last entry is 6 and should be 0",
            "its total credits is 105 and should be 0",
            "its used credits is 26 and should be 0",
            "day 2026-03-15, 'tokens': the usage is 20 and should be 0",
            "day 2026-03-16, 'default': the usage is 6 and should be 0",
        ],
    ),
    Spoilt(
        "there is an entry beyond the newest one",
        (COPY.format(7, 6),),
        [
            "entry 7: its allowOverages was False before it and should be True",
            "entry 7: its spendCap was None before it and should be '50'",
            "its last entry is 6 and should be 7",
        ],
    ),
    Spoilt(
        "there is an entry far beyond the newest one",
        (COPY.format(7_000_000, 6),),
        [
            "entry 7000000: it follows entry 6",
            "entry 7000000: its allowOverages was False before it and should be True",
            "entry 7000000: its spendCap was None before it and should be '50'",
            "its last entry is 6 and should be 7000000",
        ],
    ),
    Spoilt(
        "the meter does not know its newest entry",
        (METER.format("last_seq = 5"),),
        ["its last entry is 5 and should be 6"],
    ),
    Spoilt(
        "there is an entry with the last number of all",
        (COPY.format(2**63 - 1, 6),),
        [
            "entry 9223372036854775807: it follows entry 6",
            "entry 9223372036854775807: its allowOverages was False before it and should be True",
            "entry 9223372036854775807: its spendCap was None before it and should be '50'",
            "its last entry is 6 and should be 9223372036854775807",
        ],
    ),
    Spoilt(
        "there is an entry before the first one",
        (COPY.format(-3, 6),),
        [
            "entry -3: it follows entry 0",
            "entry -3: the total credits after it are 105 and should be 0",
            "entry -3: the used credits after it are 26 and should be 0",
            "entry 1: it follows entry -3",
            "entry 1: the total credits after it are 100 and should be 205",
            "entry 1: the used credits after it are 0 and should be 26",
        ],
    ),
    Spoilt(
        "the meter counts more entries than there can be",
        (METER.format(f"last_seq = {2**63 - 1}"),),
        [f"its last entry is {2**63 - 1} and should be 6"],
    ),
    Spoilt(
        "the meter counts fewer entries than none",
        (METER.format("last_seq = -7"),),
        ["its last entry is -7 and should be 6"],
    ),
    Spoilt(
        "there are two openings",
        (ENTRY.format("kind = 'opening'", 4),),
        [
            "entry 4: it is OPENING, and just the first one is OPENING",
            "entry 4: it has no metadata, and each OPENING has one",
        ],
    ),
    Spoilt(
        "the first entry is no opening",
        (ENTRY.format("kind = 'refill'", 1),),
        [
            "entry 1: it is REFILL, and just the first one is OPENING",
            "entry 1: it has no key, and each REFILL has one",
            "entry 1: it has a metadata, which no REFILL has",
        ],
    ),
    Spoilt(
        "a debit by REJECT has another limit than its moment",
        (ENTRY.format("limit_credits = 9", 2),),
        ["entry 2: its limit is 9 and should be 100"],
    ),
    Spoilt(
        "a debit by PARTIAL has another limit than its moment",
        (ENTRY.format("limit_credits = 29", 3),),
        ["entry 3: its limit is 29 and should be 100"],
    ),
    Spoilt(
        "a debit by FORCE has another limit than its moment",
        (ENTRY.format("limit_credits = 9, policy = 'force'", 2),),
        ["entry 2: its limit is 9 and should be 100"],
    ),
    Spoilt(
        "a debit has the limit that it reaches",
        (ENTRY.format("limit_credits = 10", 2),),
        ["entry 2: its limit is 10 and should be 100"],
    ),
    Spoilt(
        "more is voided than was used, and all sums agree",
        (
            ENTRY.format("amount = 11, used_credits_after = 19", 5),
            ENTRY.format("used_credits_after = 19", 6),
            METER.format("used_credits = 19"),
            DAY.format("total_usage = -1", "default"),
        ),
        ["entry 5: it gave back 11 of 4", "entry 2: more is voided than it took, or it is missing"],
    ),
    Spoilt(
        "what is voided is missing",
        (ENTRY.format("voids_seq = 99", 5),),
        ["entry 99: more is voided than it took, or it is missing"],
    ),
]
