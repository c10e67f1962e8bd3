"""The comparator "plain": an ordinary application, as the documentation of Strawberry and SQLAlchemy teaches it.

Strawberry's own ASGI application, ORM classes, an `AsyncSession` a request, a DataLoader an edge. It has Tollgate's
tables and, for what the benchmark asks of it, Tollgate's schema and rules; each mutation is one transaction that locks
its meter.
"""

import hashlib
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Annotated, Any, NewType

import strawberry
from sqlalchemy import BigInteger, Select, event, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.websockets import WebSocket
from strawberry.asgi import GraphQL
from strawberry.dataloader import DataLoader
from strawberry.schema.config import StrawberryConfig

from resolvers.rules.commands import gateway_key
from resolvers.values import day_of
from storage.engine.types import Day, Instant, JsonText

MOST = 2**63 - 1


class Base(DeclarativeBase):
    """The base of the ORM classes. Credits need 64 bits, and the times their own type on SQLite."""

    type_annotation_map = {int: BigInteger(), datetime: Instant(), date: Day(), dict[str, Any]: JsonText()}  # noqa: RUF012  # As SQLAlchemy teaches.


class ApiKey(Base):
    """See `storage.api_keys.api_keys`."""

    __tablename__ = "api_keys"
    id: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str]
    org_id: Mapped[str]
    environment: Mapped[str]


class Customer(Base):
    """See `storage.customers.customers`."""

    __tablename__ = "customers"
    id: Mapped[str] = mapped_column(primary_key=True)
    org_id: Mapped[str]
    environment: Mapped[str]
    email: Mapped[str]
    name: Mapped[str | None]
    external_id: Mapped[str | None]
    created_at: Mapped[datetime]


class Meter(Base):
    """See `storage.meters.billing_meters.billing_meters`."""

    __tablename__ = "billing_meters"
    id: Mapped[str] = mapped_column(primary_key=True)
    org_id: Mapped[str]
    environment: Mapped[str]
    workspace_id: Mapped[str]
    external_meter_id: Mapped[str]
    customer_id: Mapped[str | None]
    timezone: Mapped[str]
    total_credits: Mapped[int]
    used_credits: Mapped[int]
    allow_overages: Mapped[bool]
    spend_cap: Mapped[int | None]
    limit_credits: Mapped[int | None]
    last_seq: Mapped[int]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class Usage(Base):
    """See `storage.meters.usage.usage_days`."""

    __tablename__ = "usage_days"
    meter_id: Mapped[str] = mapped_column(primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True)
    usage_name: Mapped[str] = mapped_column(primary_key=True)
    total_usage: Mapped[int]


class Entry(Base):
    """See `storage.meters.ledger.ledger_entries`."""

    __tablename__ = "ledger_entries"
    meter_id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    key: Mapped[str | None]
    amount: Mapped[int]
    total_credits_after: Mapped[int]
    used_credits_after: Mapped[int]
    limit_credits: Mapped[int | None]
    usage_name: Mapped[str | None]
    day: Mapped[date | None]
    requested_amount: Mapped[int | None]
    policy: Mapped[str | None]
    sent_at: Mapped[datetime | None]
    recorded_at: Mapped[datetime]
    recorded_by: Mapped[str]
    # `metadata` is a name of SQLAlchemy's own.
    extra: Mapped[dict[str, Any]] = mapped_column("metadata")


@dataclass
class Context:
    """What one request has at hand."""

    session: AsyncSession
    key: ApiKey
    meters: "DataLoader[str, Meter | None]"
    meters_of_customer: "DataLoader[str, list[Meter]]"
    usage_of_meter: "DataLoader[tuple[str, date, date], list[Usage]]"


Info = strawberry.Info[Context, None]

BigInt = NewType("BigInt", int)


@strawberry.type(name="UsageDay")
class UsageType:
    """A usage day as clients see it."""

    day: date
    total_billing_usage: BigInt
    billing_usage_name: str

    @classmethod
    def of(cls, usage: Usage) -> "UsageType":
        """Convert the row."""
        return cls(day=usage.day, total_billing_usage=BigInt(usage.total_usage), billing_usage_name=usage.usage_name)


