"""Everything that can be wrong with a request, as one tree.

BillingError
├── Refusal: the domain says no; a member of the mutation's union
│   ├── InvalidInput
│   ├── CustomerNotFound
│   ├── BillingMeterNotFound
│   ├── UsageEventNotFound
│   ├── AlreadyExists
│   ├── IdempotencyConflict
│   ├── InsufficientCredits
│   ├── SpendCapExceeded
│   ├── AmountOutOfRange
│   ├── ExceedsVoidable
│   ├── CreditGrantNotFound
│   ├── CreditGrantNotLive
│   ├── TooManyCreditGrants
│   ├── HoldNotFound
│   ├── HoldNotOpen
│   ├── TooManyHolds
│   ├── WebhookEndpointNotFound
│   ├── TooManyWebhookEndpoints
│   ├── EventNotFound
│   ├── AutoRefillNotFound
│   ├── AutoRefillNotOpen
│   ├── AlertNotFound
│   └── TooManyAlerts
└── Fault: the request itself is at fault, or cannot be served now; a top-level error
    ├── Unauthenticated
    ├── Forbidden
    ├── BadUserInput
    ├── LimitExceeded
    └── Unavailable

Where several apply, the first of these is raised: malformed, no permission, not found, replay or conflict, time window,
limit. How each is shown to a client is decided elsewhere: in `schema/errors.py` for GraphQL.
"""

from typing import ClassVar

from storage.engine.database import Outcome
from storage.meters.auto_refills import AutoRefillRequestRow
from storage.meters.billing_meters import BillingMeterRow
from storage.meters.credit_grants import CreditGrantRow
from storage.meters.holds import HoldRow
from storage.meters.ledger import LedgerEntryRow


class BillingError(Exception):
    """A request that was not carried out. `message` is for the caller; it names the field and the rule."""

    code: ClassVar[str]

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Refusal(BillingError):
    """The domain refuses; nothing was changed."""


class InvalidInput(Refusal):
    """A value breaks a rule. `field` is the path to it below the input, as the API spells it."""

    code = "INVALID_INPUT"

    def __init__(self, field: str, rule: str) -> None:
        super().__init__(f"{field} {rule}")
        self.field = field


class CustomerNotFound(Refusal):
    """No customer of this id that the caller may see."""

    code = "CUSTOMER_NOT_FOUND"

    def __init__(self) -> None:
        super().__init__("There is no customer of this id.")


class BillingMeterNotFound(Refusal):
    """No billing meter of these names."""

    code = "BILLING_METER_NOT_FOUND"

    def __init__(self, workspace_id: str, external_meter_id: str) -> None:
        super().__init__(f"There is no billing meter {external_meter_id!r} in workspace {workspace_id!r}.")


class UsageEventNotFound(Refusal):
    """The meter has no usage event of this id."""

    code = "USAGE_EVENT_NOT_FOUND"

    def __init__(self, event_id: str) -> None:
        super().__init__(f"The billing meter has no usage event {event_id!r}.")


class AlreadyExists(Refusal):
    """Something else already has the name. `existing_id` is its id."""

    code = "ALREADY_EXISTS"

    def __init__(self, message: str, *, existing_id: str) -> None:
        super().__init__(message)
        self.existing_id = existing_id


class IdempotencyConflict(Refusal):
    """The event id or idempotency key was used before, for something else. `entry` is what it recorded on a meter."""

    code = "IDEMPOTENCY_CONFLICT"

    def __init__(self, key: str, *, entry: LedgerEntryRow | None = None) -> None:
        super().__init__(f"{key!r} was used before with other values.")
        self.entry = entry


class LimitRefusal(Refusal):
    """The credits do not cover the debit.

    At the decision `available` is what they would have covered, and `held` what `open_holds` reserved.
    """

    def __init__(self, amount: int, *, available: int, billing_meter: BillingMeterRow) -> None:
        held = billing_meter.held_credits
        on_hold = f"; {held} are on hold" if held else ""
        super().__init__(f"{amount} credits are asked for and {available} are available{on_hold}.")
        self.available = available
        self.held = held
        self.open_holds = billing_meter.open_holds
        self.billing_meter = billing_meter


class InsufficientCredits(LimitRefusal):
    """The prepaid credits do not cover the debit, and the meter allows no overages."""

    code = "INSUFFICIENT_CREDITS"


class SpendCapExceeded(LimitRefusal):
    """The debit would pass the meter's spend cap on overages."""

    code = "SPEND_CAP_EXCEEDED"


class AmountOutOfRange(Refusal):
    """A meter's total or used credits would pass 2**63 - 1."""

    code = "AMOUNT_OUT_OF_RANGE"

    def __init__(self, what: str) -> None:
        super().__init__(f"The meter's {what} credits would pass 9223372036854775807, the greatest amount.")


