"""The one table that turns the domain's refusals into members of the result unions."""

from collections.abc import Callable
from typing import Any

import strawberry

from resolvers import errors as domain
from resolvers.actor import Actor, Scope
from schema import errors
from schema.billing_meters import BillingMeter
from schema.enums import ErrorCode
from schema.errors import UserError
from schema.info import Info
from schema.ledger import LedgerEntry
from schema.scalars import BigInt


def _facts(refusal: domain.Refusal, _actor: Actor) -> dict[str, Any]:
    return {"code": ErrorCode(refusal.code), "message": refusal.message}


def _conflict_facts(refusal: domain.IdempotencyConflict, actor: Actor) -> dict[str, Any]:
    # It is not what this request did, so it is not shown to a key that may write alone, not even one of its own.
    entry = refusal.entry if Scope.BILLING_READ in actor.scopes else None
    return _facts(refusal, actor) | {"entry": LedgerEntry.of(entry) if entry is not None else None}


def _limit_facts(refusal: domain.LimitRefusal, actor: Actor) -> dict[str, Any]:
    return _facts(refusal, actor) | {
        "available": BigInt(refusal.available),
        "billing_meter": BillingMeter.of(refusal.billing_meter),
    }


#: Each refusal with the type that shows it and the facts that it shows.
_TABLE: dict[type[domain.Refusal], tuple[type[UserError], Callable[[Any, Actor], dict[str, Any]]]] = {
    domain.InvalidInput: (
        errors.InvalidInput,
        lambda refusal, actor: _facts(refusal, actor) | {"field": ["input", *refusal.field.split(".")]},
    ),
    domain.CustomerNotFound: (errors.CustomerNotFound, _facts),
    domain.BillingMeterNotFound: (errors.BillingMeterNotFound, _facts),
    domain.UsageEventNotFound: (errors.UsageEventNotFound, _facts),
    domain.AlreadyExists: (
        errors.AlreadyExists,
        lambda refusal, actor: _facts(refusal, actor) | {"existing_id": strawberry.ID(refusal.existing_id)},
    ),
    domain.IdempotencyConflict: (errors.IdempotencyConflict, _conflict_facts),
    domain.InsufficientCredits: (errors.InsufficientCredits, _limit_facts),
    domain.SpendCapExceeded: (errors.SpendCapExceeded, _limit_facts),
    domain.AmountOutOfRange: (errors.AmountOutOfRange, _facts),
    domain.ExceedsVoidable: (
        errors.ExceedsVoidable,
        lambda refusal, actor: _facts(refusal, actor) | {"voidable": BigInt(refusal.voidable)},
    ),
}


def user_error(refusal: domain.Refusal, actor: Actor) -> UserError:
    """Return the refusal as the actor sees it."""
    shown_by, facts_of = _TABLE[type(refusal)]
    return shown_by(**facts_of(refusal, actor))


class _Handler:
    """Tells Strawberry which union member a refusal becomes; it is used on the fields whose union has that member."""

    def __init__(self, exception_type: type[domain.Refusal], error_type: type[UserError]) -> None:
        self.exception_type = exception_type
        self.error_type = error_type

    def handle(self, exception: domain.Refusal, *, field: object, info: Info) -> UserError:  # noqa: ARG002  # Strawberry's signature.
        return user_error(exception, info.context.actor)


EXCEPTION_HANDLERS = [_Handler(refusal, shown_by) for refusal, (shown_by, _) in _TABLE.items()]
