"""Importing usage events from JSON Lines: each line is a `RecordUsageInput`, recorded as if it had been sent.

Lines are recorded in file order, a group at a time, by the same writer and rules as requests are. A bad line never
stops the rest. Nothing of the progress is kept but the events themselves, so an import is resumed by running it again.
"""

import asyncio
import base64
import json
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from gateway.cli.unavailable import reason_of
from gateway.cli.usage_import.lines import MAX_LINE_BYTES, READ_ERRORS, Lines
from gateway.cli.usage_import.rejects import Rejects
from gateway.services import Services
from gateway.settings import variable_of
from resolvers.actor import IMPORT, Actor, Scope
from resolvers.context import Context
from resolvers.errors import (
    AlreadyExists,
    BillingMeterNotFound,
    IdempotencyConflict,
    InvalidInput,
    Refusal,
    Unavailable,
)
from resolvers.meters.create import create_billing_meter
from resolvers.meters.record_usage import DEFAULT_USAGE_NAME, RecordUsage
from resolvers.meters.settings import NewBillingMeter
from resolvers.rules.commands import Decision
from resolvers.values import parse_instant, parse_json, parse_sent_amount
from storage.engine.database import DatabaseUnavailable
from storage.meters.ledger import OverLimitPolicy
from storage.tenants import Environment

T = TypeVar("T")

#: How many lines are recorded by one transaction, and about how many bytes of them are held at once.
GROUP = 1_000
GROUP_BYTES = 8 * 1024 * 1024

#: A byte order mark, which says nothing in UTF-8 and is passed over (RFC 8259, section 8.1).
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


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
    event: RecordUsage


@dataclass(slots=True)
class _Group:
    """Lines that are recorded together: the events among them, and what became of each line."""

    lines: list[_Line] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    rejected: list[tuple[int, bytes]] = field(default_factory=list)
    size: int = 0

    @property
    def is_full(self) -> bool:
        """Whether it is to be recorded before another line is read."""
        return self.counts.read == GROUP or self.size > GROUP_BYTES

    def reject(self, number: int, text: bytes, refusal: Refusal) -> None:
        """Note a line that was not accepted: its number, the reason, and the line itself, to be corrected."""
        rejected = {"line": number, "code": refusal.code, "message": refusal.message} | _as_it_was(text)
        self.rejected.append((number, orjson.dumps(rejected, option=orjson.OPT_APPEND_NEWLINE)))


@dataclass(slots=True, kw_only=True)
class Import:
    """One run of an import. `failure` says, afterwards, why it stopped before the end of the file, if it did."""

    org_id: str
    environment: Environment
    policy: OverLimitPolicy
    backfill: bool
    create_meters: bool
    rejects: Rejects
    failure: str | None = None
    #: Whether an event was refused for its age, which `backfill` would have let pass.
    met_old_events: bool = False
    counts: Counts = field(default_factory=Counts)

    async def run(self, services: Services, lines: Lines, console: Console) -> Counts:
        """Record all lines and return what became of them."""
        actor = Actor(IMPORT, self.org_id, self.environment, frozenset(Scope))
        context = services.context(actor)
        try:
            with Progress(*_COLUMNS, console=console, transient=True, disable=not console.is_terminal) as progress:
                task = progress.add_task("Importing", total=lines.size, lines=0)
                groups = self._groups(actor, lines)
                while (group := await _next(groups)) is not None:
                    await self._record(context, group)
                    progress.update(task, completed=lines.position, lines=self.counts.read)
        except (Unavailable, DatabaseUnavailable) as error:
            if isinstance(error, Unavailable):
                reason = error.message
            else:
                named_by = variable_of("database_url")
                reason = reason_of(error, services.settings.database_url, named_by=named_by)
                reason = f"The database is unavailable: {reason}"
            self.failure = f"{reason} Run the import again to resume it."
        except _RejectsLost as error:
            self.failure = f"{error} Run the import again, with other --rejects, to resume it."
        except (KeyboardInterrupt, asyncio.CancelledError):
            self.failure = "The import was interrupted. Run it again to resume it."
        return self.counts

    def _groups(self, actor: Actor, lines: Lines) -> Iterator[_Group]:
        """Return the lines that are not empty, in groups, up to where the file can be read."""
        group = _Group()
        read = 0
        try:
            for number, text in enumerate(lines, start=1):
                if not text.removeprefix(BYTE_ORDER_MARK).strip() and len(text) <= MAX_LINE_BYTES:
                    continue
                read += 1
                group.counts.read += 1
                group.size += len(text)
                self._add(group, actor, number, text)
                if group.is_full:
                    yield group
                    group = _Group()
        except READ_ERRORS as error:
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
        results = await context.meter_writer.submit([line.event for line in group.lines]) if group.lines else []
        missing = [
            line for line, result in zip(group.lines, results, strict=True) if isinstance(result, BillingMeterNotFound)
        ]
        if missing and self.create_meters:
            await self._create_meters(context, missing)
            again = iter(await context.meter_writer.submit([line.event for line in missing]))
            results = [next(again) if isinstance(result, BillingMeterNotFound) else result for result in results]
        for line, result in zip(group.lines, results, strict=True):
            self._count(group, line, result)
        self.counts.add(group.counts)
        if group.rejected:
            self._write(text for _, text in sorted(group.rejected))

    def _write(self, rejected: Iterable[bytes]) -> None:
        try:
            self.rejects.write(rejected)
        except OSError as error:
            raise _RejectsLost(f"{self.rejects.path} cannot be written: {error.strerror}.") from None

    async def _create_meters(self, context: Context, lines: Sequence[_Line]) -> None:
        for meter in dict.fromkeys(line.event.meter for line in lines):
            with suppress(AlreadyExists):  # Somebody else has just made it, which is as good.
                new = NewBillingMeter(meter.workspace_id, meter.external_meter_id, allow_overages=True)
                await create_billing_meter(context, new)

    def _count(self, group: _Group, line: _Line, result: Decision | Refusal) -> None:
        counts = group.counts
        if isinstance(result, Decision):
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


