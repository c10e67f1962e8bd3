"""What all requests of one process share."""

import gc
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from gateway.settings import Settings
from resolvers.actor import Actor
from resolvers.api_keys import ApiKeys
from resolvers.bounds import Bounds
from resolvers.context import Clock, Context, utc_now
from resolvers.meters.writing.writer import MeterObserver, MeterWriter
from resolvers.webhooks.signing import SecretsKey, Webhooks
from storage.engine.database import Database


@dataclass
class WebhookFigures:
    """What became of deliveries after the process's attempts, and what was pending when it last looked."""

    outcomes: Counter[str] = field(default_factory=lambda: Counter(DELIVERED=0, RETRIED=0, FAILED=0))
    pending: int = 0
    oldest_seconds: float = 0.0


#: What the name of the file of the key that secrets are derived from has after that of the database.
KEY_SUFFIX = ".secrets-key"


@dataclass
class Services:
    """The database with what stands before it. Made inside the event loop that uses it."""

    settings: Settings
    clock: Clock = utc_now
    meter_observer: MeterObserver | None = None
    database: Database = field(init=False)
    api_keys: ApiKeys = field(init=False)
    meter_writer: MeterWriter = field(init=False)
    bounds: Bounds = field(init=False)
    webhooks: Webhooks = field(init=False)
    #: Of how many meters something was overdue when the sweeper last looked.
    overdue_meters: int = field(default=0, init=False)
    webhook_figures: WebhookFigures = field(default_factory=WebhookFigures, init=False)

    def __post_init__(self) -> None:
        self.bounds = self.settings.bounds
        self.database = Database(
            self.settings.database_url,
            pool_size=self.settings.pool_size,
            wait_seconds=self.settings.wait_seconds,
        )
        self.api_keys = ApiKeys(self.database, self.clock)
        # A database that is a file has the key beside it.
        file = Path(f"{self.database.url.database}{KEY_SUFFIX}") if self.database.dialect == "sqlite" else None
        self.webhooks = Webhooks(
            SecretsKey(self.settings.secrets_key, file=file), allows_private=self.settings.has_private_webhooks
        )
        self.meter_writer = MeterWriter(
            self.database,
            self.clock,
            self.meter_observer,
            max_pending=self.bounds.waiting_events,
            on_events=self.webhooks.wake,
        )

    def context(self, actor: Actor) -> Context:
        """Return what one request of this actor has at hand."""
        return Context(actor, self.database, self.meter_writer, self.clock, self.bounds, self.webhooks)

    async def close(self) -> None:
        """Finish what was begun, then close the database."""
        await self.meter_writer.close()
        await self.database.close()


def collect_less_often() -> None:
    """Spare the process most of Python's search for cycles of objects that nobody holds.

    What was imported stays; what a request makes goes when its last reference does. Searching after every 700 objects,
    as Python does, took up to a third of the time of recording usage.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
