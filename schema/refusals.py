"""The one table that turns the domain's refusals into members of the result unions."""

from collections.abc import Callable
from typing import Any

import strawberry

from resolvers import errors as domain
from schema import errors
from schema.billing_meters import BillingMeter
from schema.enums import ErrorCode
from schema.errors import UserError
from schema.info import Info
from schema.ledger import LedgerEntry
from schema.scalars import BigInt


def _facts(refusal: domain.Refusal) -> dict[str, Any]:
    return {"code": ErrorCode(refusal.code), "message": refusal.message}


def _limit_facts(refusal: domain.LimitRefusal) -> dict[str, Any]:
    return _facts(refusal) | {
        "available": BigInt(refusal.available),
        "billing_meter": BillingMeter.of(refusal.billing_meter),
    }


#: Each refusal with the type that shows it and the facts that it shows.
_TABLE: dict[type[domain.Refusal], tuple[type[UserError], Callable[[Any], dict[str, Any]]]] = {
    domain.InvalidInput: (
        errors.InvalidInput,
        lambda refusal: _facts(refusal) | {"field": ["input", *refusal.field.split(".")]},
    ),
    domain.CustomerNotFound: (errors.CustomerNotFound, _facts),
    domain.BillingMeterNotFound: (errors.BillingMeterNotFound, _facts),
    domain.UsageEventNotFound: (errors.UsageEventNotFound, _facts),
    domain.AlreadyExists: (
        errors.AlreadyExists,
        lambda refusal: _facts(refusal) | {"existing_id": strawberry.ID(refusal.existing_id)},
    ),
    domain.IdempotencyConflict: (
        errors.IdempotencyConflict,
        lambda refusal: (
            _facts(refusal) | {"entry": LedgerEntry.of(refusal.entry) if refusal.entry is not None else None}
        ),
    ),
    domain.InsufficientCredits: (errors.InsufficientCredits, _limit_facts),
    domain.SpendCapExceeded: (errors.SpendCapExceeded, _limit_facts),
    domain.AmountOutOfRange: (errors.AmountOutOfRange, _facts),
    domain.ExceedsVoidable: (
        errors.ExceedsVoidable,
        lambda refusal: _facts(refusal) | {"voidable": BigInt(refusal.voidable)},
    ),
}


def user_error(refusal: domain.Refusal) -> UserError:
    """Return the refusal as clients see it."""
    shown_by, facts_of = _TABLE[type(refusal)]
    return shown_by(**facts_of(refusal))


class _Handler:
    """Tells Strawberry which union member a refusal becomes; it is used on the fields whose union has that member."""

    def __init__(self, exception_type: type[domain.Refusal], error_type: type[UserError]) -> None:
        self.exception_type = exception_type
        self.error_type = error_type

    def handle(self, exception: domain.Refusal, *, field: object, info: Info) -> UserError:  # noqa: ARG002  # Strawberry's signature.
        return user_error(exception)


EXCEPTION_HANDLERS = [_Handler(refusal, shown_by) for refusal, (shown_by, _) in _TABLE.items()]
