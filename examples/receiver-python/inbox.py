"""The events that the receiver has taken, each once, in the SQLite file `receiver.db`."""

import json
import sqlite3
from collections.abc import Mapping
from typing import Any, NamedTuple

SCHEMA = """CREATE TABLE IF NOT EXISTS events (
  id TEXT PRIMARY KEY, -- webhook-id, the same for every delivery of an event
  body TEXT NOT NULL,
  state TEXT NOT NULL DEFAULT 'received', -- then 'charging', then 'done', or 'stuck' where a person is needed
  note TEXT -- how it ended
)"""


class Taken(NamedTuple):
    """An event that is not done."""

    id: str
    body: Mapping[str, Any]
    was_charging: bool


class Inbox:
    """The file. What a method has written is on the disk when it returns, which takes some milliseconds."""

    def __init__(self) -> None:
        # Each statement is a transaction of its own.
        self._database = sqlite3.connect("receiver.db", isolation_level=None)
        self._database.execute(SCHEMA)

    def take(self, id_: str, body: Mapping[str, Any]) -> Taken | None:
        """Keep an event; None: it has been taken before."""
        written = self._database.execute(
            "INSERT INTO events (id, body) VALUES (?, ?) ON CONFLICT DO NOTHING", (id_, json.dumps(body))
        )
        return Taken(id_, body, was_charging=False) if written.rowcount else None

    def unfinished(self) -> list[Taken]:
        """Return what an earlier process has left."""
        rows = self._database.execute("SELECT id, body, state FROM events WHERE state IN ('received', 'charging')")
        return [Taken(id_, json.loads(body), state == "charging") for id_, body, state in rows]

    def set(self, id_: str, state: str, note: str | None = None) -> None:
        """Write how far an event is."""
        self._database.execute("UPDATE events SET state = ?, note = ? WHERE id = ?", (state, note, id_))

    def close(self) -> None:
        """Close the file."""
        self._database.close()
