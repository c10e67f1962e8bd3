"""What the loaders of webhook endpoints and deliveries fetch by; a customer's session may not read them."""

import asyncio
from collections.abc import Sequence

from resolvers.actor import Actor
from resolvers.reading.keys import DeliveriesOfEndpoint
from resolvers.reading.places import locate
from resolvers.reading.seeing import seen_by, sees
from storage import ids, webhook_endpoints
from storage.engine.database import Database
from storage.engine.pages import on_page
from storage.meters import webhook_deliveries
from storage.meters.webhook_deliveries import DeliveryRow
from storage.webhook_endpoints import WebhookEndpointRow


class WebhookFetches:
    """What the loaders of one request fetch by: see `resolvers.reading.fetches`."""

    def __init__(self, database: Database, actor: Actor) -> None:
        self._database = database
        self._actor = actor

    async def endpoints_by_ids(self, keys: list[str]) -> list[WebhookEndpointRow | None]:
        """Return the endpoint of each id."""
        self._actor.require_organization()
        found = await self._endpoints([key for key in keys if ids.is_id(key, ids.WEBHOOK_ENDPOINT)])
        return [found.get(key) for key in keys]

    async def _endpoints(self, wanted: Sequence[str]) -> dict[str, WebhookEndpointRow]:
        """Return those of the endpoints that the actor may see, by id."""
        if not wanted:
            return {}
        async with self._database.read() as reader:
            found = await webhook_endpoints.by_ids(reader, dict.fromkeys(wanted))
        return {id_: row for id_, row in found.items() if sees(self._actor, row)}

    async def deliveries_by_ids(self, keys: list[str]) -> list[DeliveryRow | None]:
        """Return the delivery of each id."""
        self._actor.require_organization()
        wanted = [key for key in keys if ids.is_id(key, ids.WEBHOOK_DELIVERY)]
        by_bucket: dict[int, list[str]] = {}
        for id_ in wanted:
            place = self._database.buckets.of_bits(ids.bits_of_meter(id_))
            # One of a meter from before ids said where it lies may lie anywhere.
            for bucket in self._database.buckets.values if place is None else (place,):
                by_bucket.setdefault(bucket, []).append(id_)

        async def load(bucket: int, some: Sequence[str]) -> dict[str, DeliveryRow]:
            async with self._database.read(bucket) as reader:
                return await webhook_deliveries.by_ids(reader, some)

        found: dict[str, DeliveryRow] = {}
        for some in await asyncio.gather(*[load(bucket, some) for bucket, some in by_bucket.items()]):
            found |= some
        seen = await self._endpoints([row.endpoint_id for row in found.values()])
        return [row if (row := found.get(key)) is not None and row.endpoint_id in seen else None for key in keys]

    async def deliveries_of_endpoints(self, keys: list[DeliveriesOfEndpoint]) -> list[list[DeliveryRow]]:
        """Return pages of deliveries. The endpoints are ones that the actor has read."""

        async def load(bucket: int, key: DeliveriesOfEndpoint) -> list[DeliveryRow]:
            async with self._database.read(bucket) as reader:
                return await webhook_deliveries.page_of_endpoint(reader, key.endpoint_id, key.page, key.state)

        pages = []
        for key in keys:
            # They may lie in any, and what is on the page of all is on that of its own.
            parts = await asyncio.gather(*[load(bucket, key) for bucket in self._database.buckets.values])
            pages.append(on_page(key.page, [row for part in parts for row in part], lambda row: row.id))
        return pages

    async def deliveries_of_events(self, keys: list[tuple[str, int]]) -> list[list[DeliveryRow]]:
        """Return all deliveries of each event, to endpoints that the actor may see. It has read the events."""
        self._actor.require_organization()
        places = await locate(self._database, [owner_id for owner_id, _ in keys])
        by_bucket: dict[int, list[tuple[str, int]]] = {}
        for key, bucket in zip(keys, places, strict=True):
            by_bucket.setdefault(bucket, []).append(key)
        found: dict[tuple[str, int], list[DeliveryRow]] = {}
        async with self._database.read() as reader:
            seen = {row.id for row in await seen_by(reader, self._actor)}
        for bucket, some in by_bucket.items():
            async with self._database.read(bucket) as reader:
                for row in await webhook_deliveries.of_events(reader, some):
                    if row.endpoint_id in seen:
                        found.setdefault(row.event, []).append(row)
        return [found.get(key, []) for key in keys]
