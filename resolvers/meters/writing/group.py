"""The commands of one transaction: what is known of their meters, what is decided of them, and what is written."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime

from resolvers.errors import BillingMeterNotFound, LimitRefusal, Refusal
from resolvers.meters.alerts.workspaces import WorkspaceAlerts
from resolvers.meters.writing import alerts
from resolvers.meters.writing.lanes import Result, Submission
from resolvers.meters.writing.refills import expire_request, look_at_refill, read_refills, write_refills
from resolvers.rules.alerts import ON_DAY
from resolvers.rules.booking import Booked, book_due, next_due, settle
from resolvers.rules.commands import Command, Decision, Known
from resolvers.rules.credits import BASE, Credits, by_meter, parts_of
from resolvers.rules.events import numbered
from storage.engine.long_values import length_left_out
from storage.engine.transactions import Writer
from storage.meters import billing_meters, credit_grants, events, holds, ledger, usage
from storage.meters.billing_meters import BillingMeterRow, MeterName
from storage.meters.events import EventRow
from storage.meters.ledger import LedgerEntryKind, LedgerEntryRow, LedgerKey

_USAGE, _VOID, _GRANT, _HOLD = (
    *(LedgerEntryKind.USAGE, LedgerEntryKind.VOID),
    *(LedgerEntryKind.GRANT, LedgerEntryKind.HOLD),
)


@dataclass(slots=True)
class LockedMeter:
    """A meter that the transaction has locked, while its commands are decided.

    `now` is when they are decided: never before the meter's newest entry, whatever other gateways' clocks say.
    """

    before: BillingMeterRow
    meter: BillingMeterRow
    now: datetime
    known: Known = field(default_factory=Known)

    def number_events(self) -> list[EventRow]:
        """Return what has happened to it that is an event, and note the number of the newest."""
        rows = numbered(self.meter, self.known.events)
        self.meter = self.meter._replace(last_event=rows[-1].number)
        return rows


class Group:
    """The submissions of one transaction: the results of those that it decides, and those whose meters are `locked`."""

    def __init__(self, meters: dict[str, LockedMeter]) -> None:
        self.meters = meters
        self.written: list[LedgerEntryRow] = []
        self.decided: list[tuple[Submission, list[Result]]] = []
        self.locked: list[Submission] = []

    def decide(self, submission: Submission, ids: Mapping[MeterName, str]) -> None:
        """Decide the commands of a submission after those before it."""
        own = {(entry.meter_id, entry.seq): entry for entry in submission.tried}
        results = [self._decide(command, ids.get(command.meter), own) for command in submission.commands]
        self.decided.append((submission, results))

    def _decide(self, command: Command, meter_id: str | None, own: dict[tuple[str, int], LedgerEntryRow]) -> Result:
        if meter_id is None:
            return BillingMeterNotFound(command.meter.workspace_id, command.meter.external_meter_id)
        of = self.meters[meter_id]
        is_due = of.meter.is_due(of.now)
        if of.meter.may_owe(of.now):
            self._book(of, book_due(of.meter, of.known, of.now))
        if is_due:
            expire_request(of)
        result = self._result(of, command, own)
        # After the command, which may bring the credits; a refusal changes nothing, but time may have.
        if is_due or (isinstance(result, Decision) and not result.replayed):
            look_at_refill(of)
        return result

    def _result(self, of: LockedMeter, command: Command, own: dict[tuple[str, int], LedgerEntryRow]) -> Result:
        """Decide a command of a meter of which nothing is due, with what follows from it."""
        try:
            decision = command.decide(of.meter, of.known, of.now)
        except Refusal as refusal:
            # Its traceback knows the group, and would keep all of it in memory.
            return refusal.with_traceback(None)
        entry = decision.entry
        if decision.replayed and entry is not None:
            is_own = own.pop((of.meter.id, entry.seq), None) == entry
            return decision._replace(replayed=False) if is_own else decision
        of.meter = decision.billing_meter
        if entry is not None:
            self._write(of, entry)
        if of.known.credits is not None:
            self._book(of, settle(of.meter, of.known, of.now))
        if of.known.watch is not None:
            of.known.watch.decided(decision.billing_meter, of.known, of.now, entry)
        return decision

    def _book(self, of: LockedMeter, booked: Iterator[Booked]) -> None:
        for meter, entry in booked:
            of.meter = meter
            self._write(of, entry)
        if of.known.watch is not None:
            of.known.watch.note_moments(of.known, of.now)
        of.meter = of.meter._replace(next_due_at=next_due(of.meter, of.known))

    def _write(self, of: LockedMeter, entry: LedgerEntryRow) -> None:
        of.known.add(of.meter, entry)
        self.written.append(entry)

    def as_committed(self, result: Result) -> Result:
        """Return the result with its meter as it is after the group's commit."""
        if isinstance(result, Decision):
            of, known = (at := self.meters[result.billing_meter.id]), at.known
            grant, hold, request = result.credit_grant, result.hold, result.refill_request
            if grant is None and hold is None and result.auto_refill is None and of.meter is result.billing_meter:
                return result
            if known.credits is not None and grant is not None:
                grant = known.credits.grants[grant.seq]
            if hold is not None:
                hold = known.holds[hold.hold_id]
            if known.refills is not None and result.auto_refill is not None:
                request = None if request is None else known.refills.requests[request.number]
                result = result._replace(refill_request=request, auto_refill=known.refills.shown)
            return result._replace(billing_meter=of.meter, credit_grant=grant, hold=hold)
        if isinstance(result, LimitRefusal):
            result.billing_meter = self.meters[result.billing_meter.id].meter
        return result


