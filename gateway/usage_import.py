"""Importing usage events from JSON Lines: each line is a `RecordUsageInput`, recorded as if it had been sent.

Lines are recorded in file order, a group at a time, by the same writer and rules as requests are. A bad line never
stops the rest. Nothing of the progress is kept but the events themselves, so an import is resumed by running it again.
"""

import gzip
import io
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, TypeVar

import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from gateway.services import Services
from resolvers.actor import Actor, Scope
from resolvers.billing_meters import create_billing_meter
from resolvers.context import Context
from resolvers.errors import (
    AlreadyExists,
    BillingMeterNotFound,
    IdempotencyConflict,
    InvalidInput,
    Refusal,
    Unavailable,
)
from resolvers.usage import DEFAULT_USAGE_NAME, UsageEvent, UsageOutcome, usage_event
from resolvers.values import ORG_LENGTH, check_text, parse_amount, parse_instant, parse_json
from storage.database import DatabaseUnavailable
from storage.tables import Environment, OverLimitPolicy

T = TypeVar("T")

#: How many lines are recorded by one transaction.
GROUP = 1_000

#: The longest line that can hold an event, in bytes: 16 KiB of metadata and the names, escaped.
LONGEST_LINE = 256 * 1024

#: What the ledger names as the author of what an import records.
RECORDED_BY = "tollgate-import"


class Lines(AbstractContextManager["Lines"]):
    """The lines of a file, plain or compressed, and how far into it they are."""

    def __init__(self, raw: IO[bytes], *, compressed: bool, size: int | None) -> None:
        self._raw = raw
        self._stream: IO[bytes] = gzip.GzipFile(fileobj=raw) if compressed else raw  # type: ignore[assignment]
        #: The file's size in bytes, or None for a stream.
        self.size = size

    def __iter__(self) -> Iterator[bytes]:
        """Return each line without its end; of one too long, its beginning, one byte longer than allowed."""
        while line := self._stream.readline(LONGEST_LINE + 1):
            yield line.rstrip(b"\r\n")
            while len(line) > LONGEST_LINE and not line.endswith(b"\n"):
                line = self._stream.readline(LONGEST_LINE + 1)

    @property
    def position(self) -> int:
        """How many bytes of the file are read."""
        return self._raw.tell() if self.size is not None else 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stream.close()
        self._raw.close()


def open_lines(file: str) -> Lines:
    """Open a file, or `-` for standard input. Raises `OSError`."""
    if file == "-":
        stream = io.BufferedReader(io.FileIO(sys.stdin.fileno(), closefd=False))
        return Lines(stream, compressed=stream.peek(2)[:2] == b"\x1f\x8b", size=None)
    path = Path(file)
    raw = path.open("rb")
    return Lines(raw, compressed=file.endswith(".gz"), size=path.stat().st_size)


@dataclass(slots=True)
class Counts:
    """What became of the lines; all but `read` add up to it."""

    read: int = 0
    accepted: int = 0
    partial: int = 0
    replayed: int = 0
    conflicts: int = 0
    refused: int = 0
    invalid: int = 0

    @property
    def rejected(self) -> int:
        """How many lines were not accepted."""
        return self.conflicts + self.refused + self.invalid

    def as_json(self) -> dict[str, int]:
        """Return the counts by name."""
        return {name: getattr(self, name) for name in self.__slots__}

    def add(self, other: "Counts") -> None:
        """Count what the other has counted, too."""
        for name, count in other.as_json().items():
            setattr(self, name, getattr(self, name) + count)


class _Line(NamedTuple):
    number: int
    text: bytes
    event: UsageEvent


@dataclass(slots=True)
class _Group:
    """Lines that are recorded together: the events among them, and what became of each line."""

    lines: list[_Line] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    rejected: list[tuple[int, bytes]] = field(default_factory=list)

    def reject(self, number: int, text: bytes, refusal: Refusal) -> None:
        """Note a line that was not accepted: its number, the reason, and the line itself, so that it can be mended."""
        rejected = {
            "line": number,
            "code": refusal.code,
            "message": refusal.message,
            "input": text[:LONGEST_LINE].decode(errors="replace"),
        }
        self.rejected.append((number, orjson.dumps(rejected, option=orjson.OPT_APPEND_NEWLINE)))


