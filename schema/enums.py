"""The enums, each value with its meaning. Their values are those that the rows and rules use."""

from enum import Enum

import strawberry
from strawberry import enum_value

from resolvers import actor
from storage import tenants
from storage.meters import auto_refills, credit_grants, events, holds, ledger, meter_alerts, webhook_deliveries


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
    WEBHOOKS_WRITE = enum_value(
        actor.Scope.WEBHOOKS_WRITE, description="With `billing:read`, webhook endpoints (`webhooks:write`)."
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
        description=(
            "The spend cap, the overage switch, the customer or the most open holds changed; the metadata has old and"
            " new."
        ),
    )
    GRANT = enum_value(ledger.LedgerEntryKind.GRANT, description="Credits were granted, and added to the total.")
    GRANT_CHANGED = enum_value(
        ledger.LedgerEntryKind.GRANT_CHANGED,
        description="The priority or the end of a grant changed; the metadata has old and new.",
    )
    REVOCATION = enum_value(
        ledger.LedgerEntryKind.REVOCATION,
        description="Open credits of a grant were taken back, or came back to a revoked one; the total has less.",
    )
    EXPIRY = enum_value(
        ledger.LedgerEntryKind.EXPIRY,
        description="Open credits of a grant ended, or came back to an ended one; the total has less.",
    )
    HOLD = enum_value(ledger.LedgerEntryKind.HOLD, description="Credits were reserved.")
    RELEASE = enum_value(ledger.LedgerEntryKind.RELEASE, description="A hold was released.")
    HOLD_EXPIRY = enum_value(ledger.LedgerEntryKind.HOLD_EXPIRY, description="A hold expired.")


@strawberry.enum(description="Whether a credit grant was paid for.")
class CreditGrantCategory(Enum):
    """See `credit_grants.CreditGrantCategory`."""

    PAID = enum_value(credit_grants.CreditGrantCategory.PAID, description="It was paid for.")
    PROMOTIONAL = enum_value(
        credit_grants.CreditGrantCategory.PROMOTIONAL,
        description="It was given; of two grants that are otherwise alike it is used first.",
    )


@strawberry.enum(description="What can be had of a credit grant.")
class CreditGrantState(Enum):
    """See `credit_grants.CreditGrantState`."""

    LIVE = enum_value(credit_grants.CreditGrantState.LIVE, description="Some of it is open, or reserved by a hold.")
    DEPLETED = enum_value(
        credit_grants.CreditGrantState.DEPLETED, description="All of it is used; a void can make it live again."
    )
    EXPIRED = enum_value(credit_grants.CreditGrantState.EXPIRED, description="It has ended.")
    REVOKED = enum_value(credit_grants.CreditGrantState.REVOKED, description="It was revoked as a whole.")


@strawberry.enum(description="What has become of a hold.")
class HoldState(Enum):
    """See `holds.HoldState`."""

    OPEN = enum_value(holds.HoldState.OPEN, description="It reserves its amount.")
    COMMITTED = enum_value(holds.HoldState.COMMITTED, description="Its usage is recorded.")
    RELEASED = enum_value(holds.HoldState.RELEASED, description="It was released, and nothing was used.")
    EXPIRED = enum_value(holds.HoldState.EXPIRED, description="It ended without having been closed.")


@strawberry.enum(description="What is wanted of a commit whose hold is released or expired.")
class IfHoldClosed(Enum):
    """See `resolvers.meters.holds.CommitHold`."""

    REFUSE = enum_value("refuse", description="Refuse it.")
    RECORD = enum_value("record", description="Record it as usage that no hold was made for.")


