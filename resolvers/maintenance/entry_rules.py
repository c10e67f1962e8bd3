"""What an entry of each kind does to the totals, which fields it has, and what is recorded without a key."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from resolvers.actor import DEMO, IMPORT, Scope
from resolvers.rules.alerts import BY_TIME
from resolvers.values import MAX_AMOUNT
from storage.meters.ledger import LedgerEntryKind, LedgerEntryRow


class KindRule(NamedTuple):
    """What an entry of one kind does to the totals, and which of the fields that may be empty it has.

    `scope` is what a key needs to record it; None: no key does, because it follows from time.
    """

    adds_to_total: int
    adds_to_used: int
    amounts: tuple[int, int]
    scope: Scope | None
    has: frozenset[str] = frozenset()
    may_have: frozenset[str] = frozenset()


#: The fields of an entry that are empty for some kind.
OPTIONAL_FIELDS = (
    *("key", "usage_name", "day", "requested_amount", "policy", "voids_seq", "sent_at", "reason", "metadata"),
    *("grant_seq", "hold_seq", "draws"),
)

_ANY_AMOUNT, _POSITIVE, _ZERO = (0, MAX_AMOUNT), (1, MAX_AMOUNT), (0, 0)

RULES: Mapping[LedgerEntryKind, KindRule] = {
    LedgerEntryKind.OPENING: KindRule(
        1, 0, _ANY_AMOUNT, Scope.BILLING_WRITE, has=frozenset({"metadata"}), may_have=frozenset({"key"})
    ),
    LedgerEntryKind.REFILL: KindRule(1, 0, _POSITIVE, Scope.BILLING_WRITE, has=frozenset({"key"})),
    LedgerEntryKind.USAGE: KindRule(
        0,
        1,
        _POSITIVE,
        Scope.USAGE_WRITE,
        has=frozenset({"key", "usage_name", "day", "requested_amount", "policy"}),
        may_have=frozenset({"sent_at", "metadata", "hold_seq", "draws"}),
    ),
    LedgerEntryKind.VOID: KindRule(
        0,
        -1,
        _POSITIVE,
        Scope.USAGE_CORRECT,
        has=frozenset({"key", "usage_name", "day", "voids_seq", "reason"}),
        may_have=frozenset({"requested_amount", "draws"}),
    ),
    LedgerEntryKind.GRANT: KindRule(
        *(1, 0, _POSITIVE, Scope.BILLING_WRITE),
        has=frozenset({"key", "grant_seq", "metadata"}),
        may_have=frozenset({"reason"}),
    ),
    LedgerEntryKind.GRANT_CHANGED: KindRule(
        *(0, 0, _ZERO, Scope.BILLING_WRITE),
        has=frozenset({"key", "grant_seq", "metadata"}),
        may_have=frozenset({"reason"}),
    ),
    LedgerEntryKind.REVOCATION: KindRule(
        *(-1, 0, _ANY_AMOUNT, Scope.BILLING_WRITE),
        has=frozenset({"grant_seq"}),
        may_have=frozenset({"key", "requested_amount", "reason"}),
    ),
    LedgerEntryKind.EXPIRY: KindRule(-1, 0, _POSITIVE, None, has=frozenset({"grant_seq"})),
    LedgerEntryKind.HOLD: KindRule(
        *(0, 0, _POSITIVE, Scope.USAGE_WRITE),
        has=frozenset({"key", "requested_amount", "policy", "hold_seq"}),
        may_have=frozenset({"draws", "metadata"}),
    ),
    LedgerEntryKind.RELEASE: KindRule(0, 0, _POSITIVE, Scope.USAGE_WRITE, has=frozenset({"key", "hold_seq"})),
    LedgerEntryKind.HOLD_EXPIRY: KindRule(0, 0, _POSITIVE, None, has=frozenset({"key", "hold_seq"})),
    LedgerEntryKind.SETTINGS: KindRule(0, 0, _ZERO, Scope.BILLING_WRITE, has=frozenset({"key", "metadata"})),
}

#: What operators record at the command line, and what follows from time or from another entry, by who has recorded it.
RECORDED_WITHOUT_KEY: Mapping[str, frozenset[LedgerEntryKind]] = {
    IMPORT: frozenset((LedgerEntryKind.OPENING, LedgerEntryKind.USAGE)),
    DEMO: frozenset((LedgerEntryKind.OPENING, LedgerEntryKind.USAGE, LedgerEntryKind.GRANT, LedgerEntryKind.HOLD)),
    BY_TIME: frozenset((LedgerEntryKind.EXPIRY, LedgerEntryKind.REVOCATION, LedgerEntryKind.HOLD_EXPIRY)),
}


def fields_of(entry: LedgerEntryRow, rule: KindRule) -> Iterator[str]:
    """Hold what an entry has against what its kind has."""
    if (entry.kind is LedgerEntryKind.OPENING) != (entry.seq == 1):
        yield f"it is {entry.kind.name}, and just the first one is OPENING"
    if not rule.amounts[0] <= entry.amount <= rule.amounts[1]:
        yield f"its amount is {entry.amount}"
    for name, amount in (("total", entry.total_credits_after), ("used", entry.used_credits_after)):
        if not 0 <= amount <= MAX_AMOUNT:
            yield f"the {name} credits after it are {amount}"
    for name in OPTIONAL_FIELDS:
        value = getattr(entry, name)
        has = bool(value) if name == "metadata" else value is not None
        if has and name not in rule.has | rule.may_have:
            yield f"it has a {name}, which no {entry.kind.name} has"
        elif not has and name in rule.has:
            yield f"it has no {name}, and each {entry.kind.name} has one"
    if type(entry.metadata) is not dict:
        yield "its metadata is no object"
    if entry.kind is LedgerEntryKind.VOID and entry.requested_amount not in {None, entry.amount}:
        yield f"it gave back {entry.amount} of {entry.requested_amount}"


#: What reading raises for a value that the column's type does not have, and checking for one of another type.
UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, OverflowError)


def unreadable(error: BaseException) -> str:
    """Return the message about a row that holds what its columns should not."""
    if isinstance(error, TypeError | AttributeError):
        return "it cannot be read: it holds a value of another type than its column's"
    return f"it cannot be read: {error}"
