"""What all requests of one process share."""

from dataclasses import dataclass, field

from gateway.settings import Settings
from resolvers.api_keys import ApiKeys
from resolvers.context import Clock, utc_now
from resolvers.usage_writer import UsageWriter
from storage.database import Database


@dataclass
class Services:
    """The database with what stands before it. Made inside the event loop that uses it."""

    settings: Settings
    clock: Clock = utc_now
    database: Database = field(init=False)
    api_keys: ApiKeys = field(init=False)
    usage_writer: UsageWriter = field(init=False)

    def __post_init__(self) -> None:
        self.database = Database(
            self.settings.database_url,
            pool_size=self.settings.pool_size,
            wait_seconds=self.settings.wait_seconds,
        )
        self.api_keys = ApiKeys(self.database, self.clock)
        self.usage_writer = UsageWriter(self.database, self.clock)

    async def close(self) -> None:
        """Finish what was begun, then close the database."""
        await self.usage_writer.close()
        await self.database.close()