class ExceedsVoidable(Refusal):
    """More is to be given back than is left of the event. `voidable` is what is left, in credits."""

    code = "EXCEEDS_VOIDABLE"

    def __init__(self, event_id: str, *, voidable: int) -> None:
        super().__init__(f"Of the usage event {event_id!r} {voidable} credits are left to void.")
        self.voidable = voidable


class CreditGrantNotFound(Refusal):
    """No credit grant of this id that the caller may see."""

    code = "CREDIT_GRANT_NOT_FOUND"

    def __init__(self) -> None:
        super().__init__("There is no credit grant of this id.")


class CreditGrantNotLive(Refusal):
    """The credit grant has ended, or was revoked."""

    code = "CREDIT_GRANT_NOT_LIVE"

    def __init__(self, credit_grant: CreditGrantRow) -> None:
        super().__init__("The credit grant was revoked." if credit_grant.is_closed else "The credit grant has expired.")
        self.credit_grant = credit_grant


class TooManyCreditGrants(Refusal):
    """The meter has as many live credit grants as it may have."""

    code = "TOO_MANY_CREDIT_GRANTS"

    def __init__(self, max_: int) -> None:
        super().__init__(f"The billing meter may have at most {max_} live credit grants.")
        self.max = max_


class HoldNotFound(Refusal):
    """The meter has no hold of this id."""

    code = "HOLD_NOT_FOUND"

    def __init__(self, hold_id: str) -> None:
        super().__init__(f"The billing meter has no hold {hold_id!r}.")


class HoldNotOpen(Refusal):
    """The hold is already committed, released or expired."""

    code = "HOLD_NOT_OPEN"

    def __init__(self, hold: HoldRow) -> None:
        super().__init__(f"The hold {hold.hold_id!r} is {hold.state.value}, and no longer open.")
        self.hold = hold


class TooManyHolds(Refusal):
    """The meter has as many open holds as it may have."""

    code = "TOO_MANY_HOLDS"

    def __init__(self, max_: int) -> None:
        super().__init__(f"The billing meter may have at most {max_} open holds.")
        self.max = max_


class WebhookEndpointNotFound(Refusal):
    """No webhook endpoint of this id that the caller may see."""

    code = "WEBHOOK_ENDPOINT_NOT_FOUND"

    def __init__(self) -> None:
        super().__init__("There is no webhook endpoint of this id.")


class TooManyWebhookEndpoints(Refusal):
    """The organization has as many webhook endpoints as it may have in the environment."""

    code = "TOO_MANY_WEBHOOK_ENDPOINTS"

    def __init__(self, max_: int) -> None:
        super().__init__(f"The organization may have at most {max_} webhook endpoints in an environment.")
        self.max = max_


class EventNotFound(Refusal):
    """No event of this id that the endpoint may get."""

    code = "EVENT_NOT_FOUND"

    def __init__(self) -> None:
        super().__init__("There is no event of this id that the endpoint may get.")


class AutoRefillNotFound(Refusal):
    """The meter has no automatic refill, or there is no request of this id that the caller may see."""

    code = "AUTO_REFILL_NOT_FOUND"

    def __init__(self) -> None:
        super().__init__("There is no such automatic refill, or no request of this id.")


class AutoRefillNotOpen(Refusal):
    """The request has been fulfilled."""

    code = "AUTO_REFILL_NOT_OPEN"

    def __init__(self, request: AutoRefillRequestRow) -> None:
        super().__init__("The request has been fulfilled, and cannot fail any more.")
        self.request = request


class AlertNotFound(Refusal):
    """No alert of this id that the caller may see."""

    code = "ALERT_NOT_FOUND"

    def __init__(self) -> None:
        super().__init__("There is no alert of this id.")


class TooManyAlerts(Refusal):
    """The meter, or the workspace for each of its meters, has as many alerts as it may have."""

    code = "TOO_MANY_ALERTS"

    def __init__(self, max_: int) -> None:
        super().__init__(f"A billing meter, and a workspace for each of its meters, may have at most {max_} alerts.")
        self.max = max_


class Fault(BillingError):
    """The request cannot be served as it is, or not now."""


class Unauthenticated(Fault):
    """No key, or one that is unknown, expired or revoked."""

    code = "UNAUTHENTICATED"


class Forbidden(Fault):
    """The key may not do this."""

    code = "FORBIDDEN"


class BadUserInput(Fault):
    """A malformed value where there is no refusal to return."""

    code = "BAD_USER_INPUT"


class LimitExceeded(Fault):
    """The request asks for more than one request may have."""

    code = "LIMIT_EXCEEDED"


class Unavailable(Fault):
    """The database is out of reach, or the queue of writes is full. `outcome` says what became of a write."""

    code = "UNAVAILABLE"

    def __init__(self, outcome: Outcome) -> None:
        what = (
            "Nothing was written. Repeat the request with the same id."
            if outcome is Outcome.NOT_WRITTEN
            else "Whether it was written is not known. Repeat the request only under the id or key that it had."
        )
        super().__init__(f"The service is unavailable for the moment. {what}")
        self.outcome = outcome