@strawberry.type(name="BillingMeter")
class MeterType:
    """A meter as clients see it."""

    id: strawberry.ID
    workspace_id: str
    external_meter_id: str
    timezone: str
    total_credits: BigInt
    used_credits: BigInt
    allow_overages: bool
    spend_cap: BigInt | None
    created_at: datetime
    updated_at: datetime
    available_credits: BigInt | None

    @strawberry.field
    async def usage(
        self,
        info: Info,
        first: Annotated[date, strawberry.argument(name="from")],
        last: Annotated[date, strawberry.argument(name="to")],
    ) -> list[UsageType]:
        """Load the usage days between two days, both inclusive."""
        days = await info.context.usage_of_meter.load((self.id, first, last))
        return [UsageType.of(day) for day in days]

    @classmethod
    def of(cls, meter: Meter) -> "MeterType":
        """Convert the row."""
        return cls(
            id=strawberry.ID(meter.id),
            workspace_id=meter.workspace_id,
            external_meter_id=meter.external_meter_id,
            timezone=meter.timezone,
            total_credits=BigInt(meter.total_credits),
            used_credits=BigInt(meter.used_credits),
            allow_overages=meter.allow_overages,
            spend_cap=None if meter.spend_cap is None else BigInt(meter.spend_cap),
            created_at=meter.created_at,
            updated_at=meter.updated_at,
            available_credits=(
                None if meter.limit_credits is None else BigInt(max(0, meter.limit_credits - meter.used_credits))
            ),
        )


@strawberry.type
class BillingMeterConnection:
    """A page of meters."""

    nodes: list[MeterType]


@strawberry.type(name="Customer")
class CustomerType:
    """A customer as clients see it."""

    id: strawberry.ID
    email: str
    name: str | None
    external_id: str | None
    created_at: datetime

    @strawberry.field
    async def billing_meters(self, info: Info, first: int = 25) -> BillingMeterConnection:
        """Load the newest meters."""
        meters = await info.context.meters_of_customer.load(self.id)
        return BillingMeterConnection(nodes=[MeterType.of(meter) for meter in meters[:first]])

    @classmethod
    def of(cls, customer: Customer) -> "CustomerType":
        """Convert the row."""
        return cls(
            id=strawberry.ID(customer.id),
            email=customer.email,
            name=customer.name,
            external_id=customer.external_id,
            created_at=customer.created_at,
        )


@strawberry.type
class CustomerConnection:
    """A page of customers."""

    nodes: list[CustomerType]


@strawberry.type(name="LedgerEntry")
class EntryType:
    """An entry as clients see it, with the edge to its meter."""

    id: strawberry.ID
    amount: BigInt
    meter_id: strawberry.Private[str]

    @strawberry.field
    async def billing_meter(self, info: Info) -> MeterType | None:
        """Load the meter."""
        meter = await info.context.meters.load(self.meter_id)
        return None if meter is None else MeterType.of(meter)

    @classmethod
    def of(cls, entry: Entry) -> "EntryType":
        """Convert the row."""
        return cls(
            id=strawberry.ID(f"{entry.meter_id}_{entry.seq}"), amount=BigInt(entry.amount), meter_id=entry.meter_id
        )


@strawberry.interface
class UserError:
    """A refusal."""

    code: str
    message: str


@strawberry.type
class Refused(UserError):
    """Any refusal: the benchmark meets none."""


@strawberry.type
class RecordUsageSuccess:
    """A recorded event."""

    billing_meter: MeterType
    accepted: BigInt
    replayed: bool
    entry: EntryType


@strawberry.type
class RefillBillingMeterSuccess:
    """A refilled meter."""

    billing_meter: MeterType
    entry: EntryType


@strawberry.input
class RecordUsageInput:
    """A usage event."""

    workspace_id: str
    external_meter_id: str
    event_id: str
    amount: BigInt
    usage_name: str = "default"


@strawberry.input
class RefillBillingMeterInput:
    """A refill."""

    workspace_id: str
    external_meter_id: str
    refill: BigInt


def _names(key: ApiKey, workspace_id: str, external_meter_id: str) -> Sequence[Any]:
    return (
        Meter.org_id == key.org_id,
        Meter.environment == key.environment,
        Meter.workspace_id == workspace_id,
        Meter.external_meter_id == external_meter_id,
    )


