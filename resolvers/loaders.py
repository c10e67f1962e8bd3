"""The loaders: one for each batched field. Each gathers the keys that a request's fields ask for into one statement.

A loader belongs to one request, so it sees one actor's rows: another tenant's are missing like rows that do not exist.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from datetime import date
from functools import cached_property
from typing import Generic, NamedTuple, TypeVar

from resolvers.actor import Actor
from resolvers.bounds import Bounds
from resolvers.errors import LimitExceeded
from storage import billing_meters, customers, ids, ledger, usage
from storage.billing_meters import BillingMeterRow
from storage.customers import CustomerRow
from storage.engine.columns import Columns
from storage.engine.database import Database
from storage.engine.pages import Page
from storage.ledger import LedgerEntryRow
from storage.usage import UsageDayRow, UsageRange

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
G = TypeVar("G", bound=Hashable)


class Loader(Generic[K, V]):
    """Loads the values of keys by a function that takes many of them.

    The function returns a value or an exception for each key, in their order. It differs from the usual data loader in
    a caller may have many keys, and waits once for all of them. Where one caller at a time is all there is, it need not
    gather: then a caller's keys are fetched at once.
    """

    def __init__(self, fetch: Callable[[list[K]], Awaitable[Sequence[V | Exception]]], *, gathers: bool = True) -> None:
        self._fetch = fetch
        self._gathers = gathers
        self._groups: dict[K, _Group[K, V]] = {}
        self._gathering: _Group[K, V] | None = None

    async def load(self, key: K) -> V:
        """Return the key's value, or raise its exception."""
        (value,) = await self.load_many((key,))
        return value

    async def load_many(self, keys: Sequence[K]) -> list[V]:
        """Return the values of the keys, in their order, or raise the first exception among them."""
        missing = [key for key in dict.fromkeys(keys) if key not in self._groups]
        if missing:
            if self._gathering is None or self._gathering.is_sent:
                self._gathering = _Group()
            self._gathering.keys += missing
            self._groups.update(dict.fromkeys(missing, self._gathering))
        asked = [self._groups[key] for key in keys]
        for group in dict.fromkeys(asked):
            await group.load(self._fetch, gathers=self._gathers)
        values = [group.values[key] for group, key in zip(asked, keys, strict=True)]
        for value in values:
            if isinstance(value, Exception):
                raise value
        return values  # type: ignore[return-value]  # No exception is among them.

    def clear(self) -> None:
        """Forget what was loaded."""
        self._groups = {}
        self._gathering = None


class _Group(Generic[K, V]):
    """Keys whose values are fetched together: by the first caller who waits for them, while the others wait for it."""

    def __init__(self) -> None:
        self.keys: list[K] = []
        self.is_sent = False
        self.values: dict[K, V | Exception] = {}
        self._is_loaded = False
        self._is_loading = False
        self._waiters: list[asyncio.Future[None]] = []

    async def load(self, fetch: Callable[[list[K]], Awaitable[Sequence[V | Exception]]], *, gathers: bool) -> None:
        """Return when the values are there, whichever caller fetches them."""
        while not self._is_loaded:
            if self._is_loading:
                waiter = asyncio.get_running_loop().create_future()
                self._waiters.append(waiter)
                await waiter
                continue
            self._is_loading = True
            try:
                if gathers:
                    # Whatever else of the request is ready to run may add keys: what runs now, and what that starts.
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                await self._load(fetch)
            finally:
                # Where this caller was cancelled, the next one fetches.
                self._is_loading = False
                for waiter in self._waiters:
                    if not waiter.done():
                        waiter.set_result(None)
                self._waiters.clear()

    async def _load(self, fetch: Callable[[list[K]], Awaitable[Sequence[V | Exception]]]) -> None:
        self.is_sent = True
        try:
            self.values = dict(zip(self.keys, await fetch(self.keys), strict=True))
        except Exception as error:  # noqa: BLE001  # It is raised where it was asked for.
            self.values = dict.fromkeys(self.keys, error)
        self._is_loaded = True


class MetersOfCustomer(NamedTuple):
    """The key of a page of a customer's meters."""

    customer_id: str
    page: Page


class UsageOfMeter(NamedTuple):
    """The key of a meter's usage days: inclusive days, and the names asked for, or all."""

    meter_id: str
    first: date
    last: date
    usage_names: tuple[str, ...] | None


