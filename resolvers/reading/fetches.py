"""What the loaders of a request fetch by: of each kind of key many at once, in the order of the keys."""

import asyncio
from collections.abc import Sequence
from functools import partial
from operator import attrgetter
from typing import Any

from resolvers.bounds import Bounds
from resolvers.errors import LimitExceeded
from resolvers.reading.alerts import AlertOfMeter, alerts_of
from resolvers.reading.by_bucket import by_group
from resolvers.reading.credit_fetches import CreditFetches
from resolvers.reading.keys import EntriesOfMeter, MetersOfCustomer, UsageOfMeter
from resolvers.reading.long_values import LongValue, values_of
from resolvers.reading.seeing import own_endpoints
from resolvers.rules.due import as_due, due_of_all
from storage import alerts, customers, ids
from storage.alerts import AlertRow
from storage.customers import CustomerRow
from storage.engine.columns import Columns
from storage.engine.pages import Page, on_page
from storage.engine.transactions import Reader
from storage.meters import billing_meters, events, ledger, usage
from storage.meters.billing_meters import BillingMeterRow
from storage.meters.events import EventRow
from storage.meters.ledger import LedgerEntryRow
from storage.meters.usage import UsageDayRow, UsageRange

_id = attrgetter("id")


class Fetches(CreditFetches):
    """What the loaders of one request fetch by.

    It knows none of them: what leads back to itself stays, with all that was read, until Python searches for cycles.
    """

    async def customers_by_ids(self, keys: list[str]) -> list[CustomerRow | None]:
        """Return the customer of each id."""
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
        """Return the customer of each external id."""
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
        """Return the meter of each id."""

        async def load(reader: Reader, some: Sequence[str]) -> list[BillingMeterRow | None]:
            found = await billing_meters.by_ids(
                reader,
                some,
                org_id=self._actor.org_id,
                environment=self._actor.environment,
                workspace_ids=self._actor.workspace_ids,
            )
            found = await as_due(reader, found, self._moment())
            return [self._seen(found.get(key)) for key in some]

        wanted = [key for key in keys if ids.is_id(key, ids.BILLING_METER)]
        found = dict(zip(wanted, await self._by_bucket(wanted, load), strict=True)) if wanted else {}
        return [found.get(key) for key in keys]

    async def billing_meters_by_names(self, keys: list[tuple[str, str]]) -> list[BillingMeterRow | None]:
        """Return the meter of each workspace and external meter id."""
        org_id, environment = self._actor.org_id, self._actor.environment

        async def load(bucket: int, some: Sequence[tuple[str, str]]) -> list[BillingMeterRow | None]:
            async with self._database.read(bucket) as reader:
                found = await billing_meters.by_names(reader, some, org_id=org_id, environment=environment)
                found = await as_due(reader, found, self._moment())
            return [self._seen(found.get(key)) for key in some]

        buckets = self._database.buckets
        if buckets.is_one:
            return await load(buckets.values[0], keys)
        return await by_group(keys, lambda key: buckets.of_names((org_id, environment, *key)), load)

    def _seen(self, meter: BillingMeterRow | None) -> BillingMeterRow | None:
        """Return the meter, unless it is billed to a customer that the actor may not see."""
        return meter if meter is not None and self._actor.may_see_customer(meter.customer_id) else None

    async def events_by_ids(self, keys: list[tuple[str, int]]) -> Sequence[EventRow | None]:
        """Return the event of each owner's id and number."""
        self._actor.require_organization()
        workspaces = self._actor.workspace_ids

        async def load(reader: Reader, some: Sequence[tuple[str, int]]) -> list[EventRow | None]:
            found = await events.by_ids(reader, some)
            endpoints = await own_endpoints(reader, self._actor, found.values())
            seen = {
                key: row
                for key, row in found.items()
                if (row.org_id, row.environment) == (self._actor.org_id, self._actor.environment)
                and (workspaces is None or row.workspace_id in workspaces or row.owner_id in endpoints)
            }
            return [seen.get(key) for key in some]

        return await self._by_bucket(keys, load)

    async def billing_meters_of_customers(self, keys: list[MetersOfCustomer]) -> list[list[BillingMeterRow]]:
        """Return pages of customers' meters."""

        async def load(page: Page, some: Sequence[MetersOfCustomer]) -> Sequence[list[BillingMeterRow]]:
            customer_ids = [key.customer_id for key in some]

            async def of_bucket(bucket: int) -> dict[str, list[BillingMeterRow]]:
                async with self._database.read(bucket) as reader:
                    return await billing_meters.pages_by_customers(
                        reader, customer_ids, page, workspace_ids=self._actor.workspace_ids
                    )

            # They may lie in any, and what is on the page of all is on that of its own.
            parts = await asyncio.gather(*map(of_bucket, self._database.buckets.values))
            found = [
                on_page(page, [meter for part in parts for meter in part[customer_id]], _id)
                for customer_id in customer_ids
            ]
            due = await due_of_all(self._database, [meter for rows in found for meter in rows], self._moment())
            return [[*map(due.meter, rows)] for rows in found]

        return await by_group(keys, lambda key: key.page, load)

    async def alerts_by_ids(self, keys: list[str]) -> list[AlertRow | None]:
        """Return the alert of each id."""
        actor = self._actor
        actor.require_organization()
        async with self._database.read() as reader:
            found = await alerts.by_ids(reader, keys, org_id=actor.org_id, environment=actor.environment)
        seen = {id_: row for id_, row in found.items() if not row.is_deleted and actor.may_enter(row.workspace_id)}
        return [seen.get(key) for key in keys]

    async def alerts_of_meters(self, keys: list[str]) -> Sequence[list[AlertOfMeter]]:
        """Return the alerts of each meter."""
        self._actor.require_organization()

        async def load(reader: Reader, some: Sequence[str]) -> list[list[AlertOfMeter]]:
            return await alerts_of(reader, await self._visible(reader, some), some, self._moment)

        return await self._by_bucket(keys, load)

    async def usage_of_meters(self, keys: list[UsageOfMeter]) -> list[Columns[UsageDayRow] | LimitExceeded]:
        """Return usage days, or for some keys the exception."""

        async def load(
            usage_names: tuple[str, ...] | None, bucket: int, some: Sequence[UsageOfMeter]
        ) -> Sequence[Columns[UsageDayRow]]:
            ranges = [UsageRange(key.meter_id, key.first, key.last) for key in some]
            async with self._database.read(bucket) as reader:
                rows = await usage.columns_of(
                    reader, ranges, usage_names=usage_names, max_of_range=bounds.usage_days + 1, most=most
                )
            return await usage.arranged(rows, ranges, self._database.dialect, most=most)

        async def of_names(
            usage_names: tuple[str, ...] | None, some: Sequence[UsageOfMeter]
        ) -> Sequence[Columns[UsageDayRow] | LimitExceeded]:
            try:
                found = await self._in_buckets(some, partial(load, usage_names))
            except usage.TooManyDays:
                # Which meters' days were cut off is not known, so none may be taken for whole.
                return [_too_many_days(bounds)] * len(some)
            if sum(map(len, found)) > bounds.request_usage_days:  # Of several buckets.
                return [_too_many_days(bounds)] * len(some)
            return [days if len(days) <= bounds.usage_days else _too_many_days(bounds) for days in found]

        bounds = self._bounds
        # One day too many shows that there are too many.
        most = bounds.request_usage_days + 1
        return await by_group(keys, lambda key: key.usage_names, of_names)

    async def ledger_entries_by_ids(self, keys: list[tuple[str, int]]) -> Sequence[LedgerEntryRow | None]:
        """Return the entry of each meter's id and `seq`."""

        async def load(reader: Reader, some: Sequence[tuple[str, int]]) -> list[LedgerEntryRow | None]:
            found = await ledger.by_ids(
                reader,
                some,
                org_id=self._actor.org_id,
                environment=self._actor.environment,
                workspace_ids=self._actor.workspace_ids,
                customer_id=self._actor.customer_id,
            )
            return [found.get(key) for key in some]

        return await self._by_bucket(keys, load)

    async def entries_of_meters(self, keys: list[EntriesOfMeter]) -> Sequence[list[LedgerEntryRow] | LimitExceeded]:
        """Return stretches of ledgers, or for some keys the exception."""

        async def load(reader: Reader, some: Sequence[EntriesOfMeter]) -> list[list[LedgerEntryRow]]:
            return await ledger.by_ranges(reader, some, is_page=True)

        most = self._bounds.request_entries
        if sum(max(0, key.last_seq - key.first_seq + 1) for key in keys) > most:
            too_many = LimitExceeded(f"The ledgers of one request answer at most {most} entries.")
            return [too_many] * len(keys)
        return await self._by_bucket(keys, load)

    async def long_values(self, keys: list[LongValue]) -> list[Any]:
        """Return JSON values that their rows were read without."""

        async def load(_of: tuple[type, str], reader: Reader, some: Sequence[LongValue]) -> list[Any]:
            return await values_of(reader, some)

        return await by_group(
            keys, lambda key: (key.rows, key.name), lambda of, some: self._by_bucket(some, partial(load, of))
        )


def _too_many_days(bounds: Bounds) -> LimitExceeded:
    return LimitExceeded(
        f"usage answers at most {bounds.usage_days} usage days a meter and {bounds.request_usage_days} a request; "
        "ask for fewer days or names."
    )
