"""Customers' sessions: making them."""

from datetime import datetime
from typing import Annotated

import strawberry

from resolvers.customers.sessions import DEFAULT_SECONDS, create_customer_session
from schema.customers import Customer
from schema.engine.execution.resolving import DIRECT
from schema.engine.limits.sizes import of_bytes
from schema.errors import CustomerNotFound, InvalidInput
from schema.info import Info


@strawberry.input(description="A new session of a customer.")
class CreateCustomerSessionInput:
    """The fields of a new session."""

    customer_id: strawberry.ID = strawberry.field(description="The customer's id.")
    expires_in_seconds: int = strawberry.field(
        default=DEFAULT_SECONDS, description="How long the session lives, in seconds: 60 to 86,400."
    )


@strawberry.type(description="A session was made.")
class CreateCustomerSessionSuccess:
    """See `resolvers.customers.sessions.CustomerSession`."""

    customer: Customer = strawberry.field(description="The customer that the session is for.")
    token: str = strawberry.field(
        description="The token to send in the place of a key, `cst_live_…` or `cst_test_…`. It is shown this once.",
        metadata=of_bytes(130),
    )
    expires_at: datetime = strawberry.field(
        description="When the session ends: after the time that was asked for, or earlier with the key that made it."
    )


CreateCustomerSessionResult = Annotated[
    CreateCustomerSessionSuccess | InvalidInput | CustomerNotFound,
    strawberry.union("CreateCustomerSessionResult", description="The new session, or why there is none."),
]


@strawberry.type
class CustomerSessionMutation:
    """The mutation of customers' sessions."""

    @strawberry.mutation(
        description=(
            "Makes a session for a customer's browser: a token that may read this customer, its billing meters, their "
            "usage and ledgers, and nothing else. Needs `billing:write` and `billing:read`."
        ),
        metadata=DIRECT,
    )
    async def create_customer_session(
        self,
        info: Info,
        input: Annotated[CreateCustomerSessionInput, strawberry.argument(description="The new session.")],
    ) -> CreateCustomerSessionResult | None:
        """Make the session."""
        session = await create_customer_session(
            info.context, customer_id=input.customer_id, expires_in_seconds=input.expires_in_seconds
        )
        return CreateCustomerSessionSuccess(
            customer=Customer.of(session.customer), token=session.token, expires_at=session.expires_at
        )