@strawberry.enum(description="What has happened. In a body the last `_` is a dot: `alert.triggered`.")
class EventType(Enum):
    """See `events.EventType`."""

    BILLING_METER_CREATED = enum_value(events.EventType.BILLING_METER_CREATED, description="A billing meter was made.")
    BILLING_METER_UPDATED = enum_value(
        events.EventType.BILLING_METER_UPDATED, description="Settings of a billing meter changed."
    )
    CREDIT_GRANT_CREATED = enum_value(events.EventType.CREDIT_GRANT_CREATED, description="Credits were granted.")
    CREDIT_GRANT_EXPIRED = enum_value(
        events.EventType.CREDIT_GRANT_EXPIRED,
        description="Open credits of a grant ended, or came back to an ended one.",
    )
    CREDIT_GRANT_REVOKED = enum_value(
        events.EventType.CREDIT_GRANT_REVOKED,
        description="Open credits of a grant were taken back, or came back to a revoked one.",
    )
    HOLD_EXPIRED = enum_value(events.EventType.HOLD_EXPIRED, description="A hold expired.")
    ALERT_TRIGGERED = enum_value(events.EventType.ALERT_TRIGGERED, description="An alert's threshold was passed.")
    ALERT_RECOVERED = enum_value(
        events.EventType.ALERT_RECOVERED, description="An alert's threshold was passed the other way."
    )
    REFILL_REQUESTED = enum_value(
        events.EventType.REFILL_REQUESTED, description="An automatic refill asks to be charged and refilled."
    )
    REFILL_FULFILLED = enum_value(
        events.EventType.REFILL_FULFILLED, description="What an automatic refill asked for was refilled."
    )
    REFILL_FAILED = enum_value(
        events.EventType.REFILL_FAILED, description="What an automatic refill asked for could not be charged."
    )
    REFILL_SUSPENDED = enum_value(
        events.EventType.REFILL_SUSPENDED, description="An automatic refill asks no more, after failures in a row."
    )
    REFILL_CAPPED = enum_value(
        events.EventType.REFILL_CAPPED, description="An automatic refill would ask, and its caps do not allow it."
    )
    WEBHOOK_ENDPOINT_DISABLED = enum_value(
        events.EventType.WEBHOOK_ENDPOINT_DISABLED, description="A webhook endpoint was disabled, because it failed."
    )
    WEBHOOK_TEST = enum_value(events.EventType.WEBHOOK_TEST, description="A test was asked for.")


@strawberry.enum(description="What has become of a webhook delivery.")
class WebhookDeliveryState(Enum):
    """See `webhook_deliveries.DeliveryState`."""

    PENDING = enum_value(
        webhook_deliveries.DeliveryState.PENDING, description="It is attempted until it is delivered or has failed."
    )
    DELIVERED = enum_value(
        webhook_deliveries.DeliveryState.DELIVERED, description="The endpoint has answered with a status of 200 to 299."
    )
    FAILED = enum_value(
        webhook_deliveries.DeliveryState.FAILED, description="It is given up, unless it is redelivered."
    )


@strawberry.enum(description="How much an automatic refill asks for.")
class AutoRefillMode(Enum):
    """See `auto_refills.AutoRefillMode`."""

    TARGET = enum_value(
        auto_refills.AutoRefillMode.TARGET, description="What is missing to `amount` unspent credits, at least `below`."
    )
    FIXED = enum_value(
        auto_refills.AutoRefillMode.FIXED, description="As many times `amount` as it takes to reach `below`."
    )


@strawberry.enum(description="What an automatic refill is doing.")
class AutoRefillState(Enum):
    """See `resolvers.rules.auto_refills`."""

    IDLE = enum_value("idle", description="No request is open.")
    REQUESTED = enum_value("requested", description="A request is open.")
    SUSPENDED = enum_value(
        "suspended", description="Too many requests in a row have failed; it asks for nothing until it is resumed."
    )


