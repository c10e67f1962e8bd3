"""The members of the result unions that say of a refusal what it was, and which domain error becomes which of them.

What becomes of faults stands in `schema/engine/faults.py`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import strawberry

from resolvers import errors as domain
from resolvers.actor import Actor, Scope
from resolvers.values import NAME_LENGTH
from schema.engine.limits.sizes import AN_ID, of_bytes, text
from schema.enums import ErrorCode
from schema.info import Info
from schema.scalars import BigInt

if TYPE_CHECKING:
    from schema.meters.auto_refills import AutoRefillRequest
    from schema.meters.billing_meters import BillingMeter
    from schema.meters.credit_grants import CreditGrant
    from schema.meters.holds import Hold
    from schema.meters.ledger import LedgerEntry

_MeterType = Annotated["BillingMeter", strawberry.lazy("schema.meters.billing_meters")]
_GrantType = Annotated["CreditGrant", strawberry.lazy("schema.meters.credit_grants")]
_HoldType = Annotated["Hold", strawberry.lazy("schema.meters.holds")]
_RequestType = Annotated["AutoRefillRequest", strawberry.lazy("schema.meters.auto_refills")]
_EntryType = Annotated["LedgerEntry", strawberry.lazy("schema.meters.ledger")]


@strawberry.interface(
    description=(
        "A mutation that the domain refused; nothing was changed. New kinds may be added: handle this interface."
    )
)
class UserError:
    """What every refusal says."""

    code: ErrorCode = strawberry.field(description="The rule that refused it, for programs.")
    message: str = strawberry.field(
        description="What is wrong, in English, for people; its wording may change.", metadata=text(2 * NAME_LENGTH)
    )


@strawberry.type(description="A value of the input breaks a rule.")
class InvalidInput(UserError):
    """See `resolvers.errors.InvalidInput`."""

    field: list[str] = strawberry.field(
        description='The path to the value, like `["input", "spendCap"]`.', metadata=of_bytes(66, items=10)
    )


@strawberry.type(description="There is no customer of this id.")
class CustomerNotFound(UserError):
    """See `resolvers.errors.CustomerNotFound`."""


@strawberry.type(description="There is no billing meter of these names.")
class BillingMeterNotFound(UserError):
    """See `resolvers.errors.BillingMeterNotFound`."""


@strawberry.type(description="The meter has no usage event of this id.")
class UsageEventNotFound(UserError):
    """See `resolvers.errors.UsageEventNotFound`."""


@strawberry.type(description="Something else already has this name.")
class AlreadyExists(UserError):
    """See `resolvers.errors.AlreadyExists`."""

    existing_id: strawberry.ID = strawberry.field(
        description="The id of the customer or billing meter that has the name.", metadata=AN_ID
    )


@strawberry.type(description="The event id or idempotency key was used before with other values.")
class IdempotencyConflict(UserError):
    """See `resolvers.errors.IdempotencyConflict`."""

    first_entry: _EntryType | None = strawberry.field(
        description=(
            "The ledger entry that the first use made; null: it made none, or one that the key may not see, which "
            "needs `billing:read`."
        )
    )


@strawberry.type(description="The prepaid credits do not cover the debit, and the meter allows no overages.")
class InsufficientCredits(UserError):
    """See `resolvers.errors.InsufficientCredits`."""

    available: BigInt = strawberry.field(description="The credits that were available at the decision.")
    held: BigInt = strawberry.field(description="The credits that open holds reserved at the decision.")
    open_holds: int = strawberry.field(description="How many holds were open at the decision.")
    billing_meter: _MeterType = strawberry.field(description="The meter, as it is now.")


@strawberry.type(description="The debit would pass the meter's spend cap on overages.")
class SpendCapExceeded(UserError):
    """See `resolvers.errors.SpendCapExceeded`."""

    available: BigInt = strawberry.field(
        description="The credits that were available at the decision, overage included."
    )
    held: BigInt = strawberry.field(description="The credits that open holds reserved at the decision.")
    open_holds: int = strawberry.field(description="How many holds were open at the decision.")
    billing_meter: _MeterType = strawberry.field(description="The meter, as it is now.")


@strawberry.type(description="The meter's total or used credits would pass 9223372036854775807.")
class AmountOutOfRange(UserError):
    """See `resolvers.errors.AmountOutOfRange`."""


@strawberry.type(description="More is to be given back than is left of the usage event.")
class ExceedsVoidable(UserError):
    """See `resolvers.errors.ExceedsVoidable`."""

    voidable: BigInt = strawberry.field(description="The credits of the event that are not yet given back.")


@strawberry.type(description="There is no credit grant of this id.")
class CreditGrantNotFound(UserError):
    """See `resolvers.errors.CreditGrantNotFound`."""


@strawberry.type(description="The credit grant has ended, or was revoked.")
class CreditGrantNotLive(UserError):
    """See `resolvers.errors.CreditGrantNotLive`."""

    credit_grant: _GrantType = strawberry.field(description="The grant.")


@strawberry.type(description="The meter has as many live credit grants as it may have.")
class TooManyCreditGrants(UserError):
    """See `resolvers.errors.TooManyCreditGrants`."""

    max: int = strawberry.field(description="How many it may have.")


@strawberry.type(description="The meter has no hold of this id.")
class HoldNotFound(UserError):
    """See `resolvers.errors.HoldNotFound`."""


@strawberry.type(description="The hold is already committed, released or expired.")
class HoldNotOpen(UserError):
    """See `resolvers.errors.HoldNotOpen`."""

    hold: _HoldType = strawberry.field(description="The hold, with its state and since when.")


@strawberry.type(description="The meter has as many open holds as it may have.")
class TooManyHolds(UserError):
    """See `resolvers.errors.TooManyHolds`."""

    max: int = strawberry.field(description="How many it may have.")


@strawberry.type(description="There is no webhook endpoint of this id.")
class WebhookEndpointNotFound(UserError):
    """See `resolvers.errors.WebhookEndpointNotFound`."""


@strawberry.type(description="There are as many webhook endpoints as there may be.")
class TooManyWebhookEndpoints(UserError):
    """See `resolvers.errors.TooManyWebhookEndpoints`."""

    max: int = strawberry.field(description="How many there may be.")


@strawberry.type(description="There is no event of this id that the endpoint may get.")
class EventNotFound(UserError):
    """See `resolvers.errors.EventNotFound`."""


@strawberry.type(description="The meter has no automatic refill, or there is no request of this id.")
class AutoRefillNotFound(UserError):
    """See `resolvers.errors.AutoRefillNotFound`."""


@strawberry.type(description="The request of an automatic refill has been fulfilled, and cannot fail any more.")
class AutoRefillNotOpen(UserError):
    """See `resolvers.errors.AutoRefillNotOpen`."""

    request: _RequestType = strawberry.field(description="The request, with the refill that fulfilled it.")


@strawberry.type(description="There is no alert of this id.")
class AlertNotFound(UserError):
    """See `resolvers.errors.AlertNotFound`."""


@strawberry.type(description="The meter, or the workspace for each of its meters, has as many alerts as it may have.")
class TooManyAlerts(UserError):
    """See `resolvers.errors.TooManyAlerts`."""

    max: int = strawberry.field(description="How many it may have.")


def _facts(refusal: domain.Refusal, _actor: Actor) -> dict[str, Any]:
    return {"code": ErrorCode(refusal.code), "message": refusal.message}


def _conflict_facts(refusal: domain.IdempotencyConflict, actor: Actor) -> dict[str, Any]:
    # It is not what this request did, so it is not shown to a key that may write alone, not even one of its own.
    entry = refusal.entry if Scope.BILLING_READ in actor.scopes else None
    return _facts(refusal, actor) | {"first_entry": entry}


def _limit_facts(refusal: domain.LimitRefusal, actor: Actor) -> dict[str, Any]:
    return _facts(refusal, actor) | {
        "available": BigInt(refusal.available),
        "held": BigInt(refusal.held),
        "open_holds": refusal.open_holds,
        "billing_meter": refusal.billing_meter,
    }


#: Each refusal with the type that shows it and the facts that it shows.
_TABLE: dict[type[domain.Refusal], tuple[type[UserError], Callable[[Any, Actor], dict[str, Any]]]] = {
    domain.InvalidInput: (
        InvalidInput,
        lambda refusal, actor: _facts(refusal, actor) | {"field": ["input", *refusal.field.split(".")]},
    ),
    domain.CustomerNotFound: (CustomerNotFound, _facts),
    domain.BillingMeterNotFound: (BillingMeterNotFound, _facts),
    domain.UsageEventNotFound: (UsageEventNotFound, _facts),
    domain.AlreadyExists: (
        AlreadyExists,
        lambda refusal, actor: _facts(refusal, actor) | {"existing_id": strawberry.ID(refusal.existing_id)},
    ),
    domain.IdempotencyConflict: (IdempotencyConflict, _conflict_facts),
    domain.InsufficientCredits: (InsufficientCredits, _limit_facts),
    domain.SpendCapExceeded: (SpendCapExceeded, _limit_facts),
    domain.AmountOutOfRange: (AmountOutOfRange, _facts),
    domain.ExceedsVoidable: (
        ExceedsVoidable,
        lambda refusal, actor: _facts(refusal, actor) | {"voidable": BigInt(refusal.voidable)},
    ),
    domain.CreditGrantNotFound: (CreditGrantNotFound, _facts),
    domain.CreditGrantNotLive: (
        CreditGrantNotLive,
        lambda refusal, actor: _facts(refusal, actor) | {"credit_grant": refusal.credit_grant},
    ),
    domain.TooManyCreditGrants: (
        TooManyCreditGrants,
        lambda refusal, actor: _facts(refusal, actor) | {"max": refusal.max},
    ),
    domain.HoldNotFound: (HoldNotFound, _facts),
    domain.HoldNotOpen: (HoldNotOpen, lambda refusal, actor: _facts(refusal, actor) | {"hold": refusal.hold}),
    domain.TooManyHolds: (TooManyHolds, lambda refusal, actor: _facts(refusal, actor) | {"max": refusal.max}),
    domain.WebhookEndpointNotFound: (WebhookEndpointNotFound, _facts),
    domain.TooManyWebhookEndpoints: (
        TooManyWebhookEndpoints,
        lambda refusal, actor: _facts(refusal, actor) | {"max": refusal.max},
    ),
    domain.EventNotFound: (EventNotFound, _facts),
    domain.AutoRefillNotFound: (AutoRefillNotFound, _facts),
    domain.AutoRefillNotOpen: (
        AutoRefillNotOpen,
        lambda refusal, actor: _facts(refusal, actor) | {"request": refusal.request},
    ),
    domain.AlertNotFound: (AlertNotFound, _facts),
    domain.TooManyAlerts: (TooManyAlerts, lambda refusal, actor: _facts(refusal, actor) | {"max": refusal.max}),
}


def user_error(refusal: domain.Refusal, actor: Actor) -> UserError:
    """Return the refusal as the actor sees it."""
    shown_by, facts_of = _TABLE[type(refusal)]
    return shown_by(**facts_of(refusal, actor))


class _Handler:
    """Says to Strawberry which union member a refusal becomes; it is used on the fields whose union has that member."""

    def __init__(self, exception_type: type[domain.Refusal], error_type: type[UserError]) -> None:
        self.exception_type = exception_type
        self.error_type = error_type

    def handle(self, exception: domain.Refusal, *, field: object, info: Info) -> UserError:  # noqa: ARG002  # Strawberry's signature.
        return user_error(exception, info.context.actor)


EXCEPTION_HANDLERS = [_Handler(refusal, shown_by) for refusal, (shown_by, _) in _TABLE.items()]
