"""The loaders: one for each batched field. Each gathers the keys that a request's fields ask for into one statement.

A loader belongs to one request, so it sees one actor's rows: another tenant's are missing like rows that do not exist.
"""

from collections.abc import Awaitable, Callable, Hashable, Sequence
from datetime import date
from functools import cached_property
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

from resolvers.actor import Actor
from resolvers.bounds import Bounds
from resolvers.errors import LimitExceeded
from resolvers.reading.loading import Loader
from resolvers.reading.long_values import LongValue, values_of
from resolvers.reading.moment import Moment
from resolvers.rules.credits import Credits, by_meter
from resolvers.rules.due import Due, due_of
from storage import billing_meters, credit_grants, customers, holds, ids, ledger, usage
from storage.billing_meters import BillingMeterRow
from storage.credit_grants import CreditGrantRow, GrantFilter
from storage.customers import CustomerRow
from storage.engine.columns import Columns
from storage.engine.database import Database
from storage.engine.pages import Page, on_page
from storage.engine.transactions import Reader
from storage.holds import HoldRow, HoldState
from storage.ledger import LedgerEntryRow
from storage.usage import UsageDayRow, UsageRange

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
G = TypeVar("G", bound=Hashable)

_seq = attrgetter("seq")


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


class GrantsOfMeter(NamedTuple):
    """The key of a page of a meter's grants."""

    meter_id: str
    page: Page
    wanted: GrantFilter


class HoldsOfMeter(NamedTuple):
    """The key of a page of a meter's holds; of all states where none is given."""

    meter_id: str
    page: Page
    state: HoldState | None


