"""The enums, each value with its meaning. Their values are those that the rows and rules use."""

from enum import Enum

import strawberry
from strawberry import enum_value

from resolvers import actor
from storage import ledger, tenants


@strawberry.enum(description="Which of an organization's two separate worlds something belongs to. Nothing crosses it.")
class Environment(Enum):
    """See `tenants.Environment`."""

    LIVE = enum_value(tenants.Environment.LIVE, description="The real one: keys begin with `sk_live_`.")
    SANDBOX = enum_value(
        tenants.Environment.SANDBOX, description="The one to try things in: keys begin with `sk_test_`."
    )


@strawberry.enum(description="What a key allows.")
class Scope(Enum):
    """See `actor.Scope`."""

    BILLING_READ = enum_value(
        actor.Scope.BILLING_READ, description="Every query, and every edge of a returned object (`billing:read`)."
    )
    BILLING_WRITE = enum_value(
        actor.Scope.BILLING_WRITE,
        description=(
            "Creates, updates and refills; with `billing:read`, customers' sessions, which read (`billing:write`)."
        ),
    )
    USAGE_WRITE = enum_value(actor.Scope.USAGE_WRITE, description="Recording usage (`usage:write`).")
    USAGE_CORRECT = enum_value(
        actor.Scope.USAGE_CORRECT,
        description="The policy `FORCE`, events older than 35 days, and voiding usage (`usage:correct`).",
    )


@strawberry.enum(description="What is wanted of a debit that the available credits do not cover.")
class OverLimitPolicy(Enum):
    """See `ledger.OverLimitPolicy`."""

    REJECT = enum_value(ledger.OverLimitPolicy.REJECT, description="Accept all of the amount, or refuse it.")
    PARTIAL = enum_value(
        ledger.OverLimitPolicy.PARTIAL,
        description="Accept what is available, and tell how much was refused; with nothing available, refuse.",
    )
    FORCE = enum_value(
        ledger.OverLimitPolicy.FORCE,
        description="Accept all of the amount, also past the limit. Needs the scope `usage:correct`.",
    )


@strawberry.enum(description="What a ledger entry did.")
class LedgerEntryKind(Enum):
    """See `ledger.LedgerEntryKind`."""

    OPENING = enum_value(
        ledger.LedgerEntryKind.OPENING, description="The meter was made, with this many credits granted, or 0."
    )
    REFILL = enum_value(ledger.LedgerEntryKind.REFILL, description="Credits were added to the total.")
    USAGE = enum_value(ledger.LedgerEntryKind.USAGE, description="Credits were used.")
    VOID = enum_value(ledger.LedgerEntryKind.VOID, description="Credits of an earlier usage were given back.")
    SETTINGS = enum_value(
        ledger.LedgerEntryKind.SETTINGS,
        description="The spend cap, the overage switch or the customer changed; the metadata tells old and new.",
    )


@strawberry.enum(description="Which rule refused a mutation.")
class ErrorCode(Enum):
    """See `resolvers.errors`."""

    INVALID_INPUT = enum_value("INVALID_INPUT", description="A value of the input breaks a rule.")
    CUSTOMER_NOT_FOUND = enum_value("CUSTOMER_NOT_FOUND", description="There is no customer of this id.")
    BILLING_METER_NOT_FOUND = enum_value(
        "BILLING_METER_NOT_FOUND", description="There is no billing meter of these names."
    )
    USAGE_EVENT_NOT_FOUND = enum_value("USAGE_EVENT_NOT_FOUND", description="The meter has no usage event of this id.")
    ALREADY_EXISTS = enum_value("ALREADY_EXISTS", description="Something else already has this name.")
    IDEMPOTENCY_CONFLICT = enum_value(
        "IDEMPOTENCY_CONFLICT", description="The event id or idempotency key was used before with other values."
    )
    INSUFFICIENT_CREDITS = enum_value("INSUFFICIENT_CREDITS", description="The prepaid credits do not cover the debit.")
    SPEND_CAP_EXCEEDED = enum_value("SPEND_CAP_EXCEEDED", description="The debit would pass the spend cap on overages.")
    AMOUNT_OUT_OF_RANGE = enum_value(
        "AMOUNT_OUT_OF_RANGE", description="An amount of the meter would pass 9223372036854775807."
    )
    EXCEEDS_VOIDABLE = enum_value(
        "EXCEEDS_VOIDABLE", description="More is to be given back than is left of the usage event."
    )
