"""What the loaders of credit grants, holds and automatic refills fetch by."""

from collections.abc import Sequence
from functools import partial
from operator import attrgetter

from resolvers.errors import LimitExceeded
from resolvers.reading.by_bucket import BucketFetches, by_group
from resolvers.reading.keys import GrantsOfMeter, HoldsOfMeter, RequestsOfMeter
from resolvers.rules.credits import Credits, by_meter
from storage.engine.pages import Page, on_page
from storage.engine.transactions import Reader
from storage.meters import auto_refills, credit_grants, holds
from storage.meters.auto_refills import AutoRefill, AutoRefillRequestRow
from storage.meters.credit_grants import CreditGrantRow, GrantFilter
from storage.meters.holds import HoldRow, HoldState

_seq = attrgetter("seq")


class CreditFetches(BucketFetches):
    """What the loaders of one request fetch by: see `resolvers.reading.fetches`."""

    async def grants_by_ids(self, keys: list[tuple[str, int]]) -> Sequence[CreditGrantRow | None]:
        """Return the grant of each meter's id and `seq`."""

        async def load(reader: Reader, some: Sequence[tuple[str, int]]) -> list[CreditGrantRow | None]:
            due = await self._visible(reader, [meter_id for meter_id, _ in some])
            found = await credit_grants.by_seqs(reader, [key for key in some if key[0] in due.visible], is_page=True)
            return [due.grant(row) if (row := found.get(key)) is not None else None for key in some]

        return await self._by_bucket(keys, load)

    async def holds_by_ids(self, keys: list[tuple[str, int]]) -> Sequence[HoldRow | None]:
        """Return the hold of each meter's id and `seq`."""

        async def load(reader: Reader, some: Sequence[tuple[str, int]]) -> list[HoldRow | None]:
            due = await self._visible(reader, [meter_id for meter_id, _ in some])
            found = await holds.by_seqs(reader, [key for key in some if key[0] in due.visible])
            return [due.hold(row) if (row := found.get(key)) is not None else None for key in some]

        return await self._by_bucket(keys, load)

    async def grants_of_meters(self, keys: list[GrantsOfMeter]) -> list[list[CreditGrantRow]]:
        """Return pages of grants."""

        async def load(
            of: tuple[Page, GrantFilter], reader: Reader, some: Sequence[GrantsOfMeter]
        ) -> list[list[CreditGrantRow]]:
            meter_ids = [key.meter_id for key in some]
            page, wanted = of
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

        return await by_group(
            keys, lambda key: (key.page, key.wanted), lambda of, some: self._by_bucket(some, partial(load, of))
        )

    async def holds_of_meters(self, keys: list[HoldsOfMeter]) -> list[list[HoldRow]]:
        """Return pages of holds."""

        async def load(
            of: tuple[Page, HoldState | None], reader: Reader, some: Sequence[HoldsOfMeter]
        ) -> list[list[HoldRow]]:
            meter_ids = [key.meter_id for key in some]
            due = await self._visible(reader, meter_ids)
            found = await holds.pages_by_meters(reader, [*due.visible], *of, now=self._moment())
            return [[*map(due.hold, found.get(meter_id, ()))] for meter_id in meter_ids]

        return await by_group(
            keys, lambda key: (key.page, key.state), lambda of, some: self._by_bucket(some, partial(load, of))
        )

    async def auto_refills_of_meters(self, keys: list[str]) -> Sequence[AutoRefill | None]:
        """Return the automatic refill of each meter, as it is now."""

        async def load(reader: Reader, some: Sequence[str]) -> list[AutoRefill | None]:
            visible = (await self._visible(reader, some)).visible
            found = await auto_refills.by_meters(reader, [*visible])
            return [found[id_].at(self._moment.of(id_)) if id_ in found else None for id_ in some]

        return await self._by_bucket(keys, load)

    async def requests_by_ids(self, keys: list[tuple[str, int]]) -> Sequence[AutoRefillRequestRow | None]:
        """Return the request of each meter's id and number, as it is now."""

        async def load(reader: Reader, some: Sequence[tuple[str, int]]) -> list[AutoRefillRequestRow | None]:
            visible = (await self._visible(reader, [meter_id for meter_id, _ in some])).visible
            found = await auto_refills.by_numbers(reader, [key for key in some if key[0] in visible])
            return [found[key].at(self._moment.of(key[0])) if key in found else None for key in some]

        return await self._by_bucket(keys, load)

    async def requests_of_meters(self, keys: list[RequestsOfMeter]) -> list[list[AutoRefillRequestRow]]:
        """Return pages of requests, as they are now."""

        async def load(page: Page, reader: Reader, some: Sequence[RequestsOfMeter]) -> list[list[AutoRefillRequestRow]]:
            visible = (await self._visible(reader, [key.meter_id for key in some])).visible
            found = await auto_refills.pages_by_meters(reader, [*visible], page)
            return [
                [request.at(self._moment.of(key.meter_id)) for request in found.get(key.meter_id, ())] for key in some
            ]

        return await by_group(keys, lambda key: key.page, lambda page, some: self._by_bucket(some, partial(load, page)))

    async def usable_grants_of_meters(self, keys: list[str]) -> Sequence[list[CreditGrantRow]]:
        """Return what is open of each meter's base and grants, in the order of use. Raises `LimitExceeded`."""
        now, most, count = self._moment(), self._bounds.request_entries, 0

        async def load(reader: Reader, some: Sequence[str]) -> list[list[CreditGrantRow]]:
            due = await self._visible(reader, some)
            usable = await credit_grants.usable(reader, [*due.visible], most=most + 1)
            nonlocal count
            count += len(usable)
            if count > most:
                raise LimitExceeded(f"burnDown answers at most {most} credit grants a request; ask for fewer meters.")
            grants = by_meter(usable)
            found: dict[str, list[CreditGrantRow]] = {}
            for meter_id, meter in due.visible.items():
                known = due.known.get(meter_id)
                of_meter = Credits.of(meter, grants[meter_id])
                credits_ = known.credits if known is not None and known.credits is not None else of_meter
                found[meter_id] = [*credits_.in_order(max(now, meter.updated_at))]
            return [found.get(meter_id, []) for meter_id in some]

        return await self._by_bucket(keys, load)
