"""Credit grants: credits of a meter with a priority, and perhaps an end, apart from its base."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from resolvers.actor import Scope
from resolvers.context import Context
from resolvers.errors import (
    AmountOutOfRange,
    CreditGrantNotFound,
    CreditGrantNotLive,
    IdempotencyConflict,
    InvalidInput,
    TooManyCreditGrants,
)
from resolvers.idempotency import same_json
from resolvers.meters.names import meter_name
from resolvers.reading.places import locate
from resolvers.rules.commands import GATEWAY_KEY, Decision, Known, after, gateway_key, is_gateway_key, newest_entry
from resolvers.values import KEY_LENGTH, MAX_AMOUNT, REASON_LENGTH, check_metadata, check_text
from storage import ids
from storage.meters import billing_meters, credit_grants
from storage.meters.billing_meters import BillingMeterRow, MeterName
from storage.meters.credit_grants import CreditGrantCategory, CreditGrantRow
from storage.meters.ledger import LedgerEntryKind, LedgerEntryRow

_GRANT, _CHANGED, _REVOCATION = LedgerEntryKind.GRANT, LedgerEntryKind.GRANT_CHANGED, LedgerEntryKind.REVOCATION

#: Priorities: the lower is used first.
MIN_PRIORITY, MAX_PRIORITY, DEFAULT_PRIORITY = 0, 100, 50


class GrantCredits(NamedTuple):
    """Credits to grant. `max_live` is how many grants of the meter may be live."""

    meter: MeterName
    amount: int
    priority: int
    category: CreditGrantCategory
    expires_at: datetime | None
    reason: str | None
    metadata: dict[str, Any]
    key: str
    recorded_by: str
    max_live: int

    @property
    def keys(self) -> Sequence[tuple[LedgerEntryKind, str]]:
        """The grant's own."""
        return ((_GRANT, self.key),)

    def decide(self, meter: BillingMeterRow, known: Known, now: datetime) -> Decision:
        """Make the grant.

        Raises `IdempotencyConflict`, `InvalidInput` for an end that is not ahead, `TooManyCreditGrants` and
        `AmountOutOfRange`, in this order.
        """
        earlier = known.entries.get((_GRANT, self.key))
        if earlier is not None:
            grant = _grant_of(meter, known, self.key)
            if not self._is_same(earlier, grant):
                raise IdempotencyConflict(self.key, entry=earlier)
            return Decision(meter, earlier, replayed=True, credit_grant=grant)
        _check_end(self.expires_at, now)
        if known.credits is not None and known.credits.count_live(now) >= self.max_live:
            raise TooManyCreditGrants(self.max_live)
        if meter.total_credits + self.amount > MAX_AMOUNT:
            raise AmountOutOfRange("total")
        credits_ = known.credits_of(meter)
        meter = after(meter, now, total_credits=meter.total_credits + self.amount, has_grants=True)
        grant = CreditGrantRow(
            meter_id=meter.id,
            seq=meter.last_seq,
            key=self.key,
            amount=self.amount,
            priority=self.priority,
            category=self.category,
            expires_at=self.expires_at,
            open_credits=self.amount,
            pinned_credits=0,
            drawn_credits=0,
            covered_credits=0,
            expired_credits=0,
            revoked_credits=0,
            is_closed=False,
            created_at=now,
            reason=self.reason,
            metadata=self.metadata,
        )
        credits_.add(grant)
        entry = newest_entry(
            meter,
            _GRANT,
            amount=self.amount,
            recorded_by=self.recorded_by,
            key=self.key,
            grant_seq=grant.seq,
            reason=self.reason,
            metadata={term: [None, value] for term, value in terms_of(grant).items()},
        )
        return Decision(meter, entry, credit_grant=grant)

    def _is_same(self, earlier: LedgerEntryRow, grant: CreditGrantRow) -> bool:
        first = {term: new for term, (_none, new) in earlier.metadata.items()}
        asked = {
            "priority": self.priority,
            "category": self.category.name,
            "expiresAt": _shown(self.expires_at),
        }
        return (
            (self.amount, self.reason) == (earlier.amount, earlier.reason)
            and asked == first
            and same_json(self.metadata, grant.metadata)
        )