@strawberry.enum(description="What has become of a request for credits.")
class AutoRefillRequestState(Enum):
    """See `auto_refills.AutoRefillRequestState`."""

    OPEN = enum_value(auto_refills.AutoRefillRequestState.OPEN, description="It waits for its refill.")
    FULFILLED = enum_value(
        auto_refills.AutoRefillRequestState.FULFILLED, description="The credits were added under its id."
    )
    FAILED = enum_value(
        auto_refills.AutoRefillRequestState.FAILED, description="It was said that it cannot be fulfilled."
    )
    EXPIRED = enum_value(
        auto_refills.AutoRefillRequestState.EXPIRED, description="It ended, and nothing was said of it."
    )


@strawberry.enum(description="What an alert compares with its threshold. Below is `<`, and above is `>`.")
class AlertKind(Enum):
    """See `meter_alerts.AlertKind`."""

    REMAINING_BELOW = enum_value(
        meter_alerts.AlertKind.REMAINING_BELOW,
        description="The total less what is used, which holds do not change.",
    )
    AVAILABLE_BELOW = enum_value(
        meter_alerts.AlertKind.AVAILABLE_BELOW,
        description="What a debit may still take; never of a meter without a limit.",
    )
    OVERAGE_ABOVE = enum_value(meter_alerts.AlertKind.OVERAGE_ABOVE, description="What is used beyond the total.")
    DAY_USAGE_ABOVE = enum_value(
        meter_alerts.AlertKind.DAY_USAGE_ABOVE, description="What one day has used, each day for itself."
    )
    GRANT_EXPIRES_WITHIN = enum_value(
        meter_alerts.AlertKind.GRANT_EXPIRES_WITHIN,
        description="How long it is until a credit grant ends of which something is open, in seconds.",
    )


@strawberry.enum(description="How a billing meter stands to an alert.")
class AlertState(Enum):
    """See `resolvers.reading.alerts.AlertOfMeter`."""

    ARMED = enum_value("armed", description="It is not past the threshold.")
    TRIGGERED = enum_value("triggered", description="It is past the threshold.")


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
    CREDIT_GRANT_NOT_FOUND = enum_value("CREDIT_GRANT_NOT_FOUND", description="There is no credit grant of this id.")
    CREDIT_GRANT_NOT_LIVE = enum_value(
        "CREDIT_GRANT_NOT_LIVE", description="The credit grant has ended, or was revoked."
    )
    TOO_MANY_CREDIT_GRANTS = enum_value(
        "TOO_MANY_CREDIT_GRANTS", description="The meter has as many live credit grants as it may have."
    )
    HOLD_NOT_FOUND = enum_value("HOLD_NOT_FOUND", description="The meter has no hold of this id.")
    HOLD_NOT_OPEN = enum_value("HOLD_NOT_OPEN", description="The hold is already committed, released or expired.")
    TOO_MANY_HOLDS = enum_value("TOO_MANY_HOLDS", description="The meter has as many open holds as it may have.")
    WEBHOOK_ENDPOINT_NOT_FOUND = enum_value(
        "WEBHOOK_ENDPOINT_NOT_FOUND", description="There is no webhook endpoint of this id."
    )
    TOO_MANY_WEBHOOK_ENDPOINTS = enum_value(
        "TOO_MANY_WEBHOOK_ENDPOINTS", description="There are as many webhook endpoints as there may be."
    )
    EVENT_NOT_FOUND = enum_value(
        "EVENT_NOT_FOUND", description="There is no event of this id that the endpoint may get."
    )
    AUTO_REFILL_NOT_FOUND = enum_value(
        "AUTO_REFILL_NOT_FOUND", description="The meter has no automatic refill, or there is no request of this id."
    )
    AUTO_REFILL_NOT_OPEN = enum_value(
        "AUTO_REFILL_NOT_OPEN", description="The request of an automatic refill has been fulfilled."
    )
    ALERT_NOT_FOUND = enum_value("ALERT_NOT_FOUND", description="There is no alert of this id.")
    TOO_MANY_ALERTS = enum_value(
        "TOO_MANY_ALERTS", description="The meter, or the workspace, has as many alerts as it may have."
    )