async def look_up(
    writer: Writer,
    meters: Mapping[str, LockedMeter],
    commands: Sequence[tuple[str | None, Command]],
    alerts_of_workspaces: WorkspaceAlerts,
) -> None:
    """Read what is there already of what the commands name, each given with its meter's id; the meters are locked."""
    named = [(meter_id, command.keys) for meter_id, command in commands if meter_id is not None]
    wanted = [LedgerKey(meter_id, kind, key) for meter_id, keys in named for kind, key in keys]
    if wanted:
        await _read_entries(writer, meters, wanted)
    if any(of.meter.has_grants or of.meter.has_holds for of in meters.values()):
        await _read_credits(writer, meters, {meter_id for meter_id, kind, _ in wanted if kind is _VOID})
    if with_refills := {id_: of for id_, of in meters.items() if of.meter.has_auto_refill}:
        await read_refills(writer, with_refills, wanted)
    await alerts.look_up(writer, meters, commands, alerts_of_workspaces)


async def _read_entries(writer: Writer, meters: Mapping[str, LockedMeter], wanted: list[LedgerKey]) -> None:
    """Read the entries of these keys, and what is voided already of those whose voids are among the keys."""
    # Where a meter has had holds, an event and a hold may not have the same id.
    usage_keys = [(id_, key) for id_, kind, key in wanted if kind is _USAGE]
    wanted += [LedgerKey(id_, _HOLD, key) for id_, key in usage_keys if meters[id_].meter.has_holds]
    entries = await ledger.by_keys(writer, wanted)
    for (meter_id, kind, key), entry in entries.items():
        meters[meter_id].known.entries[kind, key] = entry
    if _VOID in {kind for _, kind, _ in wanted}:
        usages = [(entry.meter_id, entry.seq) for entry in entries.values() if entry.kind is _USAGE]
        for (meter_id, seq), credits_ in (await ledger.voided_credits(writer, usages)).items():
            meters[meter_id].known.voided_credits[seq] = credits_


async def _read_credits(writer: Writer, meters: Mapping[str, LockedMeter], voiding: Collection[str]) -> None:
    """Read the grants and holds of those of the locked meters that have had any.

    `voiding` are the meters with voids among their commands, which may give back to any grant.
    """
    with_grants = [id_ for id_, of in meters.items() if of.meter.has_grants]
    with_holds = [id_ for id_, of in meters.items() if of.meter.has_holds]
    grants = await credit_grants.usable(writer, with_grants) if with_grants else []
    if covering := [id_ for id_ in with_grants if id_ in voiding and _gives_back_uncovered(meters[id_].known)]:
        grants += await credit_grants.covering(writer, covering)
    named = {(id_, seq) for id_ in with_grants for seq in _named_grants(meters[id_].known, is_voiding=id_ in voiding)}
    # One that is named is read whole: a repeated request is compared with its metadata.
    named -= {(grant.meter_id, grant.seq) for grant in (grants if named else ()) if not length_left_out(grant.metadata)}
    if named:
        grants += (await credit_grants.by_seqs(writer, sorted(named))).values()
    of_meters = by_meter(grants)
    for id_ in {*with_grants, *with_holds}:
        of = meters[id_]
        of.known.credits = Credits.of(of.meter, of_meters[id_])
    due = [id_ for id_ in with_holds if meters[id_].meter.may_owe(meters[id_].now)]
    rows = await holds.open_of(writer, due) if due else []
    names = [(id_, key) for id_ in with_holds for kind, key in meters[id_].known.entries if kind is _HOLD]
    rows += await holds.by_names(writer, names) if names else []
    for row in rows:
        meters[row.meter_id].known.holds[row.hold_id] = row


