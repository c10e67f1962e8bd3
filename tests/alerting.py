"""Alerts in tests: making them, and what they have come to, a line for each event."""

from datetime import date, timedelta
from typing import Any

import jsonschema_rs
import orjson

from resolvers.rules.event_schema import event_schema
from storage.engine.pages import Page
from storage.meters import events
from storage.meters.events import EventFilter, EventRow, EventType
from storage.tenants import Environment
from tests.conftest import Caller, Gateway
from tests.steps import must, reading_of

ALERT = "alert { id workspaceId externalMeterId kind threshold usageName name version createdAt }"

SCHEMA = jsonschema_rs.Draft202012Validator(event_schema(), validate_formats=True)

ALERT_TYPES = (EventType.ALERT_TRIGGERED, EventType.ALERT_RECOVERED)


async def make_alert(caller: Caller, kind: str, threshold: int, **values: Any) -> str:
    """Make an alert of the meter `m` of `w`, unless the values say otherwise, and return its id."""
    made = await must(caller, "createAlert", "alert { id }", kind=kind, threshold=str(threshold), **values)
    return str(made["alert"]["id"])


async def make_workspace_alert(caller: Caller, kind: str, threshold: int, **values: Any) -> str:
    """Make an alert of each meter of the workspace `w`, and return its id."""
    values = {"workspaceId": "w", "kind": kind, "threshold": str(threshold)} | values
    answer = await caller.mutate("createAlert", "... on CreateAlertSuccess { alert { id } }", **values)
    return str(answer["alert"]["id"])


async def delete_alert(caller: Caller, id_: str) -> dict[str, Any]:
    """Delete an alert, and return what is answered."""
    query = """mutation ($id: ID!) { deleteAlert(input: {id: $id}) {
      __typename ... on DeleteAlertSuccess { deletedId } ... on UserError { code message }
    } }"""
    answer: dict[str, Any] = (await caller.data(query, {"id": id_}))["deleteAlert"]
    return answer


async def alert_events(gateway: Gateway, meter_id: str) -> list[EventRow]:
    """Return the events of a meter's alerts, the oldest first."""
    page = Page(10_000)
    async with reading_of(gateway.database, meter_id) as reader:
        rows = await events.page(
            reader,
            page,
            org_id=gateway.org_id,
            environment=Environment.SANDBOX,
            workspace_ids=None,
            wanted=EventFilter(types=ALERT_TYPES, owner_id=meter_id),
        )
    return sorted(rows, key=lambda row: row.number)


async def lines(gateway: Gateway, meter_id: str) -> list[str]:
    """Return a line for each event of a meter's alerts, such as `triggered at 3: REMAINING_BELOW 10 v1`."""
    return [line_of(row) for row in await alert_events(gateway, meter_id)]


def line_of(row: EventRow) -> str:
    body = orjson.loads(row.payload)
    SCHEMA.validate(body)
    data = body["data"]
    alert = data["alert"]
    assert (body["type"], data["seq"], alert["id"]) == (row.type, str(row.seq), row.alert_id)
    name = "" if alert["usageName"] is None else f" {alert['usageName']}"
    day = f" on {data['day']}" if "day" in data else ""
    grant = f" grant {data['creditGrant']['id'].rpartition('_')[2]}" if "creditGrant" in data else ""
    what = row.type.removeprefix("alert.")
    return f"{what} at {row.seq}: {alert['kind']} {alert['threshold']}{name} v{alert['version']}{day}{grant}"


async def states(caller: Caller, external_meter_id: str = "m") -> list[str]:
    """Return a line for each alert of a meter: its kind, threshold and state, and whether it has triggered."""
    query = """query ($m: String!) { billingMeter(workspaceId: "w", externalMeterId: $m) {
      alerts { alert { kind threshold } state lastTriggeredAt }
    } }"""
    found = (await caller.data(query, {"m": external_meter_id}))["billingMeter"]["alerts"]
    return [
        f"{each['alert']['kind']} {each['alert']['threshold']} {each['state']}"
        + ("" if each["lastTriggeredAt"] is None else " before")
        for each in found
    ]


def days_from(day: date, count: int) -> list[str]:
    """Return so many days from that one on, as bodies have them."""
    return [str(day + timedelta(days=number)) for number in range(count)]