def _customers(key: ApiKey) -> Select[Customer]:
    return select(Customer).where(Customer.org_id == key.org_id, Customer.environment == key.environment)


async def _lock(context: Context, workspace_id: str, external_meter_id: str) -> Meter | None:
    statement = select(Meter).where(*_names(context.key, workspace_id, external_meter_id)).with_for_update()
    return await context.session.scalar(statement)


def _entry(context: Context, meter: Meter, kind: str, amount: int, **values: Any) -> Entry:
    return Entry(
        meter_id=meter.id,
        seq=meter.last_seq,
        kind=kind,
        amount=amount,
        total_credits_after=meter.total_credits,
        used_credits_after=meter.used_credits,
        limit_credits=meter.limit_credits,
        recorded_at=meter.updated_at,
        recorded_by=context.key.id,
        extra={},
        **values,
    )


@strawberry.type
class Query:
    """The queries."""

    @strawberry.field
    async def billing_meter(self, info: Info, workspace_id: str, external_meter_id: str) -> MeterType | None:
        """Look up a meter by its names."""
        context = info.context
        async with context.session as session:
            meter = await session.scalar(select(Meter).where(*_names(context.key, workspace_id, external_meter_id)))
        return None if meter is None else MeterType.of(meter)

    @strawberry.field
    async def customers(self, info: Info, first: int = 25) -> CustomerConnection:
        """List the newest customers."""
        context = info.context
        statement = _customers(context.key).order_by(Customer.id.desc()).limit(first)
        async with context.session as session:
            found = (await session.scalars(statement)).all()
        return CustomerConnection(nodes=[CustomerType.of(customer) for customer in found])

    @strawberry.field
    async def customer_by_external_id(self, info: Info, external_id: str) -> CustomerType | None:
        """Look up a customer by the caller's name of it."""
        context = info.context
        async with context.session as session:
            customer = await session.scalar(_customers(context.key).where(Customer.external_id == external_id))
        return None if customer is None else CustomerType.of(customer)


@strawberry.type
class Mutation:
    """The mutations."""

    @strawberry.mutation
    async def refill_billing_meter(
        self, info: Info, input: RefillBillingMeterInput
    ) -> Annotated[RefillBillingMeterSuccess | Refused, strawberry.union("RefillBillingMeterResult")]:
        """Add to a meter's total."""
        context = info.context
        async with context.session.begin():
            meter = await _lock(context, input.workspace_id, input.external_meter_id)
            if meter is None:
                return Refused(code="BILLING_METER_NOT_FOUND", message="There is no such meter.")
            meter.total_credits += input.refill
            if meter.limit_credits is not None:
                meter.limit_credits = min(meter.limit_credits + input.refill, MOST)
            meter.last_seq += 1
            meter.updated_at = datetime.now(UTC)
            entry = _entry(context, meter, "refill", input.refill, key=gateway_key())
            context.session.add(entry)
        return RefillBillingMeterSuccess(billing_meter=MeterType.of(meter), entry=EntryType.of(entry))

    @strawberry.mutation
    async def record_usage(
        self, info: Info, input: RecordUsageInput
    ) -> Annotated[RecordUsageSuccess | Refused, strawberry.union("RecordUsageResult")]:
        """Record a usage event by the policy REJECT."""
        context = info.context
        session = context.session
        async with session.begin():
            meter = await _lock(context, input.workspace_id, input.external_meter_id)
            if meter is None:
                return Refused(code="BILLING_METER_NOT_FOUND", message="There is no such meter.")
            earlier = await session.scalar(
                select(Entry).where(Entry.meter_id == meter.id, Entry.kind == "usage", Entry.key == input.event_id)
            )
            if earlier is not None:
                if (earlier.requested_amount, earlier.usage_name) != (input.amount, input.usage_name):
                    return Refused(code="IDEMPOTENCY_CONFLICT", message="The event id was used before.")
                return _recorded(meter, earlier, replayed=True)
            if meter.limit_credits is not None and meter.limit_credits - meter.used_credits < input.amount:
                return Refused(code="INSUFFICIENT_CREDITS", message="The credits do not cover it.")
            now = datetime.now(UTC)
            meter.used_credits += input.amount
            meter.last_seq += 1
            meter.updated_at = now
            day = day_of(now, meter.timezone)
            usage = await session.get(Usage, (meter.id, day, input.usage_name))
            if usage is None:
                session.add(Usage(meter_id=meter.id, day=day, usage_name=input.usage_name, total_usage=input.amount))
            else:
                usage.total_usage += input.amount
            entry = _entry(
                context,
                meter,
                "usage",
                input.amount,
                key=input.event_id,
                usage_name=input.usage_name,
                day=day,
                requested_amount=input.amount,
                policy="reject",
            )
            session.add(entry)
        return _recorded(meter, entry, replayed=False)