class UpdateCreditGrant(NamedTuple):
    """The priority and end that a grant is to have, by column; the others stay."""

    meter: MeterName
    grant_key: str
    changes: Mapping[str, Any]
    reason: str | None
    key: str
    recorded_by: str

    @property
    def keys(self) -> Sequence[tuple[LedgerEntryKind, str]]:
        """The grant's, and the change's own."""
        return (_GRANT, self.grant_key), (_CHANGED, self.key)

    def decide(self, meter: BillingMeterRow, known: Known, now: datetime) -> Decision:
        """Change what differs. Raises `CreditGrantNotLive`, and `InvalidInput` for an end that is not ahead."""
        grant = _grant_of(meter, known, self.grant_key)
        earlier = known.entries.get((_CHANGED, self.key))
        if earlier is not None:
            return Decision(meter, earlier, replayed=True, credit_grant=grant)
        if not grant.is_live(now):
            raise CreditGrantNotLive(grant)
        changed = grant._replace(**self.changes)
        if changed == grant:
            return Decision(meter, None, credit_grant=grant)
        _check_end(changed.expires_at, now)
        old, new = terms_of(grant), terms_of(changed)
        meter = after(meter, now)
        known.credits_of(meter).add(changed)
        entry = newest_entry(
            meter,
            _CHANGED,
            amount=0,
            recorded_by=self.recorded_by,
            key=self.key,
            grant_seq=grant.seq,
            reason=self.reason,
            metadata={term: [old[term], new[term]] for term in new if old[term] != new[term]},
        )
        return Decision(meter, entry, credit_grant=changed)


class RevokeCreditGrant(NamedTuple):
    """Open credits of a grant to take back. `amount` None: all that is open, and all that comes back later."""

    meter: MeterName
    grant_key: str
    amount: int | None
    reason: str | None
    key: str
    recorded_by: str

    @property
    def keys(self) -> Sequence[tuple[LedgerEntryKind, str]]:
        """The grant's, and the revocation's own."""
        return (_GRANT, self.grant_key), (_REVOCATION, self.key)

    def decide(self, meter: BillingMeterRow, known: Known, now: datetime) -> Decision:
        """Take back what is open, up to the amount; it may be nothing. Raises `IdempotencyConflict`."""
        grant = _grant_of(meter, known, self.grant_key)
        earlier = known.entries.get((_REVOCATION, self.key))
        if earlier is not None:
            asked = (earlier.grant_seq, earlier.requested_amount, earlier.reason)
            if asked != (grant.seq, self.amount, self.reason):
                raise IdempotencyConflict(self.key, entry=earlier)
            return Decision(meter, earlier, replayed=True, credit_grant=grant)
        revoked = grant.open_credits if self.amount is None else min(self.amount, grant.open_credits)
        meter = after(meter, now, total_credits=meter.total_credits - revoked)
        changed = grant._replace(
            open_credits=grant.open_credits - revoked,
            revoked_credits=grant.revoked_credits + revoked,
            is_closed=grant.is_closed or self.amount is None,
        )
        known.credits_of(meter).add(changed)
        entry = newest_entry(
            meter,
            _REVOCATION,
            amount=revoked,
            recorded_by=self.recorded_by,
            key=self.key,
            requested_amount=self.amount,
            grant_seq=grant.seq,
            reason=self.reason,
        )
        return Decision(meter, entry, credit_grant=changed)


async def grant_credits(
    context: Context,
    *,
    workspace_id: str,
    external_meter_id: str,
    amount: int,
    priority: int = DEFAULT_PRIORITY,
    category: CreditGrantCategory = CreditGrantCategory.PAID,
    expires_at: datetime | None = None,
    reason: str | None = None,
    metadata: object = None,
    idempotency_key: str | None = None,
) -> Decision:
    """Grant credits to a meter. Under an idempotency key the first grant is replayed, for ever.

    Raises `InvalidInput`, `Forbidden` and `BillingMeterNotFound`, then what `GrantCredits.decide` raises.
    """
    actor = context.actor
    name = meter_name(actor, workspace_id, external_meter_id)
    if amount == 0:
        raise InvalidInput("amount", "must be greater than 0.")
    _check_priority(priority)
    _check_texts(_GRANT, reason, idempotency_key)
    checked = check_metadata("metadata", metadata) if metadata is not None else {}
    actor.require(Scope.BILLING_WRITE)
    actor.require_workspace(workspace_id)
    key = idempotency_key or gateway_key()
    terms = (priority, category, expires_at)
    return await context.change(
        GrantCredits(name, amount, *terms, reason, checked, key, actor.key_id, context.bounds.live_grants)
    )