class EntriesOfMeter(NamedTuple):
    """The key of a stretch of a meter's ledger, both ends inclusive."""

    meter_id: str
    first_seq: int
    last_seq: int


class Loaders:
    """The loaders of one request, each made when it is first used."""

    def __init__(self, database: Database, actor: Actor, bounds: Bounds, *, gathers: bool = True) -> None:
        self._fetches = _Fetches(database, actor, bounds)
        self._gathers = gathers

    @cached_property
    def customer_by_id(self) -> Loader[str, CustomerRow | None]:
        """The customer of an id."""
        return self._loader(self._fetches.customers_by_ids)

    @cached_property
    def customer_by_external_id(self) -> Loader[str, CustomerRow | None]:
        """The customer of an external id."""
        return self._loader(self._fetches.customers_by_external_ids)

    @cached_property
    def billing_meter_by_id(self) -> Loader[str, BillingMeterRow | None]:
        """The meter of an id."""
        return self._loader(self._fetches.billing_meters_by_ids)

    @cached_property
    def billing_meter_by_names(self) -> Loader[tuple[str, str], BillingMeterRow | None]:
        """The meter of a workspace and an external meter id."""
        return self._loader(self._fetches.billing_meters_by_names)

    @cached_property
    def billing_meters_of_customer(self) -> Loader[MetersOfCustomer, list[BillingMeterRow]]:
        """A page of a customer's meters."""
        return self._loader(self._fetches.billing_meters_of_customers)

    @cached_property
    def usage_of_meter(self) -> Loader[UsageOfMeter, Columns[UsageDayRow]]:
        """A meter's usage days. Raises `LimitExceeded`."""
        return self._loader(self._fetches.usage_of_meters)

    @cached_property
    def ledger_entry_by_id(self) -> Loader[tuple[str, int], LedgerEntryRow | None]:
        """The ledger entry of a meter's id and a `seq`."""
        return self._loader(self._fetches.ledger_entries_by_ids)

    @cached_property
    def entries_of_meter(self) -> Loader[EntriesOfMeter, list[LedgerEntryRow]]:
        """A stretch of a meter's ledger. Raises `LimitExceeded`."""
        return self._loader(self._fetches.entries_of_meters)

    def _loader(self, fetch: Callable[[list[K]], Awaitable[Sequence[V | Exception]]]) -> Loader[K, V]:
        return Loader(fetch, gathers=self._gathers)

    def clear(self) -> None:
        """Forget what was read, because something was written."""
        for loader in vars(self).values():
            if isinstance(loader, Loader):
                loader.clear()