class Loaders:
    """The loaders of one request, each made when it is first used."""

    def __init__(
        self,
        database: Database,
        actor: Actor,
        bounds: Bounds,
        moment: Moment,
        *,
        gathers: bool = True,
    ) -> None:
        self._fetches = _Fetches(database, actor, bounds, moment)
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

    @cached_property
    def credit_grant_by_id(self) -> Loader[tuple[str, int], CreditGrantRow | None]:
        """The grant of a meter's id and a `seq`."""
        return self._loader(self._fetches.grants_by_ids)

    @cached_property
    def grants_of_meter(self) -> Loader[GrantsOfMeter, list[CreditGrantRow]]:
        """A page of a meter's grants."""
        return self._loader(self._fetches.grants_of_meters)

    @cached_property
    def usable_grants_of_meter(self) -> Loader[str, list[CreditGrantRow]]:
        """What is open of a meter's base and grants, in the order of use."""
        return self._loader(self._fetches.usable_grants_of_meters)

    @cached_property
    def hold_by_id(self) -> Loader[tuple[str, int], HoldRow | None]:
        """The hold of a meter's id and a `seq`."""
        return self._loader(self._fetches.holds_by_ids)

    @cached_property
    def holds_of_meter(self) -> Loader[HoldsOfMeter, list[HoldRow]]:
        """A page of a meter's holds."""
        return self._loader(self._fetches.holds_of_meters)

    @cached_property
    def long_value(self) -> Loader[LongValue, Any]:
        """A JSON value that its row was read without."""
        return self._loader(self._fetches.long_values)

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

    def __init__(self, database: Database, actor: Actor, bounds: Bounds, moment: Moment) -> None:
        self._database = database
        self._actor = actor
        self._bounds = bounds
        self._moment = moment

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
            due = await due_of(reader, [*found.values()], self._moment())
        return [self._seen(found.get(key), due) for key in keys]

    async def billing_meters_by_names(self, keys: list[tuple[str, str]]) -> list[BillingMeterRow | None]:
        async with self._database.read() as reader:
            found = await billing_meters.by_names(
                reader, keys, org_id=self._actor.org_id, environment=self._actor.environment
            )
            due = await due_of(reader, [*found.values()], self._moment())
        return [self._seen(found.get(key), due) for key in keys]

    def _seen(self, meter: BillingMeterRow | None, due: Due) -> BillingMeterRow | None:
        """Return the meter, unless it is billed to a customer that the actor may not see."""
        is_seen = meter is not None and self._actor.may_see_customer(meter.customer_id)
        return due.meter(meter) if meter is not None and is_seen else None

    async def grants_by_ids(self, keys: list[tuple[str, int]]) -> list[CreditGrantRow | None]:
        async with self._database.read() as reader:
            due = await self._visible(reader, [meter_id for meter_id, _ in keys])
            found = await credit_grants.by_seqs(reader, [key for key in keys if key[0] in due.visible], is_page=True)
        return [due.grant(row) if (row := found.get(key)) is not None else None for key in keys]

    async def holds_by_ids(self, keys: list[tuple[str, int]]) -> list[HoldRow | None]:
        async with self._database.read() as reader:
            due = await self._visible(reader, [meter_id for meter_id, _ in keys])
            found = await holds.by_seqs(reader, [key for key in keys if key[0] in due.visible])
        return [due.hold(row) if (row := found.get(key)) is not None else None for key in keys]

    async def grants_of_meters(self, keys: list[GrantsOfMeter]) -> list[list[CreditGrantRow]]:
        async def load(of: tuple[Page, GrantFilter], some: Sequence[GrantsOfMeter]) -> list[list[CreditGrantRow]]:
            meter_ids = [key.meter_id for key in some]
            page, wanted = of
            async with self._database.read() as reader:
                due = await self._visible(reader, meter_ids)
                # What is due changes the state of grants of which something is open or pinned, and these are known.
                late = [] if wanted.state is None else [*due.known]
                moments = {meter_id: self._moment.of(meter_id) for meter_id in due.visible}
                others = {meter_id: moments[meter_id] for meter_id in moments if meter_id not in late}
                found = await credit_grants.pages_by_meters(reader, others, page, wanted)
                if late:
                    of_late = {meter_id: moments[meter_id] for meter_id in late}
                    found |= await credit_grants.pages_by_meters(reader, of_late, page, wanted, is_unusable=True)
            for meter_id in late:
                known = [grant for grant in due.grants_of(meter_id) if wanted.includes(grant, moments[meter_id])]
                found[meter_id] = on_page(page, [*found[meter_id], *known], _seq)
            return [[*map(due.grant, found.get(meter_id, ()))] for meter_id in meter_ids]

        return await _by_group(keys, lambda key: (key.page, key.wanted), load)

    async def holds_of_meters(self, keys: list[HoldsOfMeter]) -> list[list[HoldRow]]:
        async def load(of: tuple[Page, HoldState | None], some: Sequence[HoldsOfMeter]) -> list[list[HoldRow]]:
            meter_ids = [key.meter_id for key in some]
            async with self._database.read() as reader:
                due = await self._visible(reader, meter_ids)
                found = await holds.pages_by_meters(reader, [*due.visible], *of, now=self._moment())
            return [[*map(due.hold, found.get(meter_id, ()))] for meter_id in meter_ids]

        return await _by_group(keys, lambda key: (key.page, key.state), load)

    async def usable_grants_of_meters(self, keys: list[str]) -> list[list[CreditGrantRow]]:
        now, most = self._moment(), self._bounds.request_entries
        async with self._database.read() as reader:
            due = await self._visible(reader, keys)
            usable = await credit_grants.usable(reader, [*due.visible], most=most + 1)
        if len(usable) > most:
            raise LimitExceeded(f"burnDown answers at most {most} credit grants a request; ask for fewer meters.")
        grants = by_meter(usable)
        found: dict[str, list[CreditGrantRow]] = {}
        for meter_id, meter in due.visible.items():
            known = due.known.get(meter_id)
            of_meter = Credits.of(meter, grants[meter_id])
            credits_ = known.credits if known is not None and known.credits is not None else of_meter
            found[meter_id] = [*credits_.in_order(max(now, meter.updated_at))]
        return [found.get(meter_id, []) for meter_id in keys]

    async def _visible(self, reader: Reader, meter_ids: Sequence[str]) -> Due:
        """Read the meters of these ids that the actor may see, and what is due of them."""
        found = await billing_meters.by_ids(
            reader,
            [*dict.fromkeys(meter_ids)],
            org_id=self._actor.org_id,
            environment=self._actor.environment,
            workspace_ids=self._actor.workspace_ids,
        )
        seen = [meter for meter in found.values() if self._actor.may_see_customer(meter.customer_id)]
        for meter in seen:
            self._moment.note(meter)
        return await due_of(reader, seen, self._moment())

    async def billing_meters_of_customers(self, keys: list[MetersOfCustomer]) -> list[list[BillingMeterRow]]:
        async def load(page: Page, some: Sequence[MetersOfCustomer]) -> Sequence[list[BillingMeterRow]]:
            customer_ids = [key.customer_id for key in some]
            async with self._database.read() as reader:
                found = await billing_meters.pages_by_customers(
                    reader, customer_ids, page, workspace_ids=self._actor.workspace_ids
                )
                due = await due_of(reader, [meter for rows in found.values() for meter in rows], self._moment())
            return [[*map(due.meter, found[customer_id])] for customer_id in customer_ids]

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
            return await ledger.by_ranges(reader, keys, is_page=True)

    async def long_values(self, keys: list[LongValue]) -> list[Any]:
        async def load(_of: tuple[type, str], some: Sequence[LongValue]) -> list[Any]:
            async with self._database.read() as reader:
                return await values_of(reader, some)

        return await _by_group(keys, lambda key: (key.rows, key.name), load)


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