async def _next(groups: Iterator[_Group]) -> _Group | None:
    """Return the next group, if there is one. Raises `KeyboardInterrupt` if Ctrl+C is pressed meanwhile."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):  # The signal is ignored, as in the background.
        return next(groups, None)
    importing = asyncio.current_task()
    # Reading may wait for ever, and the event loop with it, whose own handler ends only what awaits.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        # Nothing is awaited here: the signal would be raised in the event loop, and end that instead of the import.
        if importing is None or not importing.cancelling():
            return next(groups, None)
    finally:
        signal.signal(signal.SIGINT, handler)
    await asyncio.sleep(0)  # Ctrl+C that was pressed just before is raised here.
    return None


class _RejectsLost(Exception):
    """Lines that were not accepted cannot be written down."""


def _as_it_was(text: bytes) -> dict[str, str | None]:
    """Return the line, byte for byte: as text, or in base64 where it is none. One too long is not known to its end."""
    if len(text) > MAX_LINE_BYTES:
        return {"input": None}
    try:
        return {"input": text.decode()}
    except UnicodeDecodeError:
        return {"input": None, "inputBase64": base64.b64encode(text).decode()}


def _parse(actor: Actor, text: bytes, default_policy: OverLimitPolicy) -> RecordUsage:
    """Return the event of one line. Raises `InvalidInput`, whose field is `line` when the line is no object at all."""
    if len(text) > MAX_LINE_BYTES:
        raise InvalidInput("line", f"must have at most {MAX_LINE_BYTES} bytes; it is longer, and is not repeated here.")
    try:
        fields = parse_json(text.removeprefix(BYTE_ORDER_MARK))
    except ValueError as error:
        raise InvalidInput("line", f"must be JSON in UTF-8: {error}") from None
    if not isinstance(fields, dict):
        raise InvalidInput("line", "must be a JSON object.")
    _require_names_once(text, fields)
    for name in fields:
        if name not in _FIELDS:
            raise InvalidInput(name, "is not a field of RecordUsageInput.")
    return RecordUsage.of(
        actor,
        workspace_id=_text(fields, "workspaceId"),
        external_meter_id=_text(fields, "externalMeterId"),
        event_id=_text(fields, "eventId"),
        amount=_read(fields, "amount", parse_sent_amount),
        usage_name=_text(fields, "usageName", DEFAULT_USAGE_NAME),
        occurred_at=_read(fields, "occurredAt", parse_instant) if fields.get("occurredAt") is not None else None,
        policy=_read(fields, "policy", _policy) if fields.get("policy") is not None else default_policy,
        metadata=fields.get("metadata"),
    )


def _require_names_once(text: bytes, fields: dict[str, Any]) -> None:
    """Refuse a line that names something twice in one object: which of the two is meant is not known."""
    # A name that was dropped leaves its quotes; quotes within a string have a backslash.
    if b"\\" in text or text.count(b'"') != 2 * _strings_in(fields):
        json.loads(text.removeprefix(BYTE_ORDER_MARK), object_pairs_hook=_unique)


def _strings_in(value: object) -> int:
    """Return how many strings there are in a JSON value, names among them."""
    if isinstance(value, str):
        return 1
    if isinstance(value, dict):
        return len(value) + sum(map(_strings_in, value.values()))
    return sum(map(_strings_in, value)) if isinstance(value, list) else 0


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidInput("line", f"must not name {twice!r} twice in one object.")
    return fields


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