@dataclass(slots=True, kw_only=True)
class Import:
    """One run of an import. `failure` tells, afterwards, why it stopped before the end of the file, if it did."""

    org_id: str
    environment: Environment
    policy: OverLimitPolicy
    backfill: bool
    create_meters: bool
    rejects: Path
    failure: str | None = None
    #: Whether an event was refused for its age, which `backfill` would have let pass.
    met_old_events: bool = False
    counts: Counts = field(default_factory=Counts)

    async def run(self, services: Services, lines: Lines, console: Console) -> Counts:
        """Record all lines and return what became of them.

        Raises `InvalidInput` for the organization's name, and `OSError` when the rejects cannot be written: before
        anything is recorded.
        """
        check_text("org", self.org_id, length=ORG_LENGTH)
        self._clear_rejects()
        actor = Actor(RECORDED_BY, self.org_id, self.environment, frozenset(Scope))
        context = services.context(actor)
        try:
            with Progress(*_COLUMNS, console=console, transient=True, disable=not console.is_terminal) as progress:
                task = progress.add_task("Importing", total=lines.size, lines=0)
                for group in self._groups(actor, lines):
                    await self._record(context, group)
                    progress.update(task, completed=lines.position, lines=self.counts.read)
        except (Unavailable, DatabaseUnavailable) as error:
            reason = (
                error.message if isinstance(error, Unavailable) else f"The database is unavailable: {error.__cause__}."
            )
            self.failure = f"{reason} Run the import again to resume it."
        return self.counts

    def _groups(self, actor: Actor, lines: Lines) -> Iterator[_Group]:
        """Return the lines that are not empty, in groups, up to where the file can be read."""
        group = _Group()
        read = 0
        try:
            for number, text in enumerate(lines, start=1):
                if not text.strip() and len(text) <= LONGEST_LINE:
                    continue
                read += 1
                group.counts.read += 1
                self._add(group, actor, number, text)
                if group.counts.read == GROUP:
                    yield group
                    group = _Group()
        except (OSError, EOFError, zlib.error) as error:
            self.failure = f"The file cannot be read beyond its first {read:,} lines: {error}"
        if group.counts.read:
            yield group

    def _add(self, group: _Group, actor: Actor, number: int, text: bytes) -> None:
        """Add the line's event to the group, or note that it is none."""
        try:
            event = _parse(actor, text, self.policy)
        except InvalidInput as refusal:
            group.counts.invalid += 1
            group.reject(number, text, refusal)
        else:
            group.lines.append(_Line(number, text, event if self.backfill else event._replace(may_backfill=False)))

    async def _record(self, context: Context, group: _Group) -> None:
        """Record the group, and count and write down what became of its lines."""
        results = await context.usage_writer.record([line.event for line in group.lines]) if group.lines else []
        missing = [
            line for line, result in zip(group.lines, results, strict=True) if isinstance(result, BillingMeterNotFound)
        ]
        if missing and self.create_meters:
            await self._create_meters(context, missing)
            again = iter(await context.usage_writer.record([line.event for line in missing]))
            results = [next(again) if isinstance(result, BillingMeterNotFound) else result for result in results]
        for line, result in zip(group.lines, results, strict=True):
            self._count(group, line, result)
        self.counts.add(group.counts)
        if group.rejected:
            with self.rejects.open("ab") as file:
                file.writelines(text for _, text in sorted(group.rejected))

    async def _create_meters(self, context: Context, lines: Sequence[_Line]) -> None:
        for meter in dict.fromkeys(line.event.meter for line in lines):
            with suppress(AlreadyExists):  # Somebody else has just made it, which is as good.
                await create_billing_meter(
                    context,
                    workspace_id=meter.workspace_id,
                    external_meter_id=meter.external_meter_id,
                    allow_overages=True,
                )

    def _count(self, group: _Group, line: _Line, result: UsageOutcome | Refusal) -> None:
        counts = group.counts
        if isinstance(result, UsageOutcome):
            if result.replayed:
                counts.replayed += 1
            elif result.refused:
                counts.partial += 1
            else:
                counts.accepted += 1
            return
        if isinstance(result, IdempotencyConflict):
            counts.conflicts += 1
        elif isinstance(result, InvalidInput):
            counts.invalid += 1
            self.met_old_events |= not self.backfill and result.field == "occurredAt"
        else:
            counts.refused += 1
        group.reject(line.number, line.text, result)

    def _clear_rejects(self) -> None:
        """Remove the rejects of an earlier run, and make sure that new ones can be written."""
        is_device = self.rejects.exists() and not self.rejects.is_file()
        if not is_device:
            self.rejects.unlink(missing_ok=True)
        self.rejects.open("ab").close()
        if not is_device:
            self.rejects.unlink()


def _parse(actor: Actor, text: bytes, default_policy: OverLimitPolicy) -> UsageEvent:
    """Return the event of one line. Raises `InvalidInput`, whose field is `line` when the line is no object at all."""
    if len(text) > LONGEST_LINE:
        raise InvalidInput("line", f"must have at most {LONGEST_LINE} bytes.")
    try:
        fields = parse_json(text)
    except ValueError as error:
        raise InvalidInput("line", f"must be JSON in UTF-8: {error}") from None
    if not isinstance(fields, dict):
        raise InvalidInput("line", "must be a JSON object.")
    for name in fields:
        if name not in _FIELDS:
            raise InvalidInput(name, "is not a field of RecordUsageInput.")
    return usage_event(
        actor,
        workspace_id=_text(fields, "workspaceId"),
        external_meter_id=_text(fields, "externalMeterId"),
        event_id=_text(fields, "eventId"),
        amount=_read(fields, "amount", parse_amount),
        usage_name=_text(fields, "usageName", DEFAULT_USAGE_NAME),
        occurred_at=_read(fields, "occurredAt", parse_instant) if fields.get("occurredAt") is not None else None,
        policy=_read(fields, "policy", _policy) if fields.get("policy") is not None else default_policy,
        metadata=fields.get("metadata"),
    )


def _text(fields: dict[str, Any], name: str, default: str | None = None) -> str:
    value = fields.get(name)
    if isinstance(value, str):
        return value
    if value is not None:
        raise InvalidInput(name, "is refused: It must be a string.")
    if default is None:
        raise InvalidInput(name, "is required.")
    return default


def _read(fields: dict[str, Any], name: str, read: Callable[[object], T]) -> T:
    value = fields.get(name)
    try:
        return read(value)
    except ValueError as error:
        raise InvalidInput(name, f"is refused: {error}" if value is not None else "is required.") from None


def _policy(value: object) -> OverLimitPolicy:
    if not isinstance(value, str):
        raise ValueError("It must be a string.")  # noqa: TRY004  # As the other readers do.
    try:
        return OverLimitPolicy[value]
    except KeyError:
        raise ValueError(f"It must be one of {', '.join(OverLimitPolicy.__members__)}.") from None


#: The fields that a line may have.
_FIELDS = frozenset(
    ("workspaceId", "externalMeterId", "eventId", "amount", "usageName", "occurredAt", "policy", "metadata")
)

_COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    TaskProgressColumn(),
    TextColumn("{task.fields[lines]:,} lines"),
    TimeElapsedColumn(),
)
