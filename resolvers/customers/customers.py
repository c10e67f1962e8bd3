"""Customers: making and changing them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from resolvers import idempotency
from resolvers.actor import Actor, Scope
from resolvers.context import Context
from resolvers.errors import AlreadyExists, CustomerNotFound, IdempotencyConflict, InvalidInput, Refusal
from resolvers.values import KEY_LENGTH, NAME_LENGTH, check_email, check_metadata, check_text
from storage import customers, ids
from storage.customers import CustomerFilter, CustomerRow
from storage.engine.pages import Page
from storage.engine.transactions import Reader, Writer
from storage.engine.types import json_text

CREATE = "createCustomer"


class CustomerOutcome(NamedTuple):
    """A customer after a mutation."""

    customer: CustomerRow
    replayed: bool


async def list_customers(
    context: Context,
    page: Page,
    wanted: CustomerFilter = CustomerFilter(),  # noqa: B008  # It does not change.
) -> Sequence[CustomerRow]:
    """Return a page of the customers that are wanted and that the actor may see, and one more row where there is one.

    Raises `InvalidInput` and `Forbidden`, in this order.
    """
    for field, value in (
        ("email", wanted.email),
        ("namePrefix", wanted.name_prefix),
        ("externalIdPrefix", wanted.external_id_prefix),
    ):
        if value is not None:
            check_text(field, value, length=NAME_LENGTH, may_be_blank=field.endswith("Prefix"))
    actor = context.actor
    actor.require(Scope.BILLING_READ)
    actor.require_organization()
    async with context.database.read() as reader:
        return await customers.page(
            reader,
            page,
            org_id=actor.org_id,
            environment=actor.environment,
            workspace_ids=actor.workspace_ids,
            wanted=wanted,
        )


class NewCustomer(NamedTuple):
    """What a caller says of a customer that is to be made. Each field is a customer's.

    `metadata` is any JSON value, of which only an object is accepted; None stands for an empty one.
    """

    email: str
    name: str | None = None
    external_id: str | None = None
    metadata: Any = {}  # noqa: RUF012  # It is never changed.


async def create_customer(
    context: Context, request: NewCustomer, *, idempotency_key: str | None = None
) -> CustomerOutcome:
    """Make a customer. A replay answers the customer as it is now.

    Only a key that sees the customer or has made it gets the replay; to any other, the request's key is a conflict.

    Raises `InvalidInput`, `Forbidden`, `IdempotencyConflict` and `AlreadyExists`, in this order; for an external id of
    a customer that the key may not see, `InvalidInput` in the place of `AlreadyExists`.
    """
    if request.metadata is None:
        request = request._replace(metadata={})
    _check(request._asdict())
    if idempotency_key is not None:
        check_text("idempotencyKey", idempotency_key, length=KEY_LENGTH)
    actor = context.actor
    actor.require(Scope.BILLING_WRITE)

    # The same in every attempt, so that an attempt finds what an earlier one of this request has made.
    customer_id = ids.new_id(ids.CUSTOMER)

    async def create(writer: Writer) -> CustomerOutcome:
        now = context.clock()
        # Looked up before the key: when a request under the same key has just made it, its key is seen as well.
        taken = await _taken_by(writer, actor, request.external_id)
        earlier = await idempotency.earlier(writer, actor, operation=CREATE, key=idempotency_key)
        if earlier is not None:
            made = await _within_reach(writer, actor, earlier.result_id)
            if made is None or earlier.request_digest != idempotency.digest(request):
                raise IdempotencyConflict(earlier.key)
            return CustomerOutcome(made, replayed=made.id != customer_id)
        if taken is not None:
            raise taken
        row = CustomerRow(
            id=customer_id,
            org_id=actor.org_id,
            environment=actor.environment,
            **request._asdict(),
            created_at=now,
            updated_at=now,
        )
        await customers.insert_customer(writer, row, created_by=actor.key_id, idempotency_key=idempotency_key)
        await idempotency.remember(
            writer, actor, operation=CREATE, key=idempotency_key, request=request, result_id=row.id, now=now
        )
        return CustomerOutcome(row, replayed=False)

    outcome = await context.database.write(create, is_repeatable=idempotency_key is not None)
    context.forget()
    return outcome


async def update_customer(context: Context, *, customer_id: str, changes: Mapping[str, Any]) -> CustomerRow:
    """Change a customer's `email`, `name`, `external_id` or `metadata`; what `changes` leaves out stays.

    None clears `name` and `external_id`; `metadata` is replaced whole.

    Raises `InvalidInput`, `Forbidden`, `CustomerNotFound` and `AlreadyExists`, in this order; for an external id of a
    customer that the key may not see, `InvalidInput` in the place of `AlreadyExists`.
    """
    for field in ("email", "metadata"):
        if field in changes and changes[field] is None:
            raise InvalidInput(field, "must not be null; leave it out to keep it.")
    _check(changes)
    actor = context.actor
    actor.require(Scope.BILLING_WRITE)
    if not ids.is_id(customer_id, ids.CUSTOMER):
        raise CustomerNotFound

    async def change(writer: Writer) -> CustomerRow:
        row = await customers.lock(
            writer,
            customer_id,
            org_id=actor.org_id,
            environment=actor.environment,
            workspace_ids=actor.workspace_ids,
        )
        if row is None:
            raise CustomerNotFound
        after = row._replace(**changes)
        # Metadata is kept as it is written: in Python 1, 1.0 and True are equal.
        if after == row and json_text(after.metadata) == json_text(row.metadata):
            return row
        if after.external_id != row.external_id:
            taken = await _taken_by(writer, actor, after.external_id)
            if taken is not None:
                raise taken
        after = after._replace(updated_at=context.clock())
        await customers.update_customer(writer, after)
        return after

    changed = await context.database.write(change)
    context.forget()
    return changed


async def may_attach(reader: Reader, actor: Actor, customer_id: str) -> bool:
    """Whether there is such a customer, and the actor may give one of its meters to it.

    A key limited to workspaces may name the customers that it sees, and those that it has made: it is by its first
    meter that a customer comes into a workspace.
    """
    return ids.is_id(customer_id, ids.CUSTOMER) and await _within_reach(reader, actor, customer_id) is not None


async def _within_reach(reader: Reader, actor: Actor, customer_id: str) -> CustomerRow | None:
    """Return the customer, if the actor sees it or has made it."""
    return await customers.within_reach(
        reader,
        customer_id,
        org_id=actor.org_id,
        environment=actor.environment,
        workspace_ids=actor.workspace_ids,
        key_id=actor.key_id,
    )


async def _taken_by(reader: Reader, actor: Actor, external_id: str | None) -> Refusal | None:
    """Return the refusal to give the external id once more, if a customer has it.

    A customer that is out of the actor's reach is not named.
    """
    if external_id is None:
        return None
    found = await customers.by_external_ids(reader, [external_id], org_id=actor.org_id, environment=actor.environment)
    if external_id not in found:
        return None
    customer_id = found[external_id].id
    if actor.workspace_ids is not None and await _within_reach(reader, actor, customer_id) is None:
        return InvalidInput("externalId", "is taken by a customer that the key may not see; choose another.")
    return AlreadyExists(f"There is already a customer of external id {external_id!r}.", existing_id=customer_id)


def _check(values: Mapping[str, Any]) -> None:
    """Hold the given values of a customer against their rules. Raises `InvalidInput`."""
    if (email := values.get("email")) is not None:
        check_text("email", email, length=NAME_LENGTH)
        check_email("email", email)
    if (name := values.get("name")) is not None:
        check_text("name", name, length=NAME_LENGTH)
    if (external_id := values.get("external_id")) is not None:
        check_text("externalId", external_id, length=NAME_LENGTH)
    if (metadata := values.get("metadata")) is not None:
        check_metadata("metadata", metadata)
