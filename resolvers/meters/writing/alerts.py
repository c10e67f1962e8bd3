"""What a group of commands reads and writes of alerts: nothing, but for meters that have any, or are to have them."""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING

from resolvers.meters.alerts.commands import AlertCommand, CreateAlert, DeleteAlert, UpdateAlert
from resolvers.meters.alerts.workspaces import WorkspaceAlerts
from resolvers.rules.commands import Command
from resolvers.rules.watching import Named, Watch, Watched
from storage import alerts, idempotency_keys
from storage.engine.transactions import Writer
from storage.meters import meter_alerts, usage
from storage.meters.usage import UsageRange

if TYPE_CHECKING:
    from resolvers.meters.writing.group import LockedMeter

_ABOUT_ALERTS = (CreateAlert, UpdateAlert, DeleteAlert)


async def look_up(
    writer: Writer,
    meters: Mapping[str, "LockedMeter"],
    commands: Sequence[tuple[str | None, Command]],
    of_workspaces: WorkspaceAlerts,
) -> None:
    """Read the alerts of the meters after their locks, and have each take on what has changed of them.

    A lock's own snapshot may be older than the entry before. What is taken on is written with the next entry.
    """
    about = [(id_, each) for id_, each in commands if id_ is not None and isinstance(each, _ABOUT_ALERTS)]
    named = Named()
    if about:
        await _read_named(writer, [each for _, each in about], named)
        for id_, _ in about:
            meters[id_].known.watch = Watch(named)
    if watching := [id_ for id_, of in meters.items() if of.before.has_alerts]:
        for id_ in watching:
            meters[id_].known.watch = Watch(named)
        for row, alert in await alerts.taken_on(writer, watching):
            watch = meters[row.meter_id].known.watch
            assert watch is not None  # noqa: S101  # It has just been made.
            watch.alerts.append(Watched(row, alert))
        for id_ in watching:
            _follow_changes(meters[id_])
    if of_workspaces:
        await _take_on_new(writer, meters, of_workspaces, named)
    for of in meters.values():
        if of.known.watch is not None:
            of.known.watch.note_moments(of.known, of.now)


async def _read_named(writer: Writer, commands: Sequence[AlertCommand], named: Named) -> None:
    """Read the alerts that commands name, and the first requests under their idempotency keys."""
    wanted = {command.alert_id for command in commands}
    for command in commands:
        if isinstance(command, CreateAlert) and command.idempotency_key is not None:
            request = await idempotency_keys.find(
                writer,
                org_id=command.meter.org_id,
                environment=command.meter.environment,
                operation=command.operation,
                key=command.idempotency_key,
            )
            if request is not None:
                named.requests[request.key] = request
                wanted.add(request.result_id)
    named.alerts |= await alerts.by_ids(writer, wanted)


def _follow_changes(of: "LockedMeter") -> None:
    """Give up what was deleted or changed, as a workspace's alerts are without their meters, and take on the change."""
    watch = of.known.watch
    assert watch is not None  # noqa: S101  # The callers have made it.
    for each in watch.holding():
        if each.alert.is_deleted or each.alert.version != each.row.version:
            watch.give_up(each.row.alert_id, of.before)
            if not each.alert.is_deleted:
                watch.take_on(each.alert, of.before, of.now)


async def _take_on_new(
    writer: Writer, meters: Mapping[str, "LockedMeter"], of_workspaces: WorkspaceAlerts, named: Named
) -> None:
    """Have meters take on the alerts of their workspaces that they have not yet."""
    missing: dict[str, list[str]] = {}
    for id_, of in meters.items():
        if ids := of_workspaces.of(of.before):
            known = {each.row.alert_id for each in of.known.watch.alerts} if of.known.watch is not None else set()
            if new := [alert_id for alert_id in ids if alert_id not in known]:
                missing[id_] = sorted(new)
    if not missing:
        return
    found = await alerts.by_ids(writer, {alert_id for new in missing.values() for alert_id in new})
    for id_, new in missing.items():
        of = meters[id_]
        for alert_id in new:
            alert = found.get(alert_id)
            if alert is None or alert.is_deleted:
                of_workspaces.discard(alert_id, of.before)
                continue
            watch = of.known.watch = of.known.watch or Watch(named)
            watch.take_on(alert, of.before, of.now)


async def cross(writer: Writer, meters: Mapping[str, "LockedMeter"]) -> None:
    """Add the events of the thresholds that the decided entries have crossed."""
    watched = [(of, watch) for of in meters.values() if (watch := of.known.watch) is not None and watch.is_written]
    days = {of.before.id: watch.days(of.before.timezone) for of, watch in watched}
    used = await _usage(writer, {id_: of_meter for id_, of_meter in days.items() if of_meter[0]})
    for of, watch in watched:
        of.known.events += watch.crossings(of.before, used.get(of.before.id, {}))
        if watch.alerts:
            of.meter = of.meter._replace(has_alerts=True)


async def _usage(
    writer: Writer, wanted: Mapping[str, tuple[set[date], set[str] | None]]
) -> dict[str, dict[date, dict[str, int]]]:
    """Return what these days have used of each meter, by usage name."""
    if not wanted:
        return {}
    ranges = [UsageRange(id_, day, day) for id_, (days, _) in wanted.items() for day in sorted(days)]
    is_all = any(names is None for _, names in wanted.values())
    names = None if is_all else sorted({name for _, of in wanted.values() for name in of or ()})
    found: dict[str, dict[date, dict[str, int]]] = {}
    for rows in await usage.by_ranges(writer, ranges, usage_names=names):
        for row in rows:
            found.setdefault(row.meter_id, {}).setdefault(row.day, {})[row.usage_name] = row.total_usage
    return found


async def write(writer: Writer, meters: Mapping[str, "LockedMeter"]) -> None:
    """Write what meters have taken on and given up, and which alerts were made and changed."""
    watches = [of.known.watch for _, of in sorted(meters.items()) if of.known.watch is not None]
    written = [each for watch in watches if watch.is_written for each in watch.alerts]
    if new := [each.row for each in written if each.is_new]:
        await meter_alerts.insert_meter_alerts(writer, new)
    if changed := [each.row for each in written if each.is_changed and not each.is_new]:
        await meter_alerts.update_meter_alerts(writer, changed)
    if watches:
        named = watches[0].named
        for id_ in sorted(named.made):
            await alerts.insert_alert(writer, named.alerts[id_])
        for id_ in sorted(named.changed - named.made):
            await alerts.update_alert(writer, named.alerts[id_])
        for request in sorted(named.remembered):
            await idempotency_keys.insert_key(writer, request)