class _Fetches:
    """What the loaders of one request fetch by.

    It knows none of them: what leads back to itself stays, with all that was read, until Python searches for cycles.
    """

    def __init__(self, database: Database, actor: Actor, bounds: Bounds) -> None:
        self._database = database
        self._actor = actor
        self._bounds = bounds

    async def customers_by_ids(self, keys: list[str]) -> list[CustomerRow | None]:
        wanted = [key for key in keys if ids.is_id(key, ids.CUSTOMER) and self._actor.may_see_customer(key)]
        if not wanted:
            return [None] * len(keys)
        async with self._database.read() as reader:
            found = await customers.by_ids(
                reader,
                wanted,
                org_id=self._actor.org_id,
                environment=self._actor.environment,
                workspace_ids=self._actor.workspace_ids,
            )
        return [found.get(key) for key in keys]

    async def customers_by_external_ids(self, keys: list[str]) -> list[CustomerRow | None]:
        self._actor.require_organization()
        async with self._database.read() as reader:
            found = await customers.by_external_ids(
                reader,
                keys,
                org_id=self._actor.org_id,
                environment=self._actor.environment,
                workspace_ids=self._actor.workspace_ids,
            )
        return [found.get(key) for key in keys]

    async def billing_meters_by_ids(self, keys: list[str]) -> list[BillingMeterRow | None]:
        wanted = [key for key in keys if ids.is_id(key, ids.BILLING_METER)]
        if not wanted:
            return [None] * len(keys)
        async with self._database.read() as reader:
            found = await billing_meters.by_ids(
                reader,
                wanted,
                org_id=self._actor.org_id,
                environment=self._actor.environment,
                workspace_ids=self._actor.workspace_ids,
            )
        return [self._seen(found.get(key)) for key in keys]

    async def billing_meters_by_names(self, keys: list[tuple[str, str]]) -> list[BillingMeterRow | None]:
        async with self._database.read() as reader:
            found = await billing_meters.by_names(
                reader, keys, org_id=self._actor.org_id, environment=self._actor.environment
            )
        return [self._seen(found.get(key)) for key in keys]

    def _seen(self, meter: BillingMeterRow | None) -> BillingMeterRow | None:
        """Return the meter, unless it is billed to a customer that the actor may not see."""
        return meter if meter is not None and self._actor.may_see_customer(meter.customer_id) else None

    async def billing_meters_of_customers(self, keys: list[MetersOfCustomer]) -> list[list[BillingMeterRow]]:
        async def load(page: Page, some: Sequence[MetersOfCustomer]) -> Sequence[list[BillingMeterRow]]:
            customer_ids = [key.customer_id for key in some]
            async with self._database.read() as reader:
                found = await billing_meters.pages_by_customers(
                    reader, customer_ids, page, workspace_ids=self._actor.workspace_ids
                )
            return [found[customer_id] for customer_id in customer_ids]

        return await _by_group(keys, lambda key: key.page, load)

    async def usage_of_meters(self, keys: list[UsageOfMeter]) -> list[Columns[UsageDayRow] | LimitExceeded]:
        async def load(
            usage_names: tuple[str, ...] | None, some: Sequence[UsageOfMeter]
        ) -> Sequence[Columns[UsageDayRow] | LimitExceeded]:
            bounds = self._bounds
            ranges = [UsageRange(key.meter_id, key.first, key.last) for key in some]
            # One day too many shows that there are too many.
            most = bounds.request_usage_days + 1
            async with self._database.read() as reader:
                rows = await usage.columns_of(
                    reader, ranges, usage_names=usage_names, max_of_range=bounds.usage_days + 1, most=most
                )
            try:
                found = await usage.arranged(rows, ranges, self._database.dialect, most=most)
            except usage.TooManyDays:
                # Which meters' days were cut off is not known, so none may be taken for whole.
                return [_too_many_days(bounds)] * len(some)
            return [days if len(days) <= bounds.usage_days else _too_many_days(bounds) for days in found]

        return await _by_group(keys, lambda key: key.usage_names, load)

    async def ledger_entries_by_ids(self, keys: list[tuple[str, int]]) -> list[LedgerEntryRow | None]:
        async with self._database.read() as reader:
            found = await ledger.by_ids(
                reader,
                keys,
                org_id=self._actor.org_id,
                environment=self._actor.environment,
                workspace_ids=self._actor.workspace_ids,
                customer_id=self._actor.customer_id,
            )
        return [found.get(key) for key in keys]

    async def entries_of_meters(self, keys: list[EntriesOfMeter]) -> Sequence[list[LedgerEntryRow] | LimitExceeded]:
        most = self._bounds.request_entries
        if sum(max(0, key.last_seq - key.first_seq + 1) for key in keys) > most:
            too_many = LimitExceeded(f"The ledgers of one request answer at most {most} entries.")
            return [too_many] * len(keys)
        async with self._database.read() as reader:
            return await ledger.by_ranges(reader, keys)


def _too_many_days(bounds: Bounds) -> LimitExceeded:
    return LimitExceeded(
        f"usage answers at most {bounds.usage_days} usage days a meter and {bounds.request_usage_days} a request; "
        "ask for fewer days or names."
    )


async def _by_group(
    keys: Sequence[K],
    group_of: Callable[[K], G],
    load: Callable[[G, Sequence[K]], Awaitable[Sequence[V]]],
) -> list[V]:
    """Load the keys group by group, as most requests have one, and return the values in the order of the keys."""
    groups: dict[G, list[int]] = {}
    for place, group in enumerate(map(group_of, keys)):
        groups.setdefault(group, []).append(place)
    if len(groups) == 1:
        return list(await load(group, keys))
    values: dict[int, V] = {}
    for group, places in groups.items():
        values.update(zip(places, await load(group, [keys[place] for place in places]), strict=True))
    return [values[place] for place in range(len(keys))]
