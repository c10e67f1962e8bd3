"""A meter's settings: those that it is made with, and changing its overages, spend cap and customer."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from resolvers.actor import Scope
from resolvers.context import Context
from resolvers.customers.customers import may_attach
from resolvers.errors import CustomerNotFound, InvalidInput
from resolvers.meters.names import meter_name
from resolvers.rules.commands import Decision, Known, after, gateway_key, newest_entry
from resolvers.values import check_timezone
from storage.meters.billing_meters import BillingMeterRow, MeterName
from storage.meters.ledger import LedgerEntryKind

_SETTINGS = LedgerEntryKind.SETTINGS

#: The settings of a meter by what the ledger calls them: as the API does. Those after the fixed ones may change.
FIXED_SETTINGS = {
    "orgId": "org_id",
    "environment": "environment",
    "workspaceId": "workspace_id",
    "externalMeterId": "external_meter_id",
    "timezone": "timezone",
}
SETTINGS = FIXED_SETTINGS | {
    "allowOverages": "allow_overages",
    "spendCap": "spend_cap",
    "customerId": "customer_id",
    "maxOpenHolds": "max_open_holds",
}


#: The settings that openings of earlier releases have none of.
LATER_SETTINGS = frozenset({"maxOpenHolds"})


def settings_of(meter: BillingMeterRow) -> dict[str, bool | str | None]:
    """Return the meter's settings as the ledger records them: a number as a decimal string, as amounts are everywhere.

    `OPENING` records each with its first value, and `SETTINGS` those that change.
    """
    values = {setting: getattr(meter, field) for setting, field in SETTINGS.items()}
    return {setting: str(value) if type(value) is int else value for setting, value in values.items()}


def opened_with(meter: BillingMeterRow) -> dict[str, list[bool | str | None]]:
    """Return what the opening of a meter records: each setting, one of `LATER_SETTINGS` where it has a value."""
    values = settings_of(meter).items()
    return {setting: [None, value] for setting, value in values if setting not in LATER_SETTINGS or value is not None}


def _check_positive(setting: str, value: int) -> None:
    if value < 1:
        raise InvalidInput(setting, "must be 1 or more.")


#: What holds a value of a setting against its rule. Amounts and names have been held against theirs before.
_CHECKS: Mapping[str, Callable[[str, Any], None]] = {
    "timezone": check_timezone,
    "maxOpenHolds": _check_positive,
}


def check_settings(values: Mapping[str, Any]) -> None:
    """Hold the values of settings, by column, against their rules; None is not. Raises `InvalidInput`."""
    for setting, check in _CHECKS.items():
        if (value := values.get(SETTINGS[setting])) is not None:
            check(setting, value)


class NewBillingMeter(NamedTuple):
    """What a caller says of a meter that is to be made; amounts are in whole credits. Each field is a meter's."""

    workspace_id: str
    external_meter_id: str
    total_credits: int = 0
    allow_overages: bool = False
    spend_cap: int | None = None
    customer_id: str | None = None
    max_open_holds: int | None = None
    timezone: str = "UTC"


class ChangeSettings(NamedTuple):
    """The settings that a meter is to have, by column; the others stay.

    `may_attach` says whether the caller may give the meter to the customer among them.
    """

    meter: MeterName
    settings: Mapping[str, Any]
    may_attach: bool
    key: str
    recorded_by: str

    @property
    def keys(self) -> Sequence[tuple[LedgerEntryKind, str]]:
        """The change's own."""
        return ((_SETTINGS, self.key),)

    def decide(self, meter: BillingMeterRow, known: Known, now: datetime) -> Decision:
        """Change what differs. Lowering the limit always succeeds: it is the emergency stop.

        Raises `CustomerNotFound`.
        """
        earlier = known.entries.get((_SETTINGS, self.key))
        if earlier is not None:
            return Decision(meter, earlier, replayed=True)
        changed = {field: value for field, value in self.settings.items() if getattr(meter, field) != value}
        if not changed:
            return Decision(meter, None)
        if changed.get("customer_id") is not None and not self.may_attach:
            raise CustomerNotFound
        old = settings_of(meter)
        meter = after(meter, now, **changed)
        new = settings_of(meter)
        metadata = {setting: [old[setting], new[setting]] for setting in new if old[setting] != new[setting]}
        entry = newest_entry(meter, _SETTINGS, amount=0, recorded_by=self.recorded_by, key=self.key, metadata=metadata)
        return Decision(meter, entry)


async def update_billing_meter(
    context: Context,
    *,
    workspace_id: str,
    external_meter_id: str,
    changes: Mapping[str, Any],
    remove_spend_cap: bool = False,
    remove_max_open_holds: bool = False,
) -> Decision:
    """Change a meter's `allow_overages`, `spend_cap` or `customer_id`; what `changes` leaves out stays.

    A meter without its customer is made by a `customer_id` of None. What changes is recorded by one `SETTINGS` entry,
    old and new; where nothing does, there is none.

    Raises `InvalidInput`, `Forbidden`, `BillingMeterNotFound` and `CustomerNotFound`, in this order.
    """
    actor = context.actor
    name = meter_name(actor, workspace_id, external_meter_id)
    if changes.get("allow_overages", False) is None:
        raise InvalidInput("allowOverages", "must not be null; leave it out to keep it.")
    if changes.get("spend_cap", 0) is None:
        raise InvalidInput("spendCap", "must not be null; removeSpendCap removes it.")
    if remove_spend_cap and "spend_cap" in changes:
        raise InvalidInput("removeSpendCap", "must not be true beside a spendCap.")
    if changes.get("max_open_holds", 1) is None:
        raise InvalidInput("maxOpenHolds", "must not be null; removeMaxOpenHolds removes it.")
    if remove_max_open_holds and "max_open_holds" in changes:
        raise InvalidInput("removeMaxOpenHolds", "must not be true beside maxOpenHolds.")
    check_settings(changes)
    actor.require(Scope.BILLING_WRITE)
    actor.require_workspace(workspace_id)
    settings = dict(changes) | ({"spend_cap": None} if remove_spend_cap else {})
    settings |= {"max_open_holds": None} if remove_max_open_holds else {}
    customer_id = settings.get("customer_id")
    is_attachable = customer_id is None
    if customer_id is not None:
        async with context.database.read() as reader:
            is_attachable = await may_attach(reader, actor, customer_id)
    return await context.change(ChangeSettings(name, settings, is_attachable, gateway_key(), actor.key_id))