def _recorded(meter: Meter, entry: Entry, *, replayed: bool) -> RecordUsageSuccess:
    return RecordUsageSuccess(
        billing_meter=MeterType.of(meter),
        accepted=BigInt(entry.amount),
        replayed=replayed,
        entry=EntryType.of(entry),
    )


def _engine(url: str) -> AsyncEngine:
    if not url.startswith("sqlite"):
        return create_async_engine(url)
    engine = create_async_engine(url, connect_args={"isolation_level": None, "timeout": 30})

    @event.listens_for(engine.sync_engine, "connect")
    def set_pragmas(connection: Any, _record: object) -> None:
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Any) -> None:
        # Without it, two requests read the same balance and one of the debits is lost.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


class Application(GraphQL[Context, None]):
    """Strawberry's own view, with the request's session."""

    def __init__(self, sessions: "async_sessionmaker[AsyncSession]", keys: dict[str, ApiKey]) -> None:
        super().__init__(
            strawberry.Schema(
                Query,
                Mutation,
                config=StrawberryConfig(
                    scalar_map={BigInt: strawberry.scalar(name="BigInt", serialize=str, parse_value=int)}
                ),
            )
        )
        self._sessions = sessions
        self._keys = keys

    async def get_context(self, request: Request | WebSocket, response: Response | WebSocket) -> Context:  # noqa: ARG002  # Its signature.
        """Make the context of one request; its session's connection goes back when its transaction ends."""
        key = request.headers["authorization"].removeprefix("Bearer ")
        session = self._sessions()

        async def load_meters(ids: list[str]) -> list[Meter | None]:
            async with self._sessions() as own:
                found = {meter.id: meter for meter in await own.scalars(select(Meter).where(Meter.id.in_(ids)))}
            return [found.get(id_) for id_ in ids]

        async def load_meters_of_customers(ids: list[str]) -> list[list[Meter]]:
            found: dict[str | None, list[Meter]] = {id_: [] for id_ in ids}
            async with self._sessions() as own:
                for meter in await own.scalars(
                    select(Meter).where(Meter.customer_id.in_(ids)).order_by(Meter.id.desc())
                ):
                    found[meter.customer_id].append(meter)
            return [found[id_] for id_ in ids]

        async def load_usage(keys: list[tuple[str, date, date]]) -> list[list[Usage]]:
            found: dict[tuple[str, date, date], list[Usage]] = {key: [] for key in keys}
            async with self._sessions() as own:
                for first, last in {key[1:] for key in keys}:
                    ids = [key[0] for key in keys if key[1:] == (first, last)]
                    for usage in await own.scalars(
                        select(Usage)
                        .where(Usage.meter_id.in_(ids), Usage.day.between(first, last))
                        .order_by(Usage.day, Usage.usage_name)
                    ):
                        found[usage.meter_id, first, last].append(usage)
            return [found[key] for key in keys]

        return Context(
            session,
            self._keys[hashlib.sha256(key.encode()).hexdigest()],
            DataLoader(load_meters),
            DataLoader(load_meters_of_customers),
            DataLoader(load_usage),
        )


def create_app() -> Starlette:
    """Return the application on the database that `TOLLGATE_DATABASE_URL` names."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        engine = _engine(os.environ["TOLLGATE_DATABASE_URL"])
        sessions = async_sessionmaker(engine, expire_on_commit=False)
        async with sessions() as session:
            keys = {key.digest: key for key in await session.scalars(select(ApiKey))}
        app.router.routes.append(Route("/graphql", Application(sessions, keys)))
        yield
        await engine.dispose()

    return Starlette(lifespan=lifespan)
