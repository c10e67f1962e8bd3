"""The alerts of meters as they are: on which side of its threshold each meter is."""

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import NamedTuple

from resolvers.reading.moment import Moment
from resolvers.rules.alerts import Course, Levels, is_past, nears_end_at, taken_on
from resolvers.rules.credits import by_meter
from resolvers.rules.due import Due
from resolvers.values import day_of
from storage import alerts
from storage.alerts import AlertRow
from storage.engine.transactions import Reader
from storage.meters import credit_grants, usage
from storage.meters.billing_meters import BillingMeterRow
from storage.meters.credit_grants import CreditGrantRow
from storage.meters.meter_alerts import AlertKind
from storage.meters.usage import UsageRange


class AlertOfMeter(NamedTuple):
    """An alert, whether a meter is past its threshold, and when it last came there."""

    alert: AlertRow
    is_past: bool
    last_triggered_at: datetime | None


async def alerts_of(reader: Reader, due: Due, meter_ids: Sequence[str], moment: Moment) -> list[list[AlertOfMeter]]:
    """Return the alerts of each meter, its own and its workspace's, the oldest first; all are of the reader's bucket.

    `due` are those of the meters that the actor may see, of one tenant.
    """
    meters = due.visible
    if not meters:
        return [[] for _ in meter_ids]
    tenant = next(iter(meters.values()))
    found = await alerts.of_meters(
        reader,
        [*meters],
        org_id=tenant.org_id,
        environment=tenant.environment,
        workspace_ids={meter.workspace_id for meter in meters.values()},
    )
    of_meters = {
        id_: [alert for alert in found if alert.meter_id in (id_, None) and alert.workspace_id == meter.workspace_id]
        for id_, meter in meters.items()
    }
    watching = [id_ for id_, meter in meters.items() if meter.has_alerts]
    triggered = {
        (row.meter_id, row.alert_id): row.last_triggered_at
        for row, _ in (await alerts.taken_on(reader, watching) if watching else ())
    }
    days = {id_: day_of(moment.of(id_), meters[id_].timezone) for id_ in meters}
    used = await _usage(reader, {id_: days[id_] for id_ in _with(of_meters, AlertKind.DAY_USAGE_ABOVE)})
    near = _with(of_meters, AlertKind.GRANT_EXPIRES_WITHIN)
    grants = await _grants(reader, due, [id_ for id_ in near if meters[id_].has_grants])

    def shown(meter: BillingMeterRow, alert: AlertRow) -> AlertOfMeter:
        now, day = moment.of(meter.id), days[meter.id]
        row = taken_on(alert, meter, now)
        course = Course(Levels.of_meter(meter), {day: used.get(meter.id, {})})
        moments = [nears_end_at(row, grant) for grant in grants.get(meter.id, ()) if grant.is_live(now)]
        is_near = any(at is not None and at <= now for at in moments) and alert.kind is AlertKind.GRANT_EXPIRES_WITHIN
        is_triggered = is_near or is_past(row, course.levels, course.usage(day, alert.usage_name))
        return AlertOfMeter(alert, is_triggered, triggered.get((meter.id, alert.id)))

    return [[shown(meters[id_], alert) for alert in of_meters[id_]] if id_ in meters else [] for id_ in meter_ids]


def _with(of_meters: Mapping[str, Sequence[AlertRow]], kind: AlertKind) -> list[str]:
    """Return the meters that have an alert of this kind."""
    return [id_ for id_, found in of_meters.items() if any(alert.kind is kind for alert in found)]


async def _usage(reader: Reader, days: Mapping[str, date]) -> dict[str, dict[str, int]]:
    """Return what a day of each meter has used, by usage name."""
    ranges = [UsageRange(id_, day, day) for id_, day in days.items()]
    rows = await usage.by_ranges(reader, ranges) if ranges else []
    return {
        range_.meter_id: {row.usage_name: row.total_usage for row in of}
        for range_, of in zip(ranges, rows, strict=True)
    }


async def _grants(reader: Reader, due: Due, meter_ids: Sequence[str]) -> dict[str, list[CreditGrantRow]]:
    """Return the grants of each meter of which something may be used, as they are."""
    found: dict[str, list[CreditGrantRow]] = by_meter(
        await credit_grants.usable(reader, meter_ids) if meter_ids else ()
    )
    return found | {id_: due.grants_of(id_) for id_ in meter_ids if id_ in due.known}