def _gives_back_uncovered(known: Known) -> bool:
    """Whether an event that is named, perhaps by a void, has something left that no credit had paid."""
    usages = [entry for (kind, _), entry in known.entries.items() if kind is _USAGE]
    return any(parts_of(each)[1] > known.voided_credits.get(each.seq, 0) for each in usages)


def _named_grants(known: Known, *, is_voiding: bool) -> set[int]:
    """Return which grants the commands name, or have drawn by the events that they void."""
    named = {entry.seq for (kind, _), entry in known.entries.items() if kind is _GRANT}
    if is_voiding:
        usages = [entry for (kind, _), entry in known.entries.items() if kind is _USAGE]
        named |= {seq for each in usages for seq, _ in parts_of(each)[0]} - {BASE}
    return named


async def write(writer: Writer, group: Group) -> None:
    """Write all that was decided."""
    await alerts.cross(writer, group.meters)
    # A hold that is extended has no entry, and need not change what its meter says.
    new_events = [event for of in group.meters.values() if of.known.events for event in of.number_events()]
    changed = [of for _, of in sorted(group.meters.items()) if of.meter != of.before or of.known.changed_holds]
    if changed:
        await billing_meters.update_meters(writer, [(of.before, of.meter) for of in changed])
        await _write_credits(writer, changed)
    await write_refills(writer, [of for _, of in sorted(group.meters.items())])
    if group.written:
        await write_entries(writer, group.written)
    if new_events:
        await events.insert_events(writer, new_events)
    await alerts.write(writer, group.meters)


async def _write_credits(writer: Writer, meters: Collection[LockedMeter]) -> None:
    """Write the grants and holds of the meters that were made or changed."""
    meters = [of for of in meters if of.known.credits is not None or of.known.changed_holds]
    changed = [
        (grant.seq > of.before.last_seq, grant)
        for of in meters
        if (credits_ := of.known.credits) is not None
        for grant in [credits_.grants[seq] for seq in sorted(credits_.changed - {BASE})]
    ]
    if made := [grant for is_new, grant in changed if is_new]:
        await credit_grants.insert_grants(writer, made)
    if kept := [grant for is_new, grant in changed if not is_new]:
        await credit_grants.update_grants(writer, kept)
    rows = [
        (hold.seq > of.before.last_seq, hold)
        for of in meters
        for hold in [of.known.holds[hold_id] for hold_id in sorted(of.known.changed_holds)]
    ]
    if opened := [hold for is_new, hold in rows if is_new]:
        await holds.insert_holds(writer, opened)
    if closed := [hold for is_new, hold in rows if not is_new]:
        await holds.update_holds(writer, closed)


async def write_entries(writer: Writer, entries: Sequence[LedgerEntryRow]) -> None:
    """Write entries to the ledgers of meters that the transaction has locked or made, and what they add to usage days.

    Whatever changes a meter is written here, except by `tollgate copy`.
    """
    days: dict[tuple[str, date, str], int] = {}
    for entry in entries:
        sign = ON_DAY.get(entry.kind)
        if sign is not None:
            assert entry.day is not None  # noqa: S101  # Such an entry has its day and name.
            assert entry.usage_name is not None  # noqa: S101  # An entry that has a day has a usage name.
            key = (entry.meter_id, entry.day, entry.usage_name)
            days[key] = days.get(key, 0) + sign * entry.amount
    if days:
        await usage.add(writer, days)
    await ledger.insert_entries(writer, entries)
