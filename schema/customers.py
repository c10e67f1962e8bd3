"""Customers: reading, making and changing them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

import strawberry
from strawberry.scalars import JSON

from resolvers.context import Context
from resolvers.customers import customers
from resolvers.reading.keys import MetersOfCustomer
from resolvers.values import NAME_LENGTH, ORG_LENGTH, check_text
from schema.engine.execution.resolving import DIRECT, batched
from schema.engine.limits.sizes import text
from schema.enums import Environment
from schema.errors import AlreadyExists, CustomerNotFound, IdempotencyConflict, InvalidInput
from schema.info import Filter, Info, changes_of, given, metadata_of, values_of
from schema.meters.billing_meters import BillingMeter, meters_connection
from schema.relay import PAGE, After, Before, Connection, First, Last, Node, connection_of, page_arguments
from storage import ids
from storage.customers import CustomerFilter as FilterValues
from storage.customers import CustomerRow


async def _meters_of(
    context: Context,
    customers: Sequence["Customer"],
    first: First = strawberry.UNSET,
    after: After = strawberry.UNSET,
    last: Last = strawberry.UNSET,
    before: Before = strawberry.UNSET,
) -> list[Connection[BillingMeter]]:
    """Return a page of the meters of each customer."""
    arguments = page_arguments(context, ids.BILLING_METER, first, after, last, before)
    page = arguments.page
    pages = await context.reading.billing_meters_of_customer.load_many(
        [MetersOfCustomer(customer.id, page) for customer in customers]
    )
    return [meters_connection(arguments, rows) for rows in pages]


@strawberry.type(description="The person or organization who pays.")
class Customer(Node, record=CustomerRow):
    """See `storage.customers.CustomerRow`."""

    org_id: strawberry.ID = strawberry.field(
        description="The id of the organization that the customer belongs to.", metadata=text(ORG_LENGTH)
    )
    email: str = strawberry.field(description="The email address, as it was given.", metadata=text(NAME_LENGTH))
    name: str | None = strawberry.field(
        description="The name for people to read; null: none was given.", metadata=text(NAME_LENGTH)
    )
    external_id: str | None = strawberry.field(
        description="The caller's name of the customer, unique in the organization and environment.",
        metadata=text(NAME_LENGTH),
    )
    metadata: JSON = batched(
        metadata_of, description="What the caller keeps with the customer: a JSON object of at most 16 KiB."
    )
    environment: Environment = strawberry.field(description="The world that the customer belongs to.")
    created_at: datetime = strawberry.field(description="When the customer was made.")
    updated_at: datetime = strawberry.field(description="When the customer last changed.")

    billing_meters: Connection[BillingMeter] = batched(
        _meters_of, description="The billing meters that the customer pays for, newest first.", metadata=PAGE
    )


@strawberry.input(description="Which customers to list; what is left out does not restrict them, and null is refused.")
class CustomerFilter(Filter):
    """See `storage.customers.CustomerFilter`."""

    email: str | None = strawberry.field(
        default=strawberry.UNSET, description="Only customers of this email address, without regard to case."
    )
    name_prefix: str | None = strawberry.field(
        default=strawberry.UNSET, description="Only customers whose name begins so, without regard to case."
    )
    external_id_prefix: str | None = strawberry.field(
        default=strawberry.UNSET, description="Only customers whose external id begins so."
    )
    created_from: datetime | None = strawberry.field(
        default=strawberry.UNSET, description="Only customers made at this moment or later."
    )
    created_before: datetime | None = strawberry.field(
        default=strawberry.UNSET, description="Only customers made before this moment."
    )

    def wanted(self) -> FilterValues:
        """Return the filter as the repository takes it."""
        return FilterValues(
            email=given(self.email),
            name_prefix=given(self.name_prefix),
            external_id_prefix=given(self.external_id_prefix),
            created_from=given(self.created_from),
            created_before=given(self.created_before),
        )


@strawberry.type
class CustomerQuery:
    """The queries of customers."""

    @strawberry.field(description="The customer of this id; null: there is none.", metadata=DIRECT)
    async def customer(
        self, info: Info, id: Annotated[strawberry.ID, strawberry.argument(description="The customer's id.")]
    ) -> Customer | None:
        """Return the customer of this id."""
        row = await info.context.reading.customer_by_id.load(id)
        return Customer.of(row) if row is not None else None

    @strawberry.field(description="The customer of this external id; null: there is none.", metadata=DIRECT)
    async def customer_by_external_id(
        self,
        info: Info,
        external_id: Annotated[
            str, strawberry.argument(description="The caller's name of the customer, 1 to 256 characters.")
        ],
    ) -> Customer | None:
        """Return the customer of this external id."""
        check_text("externalId", external_id, length=NAME_LENGTH)
        row = await info.context.reading.customer_by_external_id.load(external_id)
        return Customer.of(row) if row is not None else None

    @strawberry.field(description="The customers, newest first.", metadata=DIRECT | PAGE)
    async def customers(
        self,
        info: Info,
        first: First = strawberry.UNSET,
        after: After = strawberry.UNSET,
        last: Last = strawberry.UNSET,
        before: Before = strawberry.UNSET,
        filter: Annotated[
            CustomerFilter | None,
            strawberry.argument(description="Which customers to list; left out: all. Null is refused."),
        ] = strawberry.UNSET,
    ) -> Connection[Customer]:
        """Return a page of the customers."""
        arguments = page_arguments(info.context, ids.CUSTOMER, first, after, last, before)
        wanted = given(filter) or CustomerFilter()
        rows = await customers.list_customers(info.context, arguments.page, wanted.wanted())
        return connection_of(arguments, rows, Customer, id_of=lambda row: row.id)


@strawberry.input(description="A new customer.")
class CreateCustomerInput:
    """The fields of a new customer."""

    email: str = strawberry.field(description="A valid email address.")
    name: str | None = strawberry.field(
        default=strawberry.UNSET,
        description="The name for people to read, 1 to 256 characters; left out or null: none.",
    )
    external_id: str | None = strawberry.field(
        default=strawberry.UNSET,
        description=(
            "The caller's name of the customer, 1 to 256 characters, unique in the organization and environment."
        ),
    )
    metadata: JSON | None = strawberry.field(
        default=strawberry.UNSET, description="A JSON object of at most 16 KiB; left out or null: an empty one."
    )
    idempotency_key: str | None = strawberry.field(
        default=strawberry.UNSET,
        description=(
            "The caller's name of this request, 1 to 255 characters: repeating it answers the customer it made."
        ),
    )


@strawberry.input(description="A change of a customer; what is left out stays.")
class UpdateCustomerInput:
    """The fields of a customer that can be changed."""

    id: strawberry.ID = strawberry.field(description="The customer's id.")
    email: strawberry.Maybe[str | None] = strawberry.field(
        default=None, description="A valid email address; null is refused."
    )
    name: strawberry.Maybe[str | None] = strawberry.field(
        default=None, description="The name for people to read, 1 to 256 characters; null clears it."
    )
    external_id: strawberry.Maybe[str | None] = strawberry.field(
        default=None, description="The caller's name of the customer, 1 to 256 characters; null clears it."
    )
    metadata: strawberry.Maybe[JSON | None] = strawberry.field(
        default=None, description="A JSON object of at most 16 KiB that replaces the whole of it; null is refused."
    )


@strawberry.type(description="A customer was made.")
class CreateCustomerSuccess:
    """See `resolvers.customers.CustomerOutcome`."""

    customer: Customer = strawberry.field(description="The customer, as it is now.")
    replayed: bool = strawberry.field(description="Whether an earlier request under the same key had made it.")


@strawberry.type(description="A customer was changed, or already was as wanted.")
class UpdateCustomerSuccess:
    """See `resolvers.customers.update_customer`."""

    customer: Customer = strawberry.field(description="The customer, as it is now.")


CreateCustomerResult = Annotated[
    CreateCustomerSuccess | InvalidInput | AlreadyExists | IdempotencyConflict,
    strawberry.union("CreateCustomerResult", description="The new customer, or why there is none."),
]
UpdateCustomerResult = Annotated[
    UpdateCustomerSuccess | InvalidInput | CustomerNotFound | AlreadyExists,
    strawberry.union("UpdateCustomerResult", description="The changed customer, or why it was not changed."),
]


@strawberry.type
class CustomerMutation:
    """The mutations of customers."""

    @strawberry.mutation(description="Makes a customer. Needs `billing:write`.", metadata=DIRECT)
    async def create_customer(
        self,
        info: Info,
        input: Annotated[CreateCustomerInput, strawberry.argument(description="The new customer.")],
    ) -> CreateCustomerResult | None:
        """Make the customer."""
        values = values_of(input)
        key = values.pop("idempotency_key", None)
        outcome = await customers.create_customer(info.context, customers.NewCustomer(**values), idempotency_key=key)
        return CreateCustomerSuccess(customer=Customer.of(outcome.customer), replayed=outcome.replayed)

    @strawberry.mutation(description="Changes a customer. Needs `billing:write`.", metadata=DIRECT)
    async def update_customer(
        self,
        info: Info,
        input: Annotated[
            UpdateCustomerInput, strawberry.argument(description="The customer, and what to change of it.")
        ],
    ) -> UpdateCustomerResult | None:
        """Change the customer."""
        row = await customers.update_customer(
            info.context,
            customer_id=input.id,
            changes=changes_of(input),
        )
        return UpdateCustomerSuccess(customer=Customer.of(row))
