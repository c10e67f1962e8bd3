"""The members of the result unions that tell of a refusal.

Which domain error becomes which of them stands in `schema/refusals.py`; what becomes of faults, in
`schema/engine/faults.py`.
"""

from typing import TYPE_CHECKING, Annotated

import strawberry

from resolvers.values import NAME_LENGTH
from schema.engine.sizes import AN_ID, of_bytes, text
from schema.enums import ErrorCode
from schema.scalars import BigInt

if TYPE_CHECKING:
    from schema.billing_meters import BillingMeter
    from schema.ledger import LedgerEntry

_MeterType = Annotated["BillingMeter", strawberry.lazy("schema.billing_meters")]
_EntryType = Annotated["LedgerEntry", strawberry.lazy("schema.ledger")]


@strawberry.interface(
    description=(
        "A mutation that the domain refused; nothing was changed. New kinds may be added: handle this interface."
    )
)
class UserError:
    """What every refusal tells."""

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

    entry: _EntryType | None = strawberry.field(
        description=(
            "The ledger entry that the first use made; null: it made none, or one that the key may not see, which "
            "needs `billing:read`."
        )
    )


@strawberry.type(description="The prepaid credits do not cover the debit, and the meter allows no overages.")
class InsufficientCredits(UserError):
    """See `resolvers.errors.InsufficientCredits`."""

    available: BigInt = strawberry.field(description="The credits that were available at the decision.")
    billing_meter: _MeterType = strawberry.field(description="The meter, as it is now.")


@strawberry.type(description="The debit would pass the meter's spend cap on overages.")
class SpendCapExceeded(UserError):
    """See `resolvers.errors.SpendCapExceeded`."""

    available: BigInt = strawberry.field(
        description="The credits that were available at the decision, overage included."
    )
    billing_meter: _MeterType = strawberry.field(description="The meter, as it is now.")


@strawberry.type(description="The meter's total or used credits would pass 9223372036854775807.")
class AmountOutOfRange(UserError):
    """See `resolvers.errors.AmountOutOfRange`."""


@strawberry.type(description="More is to be given back than is left of the usage event.")
class ExceedsVoidable(UserError):
    """See `resolvers.errors.ExceedsVoidable`."""

    voidable: BigInt = strawberry.field(description="The credits of the event that are not yet given back.")
