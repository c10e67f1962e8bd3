"""Fetching by keys that are about meters: of each bucket with a reader of its own."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any, TypeVar

from resolvers.actor import Actor
from resolvers.bounds import Bounds
from resolvers.reading.long_values import LongValue
from resolvers.reading.moment import Moment
from resolvers.reading.places import locate
from resolvers.rules.due import Due, due_of
from storage.engine.database import Database
from storage.engine.transactions import Reader
from storage.meters import billing_meters

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
G = TypeVar("G", bound=Hashable)


class BucketFetches:
    """What the fetches of one request have in common: its actor, and how they find the buckets of their keys."""

    def __init__(self, database: Database, actor: Actor, bounds: Bounds, moment: Moment) -> None:
        self._database = database
        self._actor = actor
        self._bounds = bounds
        self._moment = moment

    async def _by_bucket(
        self, keys: Sequence[K], load: Callable[[Reader, Sequence[K]], Awaitable[Sequence[V]]]
    ) -> Sequence[V]:
        """Load the keys with a reader of each bucket that their meters lie in; return the values in their order."""

        async def read(bucket: int, some: Sequence[K]) -> Sequence[V]:
            async with self._database.read(bucket) as reader:
                return await load(reader, some)

        return await self._in_buckets(keys, read)

    async def _in_buckets(
        self, keys: Sequence[K], load: Callable[[int, Sequence[K]], Awaitable[Sequence[V]]]
    ) -> Sequence[V]:
        """Load the keys by the buckets of their meters, of all at once; return the values in their order."""
        meter_ids = [*map(_meter_of, keys)]
        places = await locate(self._database, meter_ids)
        if len(set(places)) == 1:
            return await load(places[0], keys)
        by_bucket: dict[int, list[K]] = {}
        for key, bucket in zip(keys, places, strict=True):
            by_bucket.setdefault(bucket, []).append(key)
        loaded = await asyncio.gather(*[load(bucket, some) for bucket, some in by_bucket.items()])
        values = dict(zip(by_bucket, map(iter, loaded), strict=True))
        return [next(values[bucket]) for bucket in places]

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


def _meter_of(key: Any) -> str:
    """Return the id of the meter that the key of a loader is about; of a customer's long value, the customer's."""
    if isinstance(key, LongValue):
        key = key.key
    return key if isinstance(key, str) else key[0]  # All others begin with it.


async def by_group(
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
