"""Copying the data of all tenants to another database, and proving that the copy is equal, in bounded memory.

Nobody writes to the source until the copy has been proven: every table has the same rows to the last byte, by a digest
of them in the order of their keys, and both databases keep or break the invariants of billing alike.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import orjson

from resolvers.maintenance.meter_check import Disagreement
from resolvers.maintenance.verify import Verified, verify_snapshot
from storage import migrations, webhook_endpoints
from storage.engine.buckets import Buckets
from storage.engine.database import Database
from storage.engine.transactions import Reader
from storage.maintenance import copying
from storage.maintenance.copying import Values
from storage.tables import TABLES

#: Why the webhook endpoints of a copy are disabled: for people.
COPIED = "It was copied from another database, which may still send to it."


class CopyDiffers(Exception):
    """The copy is not what was read; the message says where."""


@dataclass(slots=True)
class Copied:
    """What was copied: the rows by table, and what `verify` counts and finds on either side."""

    rows: dict[str, int] = field(default_factory=dict)
    verified: Verified = field(default_factory=Verified)
    disagreements: list[Disagreement] = field(default_factory=list)


#: Is called with what is being done, how many of it are done, and of how many.
OnProgress = Callable[[str, int, int], None]


async def copy(
    source: Database, target: Database, *, on_progress: OnProgress = lambda _step, _done, _of: None
) -> Copied:
    """Fill the target, which `migrations.begin_copy` has made ready, and let it be taken for a whole database.

    Whatever it raises, the target stays marked as unfinished: `CopyDiffers`, `CannotHold`, `DatabaseUnavailable`.
    """
    copied = Copied()
    async with source.standstill(copying.LOCKED) as reader:
        total = sum([await copying.count(reader, table) for table in TABLES])

        def show(step: str) -> Callable[[int], None]:
            return lambda done: on_progress(step, done, total)

        digests = {}
        for table in TABLES:
            digest = _Digest(show("Copying"), sum(copied.rows.values()))
            async for rows in copying.portions(reader, table):
                await copying.insert(reader, target, table, rows)
                digest.add(rows)
            digests[table.name] = digest.value
            copied.rows[table.name] = digest.rows
        async with target.snapshot() as copy_reader:
            await _compare(copy_reader, digests, show("Comparing"))
            copied.verified, copied.disagreements = await _verify(
                reader, source.buckets, "Verifying the source", on_progress
            )
            if await _verify(copy_reader, target.buckets, "Verifying the copy", on_progress) != (
                copied.verified,
                copied.disagreements,
            ):
                raise CopyDiffers("The invariants do not hold alike on both sides.")
        # What the source goes on sending, the copy would send again.
        await target.write(partial(webhook_endpoints.disable_all, reason=COPIED), is_repeatable=True)
        # Before anybody may write to the source again.
        await migrations.end_copy(target)
    return copied


class _Digest:
    """SHA-256 of rows in their order. A row counts by its values, whichever database they were read from."""

    def __init__(self, show: Callable[[int], None], before: int) -> None:
        self.rows = 0
        self._hash = hashlib.sha256()
        self._show = show
        self._before = before

    @property
    def value(self) -> tuple[int, str]:
        return self.rows, self._hash.hexdigest()

    def add(self, rows: list[Values]) -> None:
        self.rows += len(rows)
        for row in rows:
            self._hash.update(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        self._show(self._before + self.rows)


async def _compare(reader: Reader, digests: dict[str, tuple[int, str]], show: Callable[[int], None]) -> None:
    before = 0
    for table in TABLES:
        digest = _Digest(show, before)
        async for rows in copying.portions(reader, table):
            digest.add(rows)
        if digest.value != digests[table.name]:
            raise CopyDiffers(f"The rows of {table.name} differ: {digests[table.name][0]:,} were read from the source.")
        before += digest.rows


async def _verify(
    reader: Reader, buckets: Buckets, step: str, on_progress: OnProgress
) -> tuple[Verified, list[Disagreement]]:
    verified = Verified()

    def show(total: int) -> None:
        on_progress(step, verified.meters, total)

    # The databases find some of them in an order of their own.
    return verified, sorted([each async for each in verify_snapshot(reader, buckets, verified, on_progress=show)])
