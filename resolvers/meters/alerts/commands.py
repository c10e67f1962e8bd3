"""The commands that make, change and delete the alerts of one meter, which hold from then on."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from resolvers import idempotency
from resolvers.errors import AlertNotFound, IdempotencyConflict, TooManyAlerts
from resolvers.rules.alerts import MAX_ALERTS
from resolvers.rules.commands import Decision, Known
from resolvers.rules.watching import Watch
from storage.alerts import AlertRow
from storage.idempotency_keys import IdempotencyKeyRow
from storage.meters.billing_meters import BillingMeterRow, MeterName
from storage.meters.ledger import LedgerEntryKind
from storage.meters.meter_alerts import AlertKind

CREATE = "createAlert"


class NewAlert(NamedTuple):
    """What a caller says of an alert that is to be made. `external_meter_id` None: of each meter of the workspace."""

    workspace_id: str
    kind: AlertKind
    threshold: int
    external_meter_id: str | None = None
    usage_name: str | None = None
    name: str | None = None
    trigger_if_past: bool = False


class CreateAlert(NamedTuple):
    """An alert of the meter to make under this id."""

    meter: MeterName
    alert_id: str
    request: NewAlert
    idempotency_key: str | None

    @property
    def operation(self) -> str:
        """What the idempotency key is of."""
        return CREATE

    @property
    def keys(self) -> Sequence[tuple[LedgerEntryKind, str]]:
        """None: it has no entry."""
        return ()

    def decide(self, meter: BillingMeterRow, known: Known, now: datetime) -> Decision:
        """Make the alert. Raises `IdempotencyConflict` and `TooManyAlerts`, in this order."""
        watch, key, request = _watch_of(known), self.idempotency_key, self.request
        named = watch.named
        if (own := named.alerts.get(self.alert_id)) is not None:
            # An attempt whose COMMIT was not answered has made it.
            return Decision(meter, None, alert=own)
        if key is not None and (earlier := named.requests.get(key)) is not None:
            return Decision(meter, None, replayed=True, alert=replayed(earlier, request, named.alerts))
        if sum(each.alert.meter_id is not None for each in watch.holding()) >= MAX_ALERTS:
            raise TooManyAlerts(MAX_ALERTS)
        alert = new_alert(self.alert_id, self.meter, request, meter_id=meter.id, now=now)
        named.make(alert)
        if key is not None:
            made = IdempotencyKeyRow(
                *(alert.org_id, alert.environment, CREATE, key, idempotency.digest(request), alert.id, now)
            )
            named.requests[key] = made
            named.remembered.append(made)
        watch.start(alert, meter, known, now, if_past=request.trigger_if_past)
        return Decision(meter._replace(has_alerts=True), None, alert=alert)


class UpdateAlert(NamedTuple):
    """The threshold and name that an alert of the meter is to have, by column; the others stay."""

    meter: MeterName
    alert_id: str
    changes: Mapping[str, Any]
    trigger_if_past: bool

    @property
    def keys(self) -> Sequence[tuple[LedgerEntryKind, str]]:
        """None: it has no entry."""
        return ()

    def decide(self, meter: BillingMeterRow, known: Known, now: datetime) -> Decision:
        """Change what differs; another threshold is another version. Raises `AlertNotFound`."""
        watch = _watch_of(known)
        alert = watch.named.alerts.get(self.alert_id)
        if alert is None or alert.is_deleted:
            raise AlertNotFound
        changed = changed_alert(alert, self.changes)
        if changed != alert:
            watch.named.change(changed)
            watch.is_changed = True
            for each in watch.holding():
                if each.row.alert_id == alert.id:
                    each.alert = changed
        if changed.version != alert.version:
            watch.give_up(alert.id, meter)
            watch.start(changed, meter, known, now, if_past=self.trigger_if_past)
        return Decision(meter, None, alert=changed)


class DeleteAlert(NamedTuple):
    """An alert of the meter to delete. `tried` notes that an attempt has, whose COMMIT may not have been answered."""

    meter: MeterName
    alert_id: str
    tried: list[str]

    @property
    def keys(self) -> Sequence[tuple[LedgerEntryKind, str]]:
        """None: it has no entry."""
        return ()

    def decide(self, meter: BillingMeterRow, known: Known, now: datetime) -> Decision:  # noqa: ARG002  # A command's.
        """Delete the alert. Raises `AlertNotFound`."""
        watch = _watch_of(known)
        alert = watch.named.alerts.get(self.alert_id)
        if alert is None or (alert.is_deleted and not self.tried):
            raise AlertNotFound
        if not alert.is_deleted:
            alert = alert._replace(is_deleted=True)
            watch.named.change(alert)
            watch.is_changed = True
            watch.give_up(alert.id, meter)
            self.tried.append(alert.id)
        return Decision(meter, None, alert=alert)


AlertCommand = CreateAlert | UpdateAlert | DeleteAlert


def new_alert(alert_id: str, tenant: MeterName, request: NewAlert, *, meter_id: str | None, now: datetime) -> AlertRow:
    """Return the alert that a request makes, of the meter of this id or of each meter of the workspace."""
    return AlertRow(
        id=alert_id,
        org_id=tenant.org_id,
        environment=tenant.environment,
        workspace_id=request.workspace_id,
        external_meter_id=request.external_meter_id,
        meter_id=meter_id,
        kind=request.kind,
        threshold=request.threshold,
        usage_name=request.usage_name,
        name=request.name,
        version=1,
        is_deleted=False,
        created_at=now,
    )


def changed_alert(alert: AlertRow, changes: Mapping[str, Any]) -> AlertRow:
    """Return the alert with these changes: another version where the threshold is another one."""
    changed = alert._replace(**changes)
    return changed._replace(version=alert.version + (changed.threshold != alert.threshold))


def replayed(earlier: IdempotencyKeyRow, request: NewAlert, alerts: Mapping[str, AlertRow]) -> AlertRow:
    """Return what the first request under the key has made, as it now is. Raises `IdempotencyConflict`."""
    if earlier.request_digest != idempotency.digest(request) or earlier.result_id not in alerts:
        raise IdempotencyConflict(earlier.key)
    return alerts[earlier.result_id]


def _watch_of(known: Known) -> Watch:
    assert known.watch is not None  # noqa: S101  # The writer makes one for each meter that such a command names.
    return known.watch