async def update_credit_grant(
    context: Context, *, id_: str, changes: Mapping[str, Any], reason: str | None = None
) -> Decision:
    """Change the `priority` or `expires_at` of a grant; what `changes` leaves out stays.

    Raises `InvalidInput`, `Forbidden` and `CreditGrantNotFound`, then what `UpdateCreditGrant.decide` raises.
    """
    if "priority" in changes:
        _check_priority(changes["priority"])
    _check_texts(_CHANGED, reason, None)
    context.actor.require(Scope.BILLING_WRITE)
    name, key = await _found(context, id_)
    return await context.change(UpdateCreditGrant(name, key, changes, reason, gateway_key(), context.actor.key_id))


async def revoke_credit_grant(
    context: Context,
    *,
    id_: str,
    amount: int | None = None,
    reason: str | None = None,
    idempotency_key: str | None = None,
) -> Decision:
    """Take back open credits of a grant: so many, or all, and then all that comes back later as well.

    Raises `InvalidInput`, `Forbidden` and `CreditGrantNotFound`, then what `RevokeCreditGrant.decide` raises.
    """
    if amount == 0:
        raise InvalidInput("amount", "must be greater than 0.")
    _check_texts(_REVOCATION, reason, idempotency_key)
    context.actor.require(Scope.BILLING_WRITE)
    name, grant_key = await _found(context, id_)
    key = idempotency_key or gateway_key()
    return await context.change(RevokeCreditGrant(name, grant_key, amount, reason, key, context.actor.key_id))


async def _found(context: Context, id_: str) -> tuple[MeterName, str]:
    """Return the name of a grant's meter, and the grant's key. Raises `CreditGrantNotFound`."""
    actor, place = context.actor, ids.parse_numbered_id(id_, ids.CREDIT_GRANT)
    if place is None:
        raise CreditGrantNotFound
    (bucket,) = await locate(context.database, [place[0]])
    async with context.database.read(bucket) as reader:
        meters = await billing_meters.by_ids(
            reader,
            [place[0]],
            org_id=actor.org_id,
            environment=actor.environment,
            workspace_ids=actor.workspace_ids,
        )
        found = await credit_grants.by_seqs(reader, [place])
    if place[0] not in meters or place not in found:
        raise CreditGrantNotFound
    return meters[place[0]].full_name, found[place].key


def _check_priority(priority: int) -> None:
    if not MIN_PRIORITY <= priority <= MAX_PRIORITY:
        raise InvalidInput("priority", f"must be {MIN_PRIORITY} to {MAX_PRIORITY}.")


def _check_texts(kind: LedgerEntryKind, reason: str | None, key: str | None) -> None:
    if reason is not None:
        check_text("reason", reason, length=REASON_LENGTH)
    if key is not None:
        check_text("idempotencyKey", key, length=KEY_LENGTH)
        if is_gateway_key(kind, key):
            raise InvalidInput("idempotencyKey", f"must not begin with {GATEWAY_KEY}, which is reserved.")


def terms_of(grant: CreditGrantRow) -> dict[str, int | str | None]:
    """Return the terms of a grant as the ledger records them: `GRANT` all, and `GRANT_CHANGED` those that change."""
    return {"priority": grant.priority, "category": grant.category.name, "expiresAt": _shown(grant.expires_at)}


def _shown(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _grant_of(meter: BillingMeterRow, known: Known, key: str) -> CreditGrantRow:
    entry = known.entries.get((_GRANT, key))
    if entry is None:
        raise CreditGrantNotFound
    return known.credits_of(meter).grants[entry.seq]


def _check_end(expires_at: datetime | None, now: datetime) -> None:
    if expires_at is not None and expires_at <= now:
        raise InvalidInput("expiresAt", "must be later than now.")
