"""The gateway against a plain model of itself: any sequence of requests has the answers that the rules give.

The model keeps everything in dictionaries and decides one request after the other. Hypothesis makes the sequences and,
where an answer differs, the shortest one for which it does.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, Phase, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from resolvers.actor import Scope
from resolvers.api_keys import create_api_key
from storage import migrations
from storage.engine.database import Database
from storage.tenants import Environment
from tests.conftest import NOW, Caller, Gateway, empty_database, gateway_on
from tests.steps import ENTRY, METER, disagreements, meter_of

MAX = 2**63 - 1
FORBIDDEN = "FORBIDDEN"

Answer = dict[str, Any]


class Request(NamedTuple):
    """One mutation. `may_correct` says which of the two keys sends it: the one with `usage:correct` or the other."""

    field: str
    input: Any
    may_correct: bool = True


# The model.


@dataclass
class Meter:
    """A meter as the rules describe it. Its entries are kept as the API shows them, and with their limits beside."""

    id: str
    zone: str
    total: int
    overages: bool
    cap: int | None
    used: int = 0
    entries: list[Answer] = field(default_factory=list)
    limits: list[int | None] = field(default_factory=list)
    days: dict[tuple[str, str], int] = field(default_factory=dict)
    events: dict[str, tuple[Answer, int]] = field(default_factory=dict)
    refills: dict[str, tuple[int, int]] = field(default_factory=dict)
    voids: dict[str, tuple[tuple[Any, ...], int]] = field(default_factory=dict)

    @property
    def limit(self) -> int | None:
        if not self.overages:
            return self.total
        return None if self.cap is None else min(self.total + self.cap, MAX)

    @property
    def available(self) -> int | None:
        return None if self.limit is None else max(0, self.limit - self.used)

    def shown(self) -> Answer:
        return {
            "id": self.id,
            "totalCredits": str(self.total),
            "usedCredits": str(self.used),
            "overageCredits": str(max(0, self.used - self.total)),
            "availableCredits": None if self.available is None else str(self.available),
            "allowOverages": self.overages,
            "spendCap": None if self.cap is None else str(self.cap),
        }

    def add(self, kind: str, now: datetime, recorded_by: str, **facts: Any) -> Answer:
        """Add an entry, after what it does to the totals is done."""
        entry = {
            "id": f"ent_{self.id.removeprefix('mtr_')}_{len(self.entries) + 1}",
            "kind": kind,
            "amount": "0",
            "totalCreditsAfter": str(self.total),
            "usedCreditsAfter": str(self.used),
            "key": None,
            "usageName": None,
            "day": None,
            "requestedAmount": None,
            "policy": None,
            "voids": None,
            "occurredAt": shown(now),
            "recordedAt": shown(now),
            "recordedBy": recorded_by,
            "reason": None,
            "metadata": {},
        } | facts
        self.entries.append(entry)
        self.limits.append(self.limit)
        return entry

    def count(self, day: str, name: str, amount: int) -> None:
        self.days[day, name] = self.days.get((day, name), 0) + amount


def shown(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


class Refused(Exception):
    """The model refuses a request, with this answer."""

    def __init__(self, type_name: str, **facts: Any) -> None:
        super().__init__(type_name)
        self.answer = {"__typename": type_name} | facts


class Model:
    """What the gateway of one organization should be. `key_ids`: of the key that may correct, and of the other one."""

    def __init__(self, key_ids: tuple[str, str]) -> None:
        self.key_ids = key_ids
        self.now = NOW
        self.meters: dict[str, Meter] = {}
        self.create_keys: dict[str, tuple[Answer, str]] = {}

    def answer(self, request: Request) -> Any:
        """Carry the request out and return what is answered: of a batch a list; FORBIDDEN where it is not allowed.

        The id of a meter is the gateway's to choose: of a new one it is returned as "", until `name` is given it.
        """
        decide: Callable[[Answer, str], Answer] = getattr(self, f"_{request.field}")
        recorded_by = self.key_ids[0 if request.may_correct else 1]
        inputs = request.input if isinstance(request.input, list) else [request.input]
        if not request.may_correct and self._needs_correct(request.field, inputs):
            return FORBIDDEN
        answers = []
        for place, values in enumerate(inputs):
            try:
                answers.append(decide(values, recorded_by))
            except Refused as refused:
                answer = refused.answer
                if isinstance(request.input, list) and "field" in answer:
                    answer["field"].insert(1, str(place))
                answers.append(answer)
        for values, answer in zip(inputs, answers, strict=True):
            if answer["__typename"] in SHOWS_METER:
                name = values["externalMeterId"]
                if request.field == "createBillingMeter" and answer["replayed"]:
                    name = self.create_keys[values["idempotencyKey"]][1]
                # As it is after the whole request.
                answer["billingMeter"] = self.meters[name].shown()
        return answers if isinstance(request.input, list) else answers[0]

    def _needs_correct(self, name: str, inputs: list[Answer]) -> bool:
        if name == "voidUsage":
            return inputs[0].get("amount") != "0"
        return any(values.get("policy") == "FORCE" for values in inputs)

    def _meter(self, values: Answer) -> Meter:
        if values["externalMeterId"] not in self.meters:
            raise Refused("BillingMeterNotFound")
        return self.meters[values["externalMeterId"]]

    def _createBillingMeter(self, values: Answer, recorded_by: str) -> Answer:  # noqa: N802  # As the API calls it.
        key = values.get("idempotencyKey")
        if key in self.create_keys:
            first, name = self.create_keys[key]
            if first != values:
                raise Refused("IdempotencyConflict", first=self.meters[name].entries[0])
            return {"__typename": "CreateBillingMeterSuccess", "replayed": True}
        name = values["externalMeterId"]
        if name in self.meters:
            raise Refused("AlreadyExists", existingId=self.meters[name].id)
        total = int(values["totalCredits"])
        cap = values.get("spendCap")
        meter = Meter("", values["timezone"], total, values["allowOverages"], None if cap is None else int(cap))
        meter.add("OPENING", self.now, recorded_by, amount=str(total))
        self.meters[name] = meter
        if key is not None:
            self.create_keys[key] = (values, name)
        return {"__typename": "CreateBillingMeterSuccess", "replayed": False}

    def name(self, external_meter_id: str, id_: str) -> None:
        """Take note of the id that a new meter was given."""
        meter = self.meters[external_meter_id]
        if not meter.id:
            meter.id = id_
            meter.entries[0]["id"] = f"ent_{id_.removeprefix('mtr_')}_1"

    def _updateBillingMeter(self, values: Answer, recorded_by: str) -> Answer:  # noqa: N802
        meter = self._meter(values)
        changed: dict[str, list[Any]] = {}
        overages = values.get("allowOverages", meter.overages)
        if overages != meter.overages:
            changed["allowOverages"] = [meter.overages, overages]
        cap = None if meter.cap is None else str(meter.cap)
        wanted = None if values.get("removeSpendCap") else values.get("spendCap", cap)
        if wanted != cap:
            changed["spendCap"] = [cap, wanted]
        if changed:
            meter.overages = overages
            meter.cap = None if wanted is None else int(wanted)
            meter.add("SETTINGS", self.now, recorded_by, metadata=changed)
        return {"__typename": "UpdateBillingMeterSuccess"}

    def _refillBillingMeter(self, values: Answer, recorded_by: str) -> Answer:  # noqa: N802
        amount = int(values["refill"])
        key = values.get("idempotencyKey")
        if amount == 0:
            raise Refused("InvalidInput", field=["input", "refill"])
        meter = self._meter(values)
        if key in meter.refills:
            first, place = meter.refills[key]
            if first != amount:
                raise Refused("IdempotencyConflict", first=meter.entries[place])
            return {"__typename": "RefillBillingMeterSuccess", "replayed": True, "entry": meter.entries[place]}
        if meter.total + amount > MAX:
            raise Refused("AmountOutOfRange")
        meter.total += amount
        entry = meter.add("REFILL", self.now, recorded_by, amount=str(amount), key=key)
        if key is not None:
            meter.refills[key] = (amount, len(meter.entries) - 1)
        return {"__typename": "RefillBillingMeterSuccess", "replayed": False, "entry": entry}

    def _recordUsage(self, values: Answer, recorded_by: str) -> Answer:  # noqa: N802
        meter = self._meter(values)
        amount = int(values["amount"])
        sent = values.get("occurredAt")
        occurred = datetime.fromisoformat(sent) if sent is not None else self.now
        if amount == 0:
            self._check_window(occurred, recorded_by)
            over = meter.limit is not None and meter.used > meter.limit
            return success(0, 0, over, None, replayed=False)
        if values["eventId"] in meter.events:
            first, place = meter.events[values["eventId"]]
            entry = meter.entries[place]
            # Not as Python compares: in JSON 1 and true differ. No metadata are empty ones.
            if text_of({"metadata": {}} | first) != text_of({"metadata": {}} | values):
                raise Refused("IdempotencyConflict", first=entry)
            limit = meter.limits[place]
            over = limit is not None and int(entry["usedCreditsAfter"]) > limit
            accepted = int(entry["amount"])
            return success(accepted, amount - accepted, over, entry, replayed=True)
        self._check_window(occurred, recorded_by)
        accepted = amount
        if meter.available is not None and amount > meter.available and values["policy"] != "FORCE":
            if values["policy"] == "REJECT" or meter.available == 0:
                kind = "SpendCapExceeded" if meter.overages else "InsufficientCredits"
                raise Refused(kind, available=str(meter.available))
            accepted = meter.available
        if meter.used + accepted > MAX:
            raise Refused("AmountOutOfRange")
        meter.used += accepted
        day = str(occurred.astimezone(ZoneInfo(meter.zone)).date())
        meter.count(day, values["usageName"], accepted)
        entry = meter.add(
            "USAGE",
            self.now,
            recorded_by,
            amount=str(accepted),
            key=values["eventId"],
            usageName=values["usageName"],
            day=day,
            requestedAmount=str(amount),
            policy=values["policy"],
            occurredAt=shown(occurred),
            metadata=values.get("metadata", {}),
        )
        meter.events[values["eventId"]] = (values, len(meter.entries) - 1)
        over = meter.limit is not None and meter.used > meter.limit
        return success(accepted, amount - accepted, over, entry, replayed=False)

    _recordUsageBatch = _recordUsage  # noqa: N815

    def _check_window(self, occurred: datetime, recorded_by: str) -> None:
        is_old = occurred < self.now - timedelta(days=35) and recorded_by == self.key_ids[1]
        if is_old or occurred > self.now + timedelta(minutes=5):
            raise Refused("InvalidInput", field=["input", "occurredAt"])

    def _voidUsage(self, values: Answer, recorded_by: str) -> Answer:  # noqa: N802
        asked = values.get("amount")
        if asked == "0":
            raise Refused("InvalidInput", field=["input", "amount"])
        meter = self._meter(values)
        if values["eventId"] not in meter.events:
            raise Refused("UsageEventNotFound")
        request = (values["eventId"], asked, values["reason"])
        key = values["idempotencyKey"]
        if key in meter.voids:
            first, place = meter.voids[key]
            if first != request:
                raise Refused("IdempotencyConflict", first=meter.entries[place])
            return {"__typename": "VoidUsageSuccess", "replayed": True, "entry": meter.entries[place]}
        event = meter.entries[meter.events[values["eventId"]][1]]
        voids = [entry for entry in meter.entries if entry["voids"] == {"id": event["id"]}]
        left = int(event["amount"]) - sum(int(entry["amount"]) for entry in voids)
        amount = left if asked is None else int(asked)
        if amount > left or left == 0:
            raise Refused("ExceedsVoidable", voidable=str(left))
        meter.used -= amount
        meter.count(event["day"], event["usageName"], -amount)
        entry = meter.add(
            "VOID",
            self.now,
            recorded_by,
            amount=str(amount),
            key=key,
            usageName=event["usageName"],
            day=event["day"],
            requestedAmount=asked,
            voids={"id": event["id"]},
            reason=values["reason"],
        )
        meter.voids[key] = (request, len(meter.entries) - 1)
        return {"__typename": "VoidUsageSuccess", "replayed": False, "entry": entry}


def success(accepted: int, refused: int, over: bool, entry: Answer | None, *, replayed: bool) -> Answer:  # noqa: FBT001  # A fact.
    return {
        "__typename": "RecordUsageSuccess",
        "accepted": str(accepted),
        "refused": str(refused),
        "overLimit": over,
        "replayed": replayed,
        "entry": entry,
    }


#: The answers that show the meter as it is now.
SHOWS_METER = {
    "CreateBillingMeterSuccess",
    "UpdateBillingMeterSuccess",
    "RefillBillingMeterSuccess",
    "RecordUsageSuccess",
    "VoidUsageSuccess",
    "InsufficientCredits",
    "SpendCapExceeded",
}


# What is asked of the gateway.

CONFLICT = f"... on IdempotencyConflict {{ first: firstEntry {{ {ENTRY} }} }}"
INVALID = "... on InvalidInput { field }"
RECORD = f"""__typename {INVALID} {CONFLICT}
  ... on RecordUsageSuccess {{
    accepted refused overLimit replayed billingMeter {{ {METER} }} entry {{ {ENTRY} }}
  }}
  ... on InsufficientCredits {{ available billingMeter {{ {METER} }} }}
  ... on SpendCapExceeded {{ available billingMeter {{ {METER} }} }}"""
SELECTIONS = {
    "createBillingMeter": f"""__typename {INVALID} {CONFLICT} ... on AlreadyExists {{ existingId }}
      ... on CreateBillingMeterSuccess {{ replayed billingMeter {{ {METER} }} }}""",
    "updateBillingMeter": f"__typename {INVALID} ... on UpdateBillingMeterSuccess {{ billingMeter {{ {METER} }} }}",
    "refillBillingMeter": f"""__typename {INVALID} {CONFLICT}
      ... on RefillBillingMeterSuccess {{ replayed billingMeter {{ {METER} }} entry {{ {ENTRY} }} }}""",
    "recordUsage": RECORD,
    "recordUsageBatch": RECORD,
    "voidUsage": f"""__typename {INVALID} {CONFLICT} ... on ExceedsVoidable {{ voidable }}
      ... on VoidUsageSuccess {{ replayed billingMeter {{ {METER} }} entry {{ {ENTRY} }} }}""",
}
INPUTS = {field: f"{field[0].upper()}{field[1:]}Input!" for field in SELECTIONS} | {
    "recordUsageBatch": "[RecordUsageInput!]!"
}


async def ask(caller: Caller, request: Request) -> Any:
    """Send the request and return its answer; FORBIDDEN where that is its error."""
    name = request.field
    query = f"mutation ($input: {INPUTS[name]}) {{ {name}(input: $input) {{ {SELECTIONS[name]} }} }}"
    body = await caller.run(query, {"input": request.input})
    if "errors" in body:
        assert body["data"] == {name: None}
        assert [error["extensions"] for error in body["errors"]] == [{"code": FORBIDDEN}]
        return FORBIDDEN
    return body["data"][name]


# What is drawn.

# Few names, so that requests meet; often an amount that one meter's credits cover several times.
NAMES = st.sampled_from(["m0", "m0", "m0", "m1", "m1", "m2"])
AMOUNTS = st.sampled_from([*range(1, 26), *range(1, 26), 0, 0, MAX - 30, MAX]).map(str)
CREDITS = st.sampled_from([*range(20, 101, 10), 0, MAX - 30, MAX]).map(str)
KEYS = st.sampled_from(["k0", "k1", "k2"])
EVENT_IDS = st.sampled_from([f"e{number}" for number in range(10)])


def values(required: dict[str, Any], **optional: Any) -> st.SearchStrategy[Answer]:
    """Draw an input, whose optional fields may be absent."""
    return st.fixed_dictionaries({"workspaceId": st.just("w")} | required, optional=optional)


CREATES = values(
    {
        "externalMeterId": st.sampled_from(["m2", "m2", "m0"]),
        "totalCredits": CREDITS,
        "allowOverages": st.booleans(),
        "timezone": st.sampled_from(["UTC", "Pacific/Kiritimati", "America/New_York"]),
    },
    spendCap=CREDITS,
    idempotencyKey=KEYS,
)
UPDATES = st.one_of(
    values({"externalMeterId": NAMES}, allowOverages=st.booleans(), spendCap=CREDITS),
    values({"externalMeterId": NAMES, "removeSpendCap": st.just(value=True)}, allowOverages=st.booleans()),
)
REFILLS = values({"externalMeterId": NAMES, "refill": AMOUNTS}, idempotencyKey=KEYS)
EVENTS = values(
    {
        "externalMeterId": NAMES,
        "eventId": EVENT_IDS,
        "amount": AMOUNTS,
        "usageName": st.sampled_from(["default", "tokens"]),
        "policy": st.sampled_from(["REJECT", "PARTIAL", "FORCE"]),
    },
    # Before now; negative: ahead. It becomes a moment when it is sent.
    occurredAt=st.sampled_from(
        [timedelta(hours=1), timedelta(hours=18), timedelta(days=35), timedelta(days=36), -timedelta(minutes=6)]
    ),
    metadata=st.sampled_from([{}, {"n": 1}, {"n": True}]),
)

#: What may be changed of a request that is sent again; None: the field is left out.
CHANGES: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "createBillingMeter": {
        "totalCredits": CREDITS,
        "allowOverages": st.booleans(),
        "spendCap": st.none() | CREDITS,
        "timezone": st.just("Asia/Kathmandu"),
    },
    "refillBillingMeter": {"refill": AMOUNTS},
    "recordUsage": {
        "amount": AMOUNTS,
        "usageName": st.sampled_from(["default", "tokens"]),
        "policy": st.sampled_from(["REJECT", "PARTIAL", "FORCE"]),
        "occurredAt": st.sampled_from([None, timedelta(hours=1)]),
        "metadata": st.sampled_from([None, {"n": 1}, {"n": True}]),
    },
    "voidUsage": {"amount": AMOUNTS, "reason": st.sampled_from(["a", "b"]), "eventId": EVENT_IDS},
}

MAY_CORRECT = st.sampled_from([True, True, True, False])


@dataclass
class World:
    """A gateway with the loop that it lives in, and how to make two keys for an organization of their own."""

    runner: asyncio.Runner
    gateway: Gateway
    organizations: Iterator[int]

    def keys(self) -> tuple[tuple[str, str], tuple[Caller, Caller]]:
        """Make the two keys and return their ids, and who sends with them."""
        org_id = f"org-{next(self.organizations)}"
        all_but_one = tuple(scope for scope in Scope if scope is not Scope.USAGE_CORRECT)
        made = [
            self.runner.run(
                create_api_key(
                    self.gateway.database,
                    org_id=org_id,
                    environment=Environment.SANDBOX,
                    scopes=scopes,
                    now=self.gateway.clock(),
                )
            )
            for scopes in (tuple(Scope), all_but_one)
        ]
        (first, first_key), (second, second_key) = made
        client = self.gateway.client
        return (first.id, second.id), (Caller(client, first_key), Caller(client, second_key))


class Machine(RuleBasedStateMachine):
    """Sends the same requests to the gateway and to the model, and compares their answers."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.world.gateway.clock.now = NOW
        key_ids, self.callers = self.world.keys()
        self.model = Model(key_ids)
        self.sent: list[Request] = []

    def send(self, *requests: Request) -> None:
        """Send the requests at once, of which none's answer depends on another's unless they are equal."""
        self.sent.extend(requests)

        async def all_at_once() -> list[Any]:
            return await asyncio.gather(
                *[ask(self.callers[0 if request.may_correct else 1], request) for request in requests]
            )

        answers = self.world.runner.run(all_at_once())
        for request, answer in zip(requests, answers, strict=True):
            for one in answer if isinstance(answer, list) else [answer]:
                kind = one if one == FORBIDDEN else one["__typename"]
                event(f"{request.field}: {kind}{' again' if kind != FORBIDDEN and one.get('replayed') else ''}")
        for request, answer in zip(requests, answers, strict=True):
            if request.field == "createBillingMeter" and answer["__typename"] == "CreateBillingMeterSuccess":
                self.new_id = answer["billingMeter"]["id"]
        expected = []
        for request in requests:
            predicted = self.model.answer(request)
            if isinstance(predicted, dict) and predicted.get("billingMeter", {}).get("id") == "":
                self.model.name(request.input["externalMeterId"], self.new_id)
                predicted["billingMeter"]["id"] = self.new_id
            expected.append(predicted)
        # Of equal requests, which was the first is the gateway's to choose.
        if len(set(map(text_of, requests))) == 1:
            if requests[0].field == "refillBillingMeter" and "idempotencyKey" not in requests[0].input:
                # Each is a refill of its own. The meter of an answer is the one after the group, which may have both.
                meters = [[one.pop("billingMeter", None) for one in some] for some in (answers, expected)]
                assert all(meter in meters[1] for meter in meters[0])
                assert meters[1][-1] in meters[0]
            answers.sort(key=text_of)
            expected.sort(key=text_of)
        # As text, 1 and true differ too.
        assert [text_of(answer) for answer in answers] == [text_of(answer) for answer in expected]

    @property
    def recorded(self) -> list[tuple[str, str]]:
        """The meter and the id of each event that was recorded."""
        return [(name, event_id) for name, meter in self.model.meters.items() for event_id in meter.events]

    def moment(self, input: Answer) -> Answer:
        """Return the event with the moment that its `occurredAt` stands for, counted from now."""
        before = input.get("occurredAt")
        return input if before is None else input | {"occurredAt": (self.model.now - before).isoformat()}

    @initialize(first=CREATES, second=CREATES)
    def begin(self, first: Answer, second: Answer) -> None:
        """Begin with the two meters that most requests are of."""
        for name, input in (("m0", first), ("m1", second)):
            self.send(Request("createBillingMeter", input | {"externalMeterId": name}))

    @rule(create=CREATES, update=UPDATES, which=st.integers(0, 3))
    def set_up(self, create: Answer, update: Answer, which: int) -> None:
        """Change a meter, or sometimes make one."""
        self.send(Request("updateBillingMeter", update) if which else Request("createBillingMeter", create))

    @rule(input=REFILLS)
    def refill(self, input: Answer) -> None:
        self.send(Request("refillBillingMeter", input))

    @rule(input=EVENTS, may_correct=MAY_CORRECT)
    def record(self, input: Answer, may_correct: bool) -> None:  # noqa: FBT001  # Hypothesis passes it by name.
        self.send(Request("recordUsage", self.moment(input), may_correct))

    @rule(events=st.lists(EVENTS, min_size=1, max_size=8), may_correct=MAY_CORRECT)
    def record_batch(self, events: list[Answer], may_correct: bool) -> None:  # noqa: FBT001
        self.send(Request("recordUsageBatch", [self.moment(each) for each in events], may_correct))

    @precondition(lambda self: self.recorded)
    @rule(
        data=st.data(),
        amount=st.sampled_from([None, None, *range(12), MAX]).map(
            lambda amount: None if amount is None else str(amount)
        ),
        key=st.sampled_from([f"k{number}" for number in range(6)]),
        reason=st.sampled_from(["a", "a", "b"]),
        may_correct=MAY_CORRECT,
    )
    def void(self, data: st.DataObject, amount: str | None, key: str, reason: str, may_correct: bool) -> None:  # noqa: FBT001
        """Void an event that was recorded; of another one, by chance, does `again_but_changed`."""
        name, event_id = data.draw(st.sampled_from(self.recorded), label="event")
        event = {"workspaceId": "w", "externalMeterId": name, "eventId": event_id}
        given = {} if amount is None else {"amount": amount}
        self.send(Request("voidUsage", event | {"reason": reason, "idempotencyKey": key} | given, may_correct))

    @rule(data=st.data())
    def again_but_changed(self, data: st.DataObject) -> None:
        """Send an earlier request again with one of its fields changed, left out or added, under the same ids."""
        request = self.earlier(data, set(CHANGES))
        name = data.draw(st.sampled_from(sorted(CHANGES[request.field])), label="field")
        value = data.draw(CHANGES[request.field][name], label="value")
        changed = request.input | {name: value}
        if value is None:
            del changed[name]
        self.send(request._replace(input=self.moment(changed) if name == "occurredAt" else changed))

    @rule(data=st.data(), copies=st.integers(1, 3))
    def again(self, data: st.DataObject, copies: int) -> None:
        """Send an earlier request again, once or several times at once."""
        self.send(*[self.earlier(data, set(SELECTIONS))] * copies)

    def earlier(self, data: st.DataObject, fields: set[str]) -> Request:
        """Draw one of the requests of these fields that were sent: creates less often than others."""
        kinds = sorted({request.field for request in self.sent} & fields)
        kind = data.draw(st.sampled_from([*kinds[1:], *kinds[1:], *kinds]), label="kind")
        request: Request = data.draw(
            st.sampled_from([each for each in self.sent if each.field == kind]), label="earlier"
        )
        return request

    @rule(events=st.lists(EVENTS, min_size=2, max_size=3, unique_by=lambda each: each["externalMeterId"]))
    def record_at_once(self, events: list[Answer]) -> None:
        """Record usage of several meters at once."""
        self.send(*[Request("recordUsage", self.moment(each)) for each in events])

    @rule(input=EVENTS, copies=st.integers(2, 4))
    def race(self, input: Answer, copies: int) -> None:
        """Send one event several times at once."""
        self.send(*[Request("recordUsage", self.moment(input))] * copies)

    @rule(hours=st.sampled_from([1, 11, 24, 72]))
    def wait(self, hours: int) -> None:
        self.world.gateway.clock.forward(hours=hours)
        self.model.now = self.world.gateway.clock.now

    @invariant()
    def no_debit_passed_its_limit(self) -> None:
        """Hold the model itself against what it is to show."""
        for meter in self.model.meters.values():
            assert sum(meter.days.values()) == meter.used
            for entry, limit in zip(meter.entries, meter.limits, strict=True):
                if entry["policy"] in {"REJECT", "PARTIAL"}:
                    assert limit is None or int(entry["usedCreditsAfter"]) <= limit

    def teardown(self) -> None:
        """Compare all that is read back with the model, and check the invariants of what is stored."""
        for name, meter in self.model.meters.items():
            found = self.world.runner.run(meter_of(self.callers[0], name))
            ledger, usage = found.pop("ledger"), found.pop("usage")
            assert found == meter.shown()
            assert list(map(text_of, ledger)) == list(map(text_of, meter.entries))
            # A day that has gone back to nothing may be shown as 0, or not at all.
            assert {day: used for day, used in usage.items() if used} == {
                day: used for day, used in meter.days.items() if used
            }
        ids = [meter.id for meter in self.model.meters.values()]
        assert self.world.runner.run(disagreements(self.world.gateway.database, *ids)) == []


def text_of(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


@pytest.fixture
def world(dialect: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """A gateway in an event loop that a test without one of its own can run, on a database of the test's own."""
    url = empty_database(dialect, request, tmp_path)
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        stack = AsyncExitStack()

        async def start() -> Gateway:
            database = Database(url)
            await migrations.upgrade(database)
            await database.close()
            return await stack.enter_async_context(gateway_on(url))

        yield World(runner, runner.run(start()), iter(range(1_000_000)))
        runner.run(stack.aclose())


@pytest.mark.slow
@pytest.mark.one_python
def test_any_sequence_of_requests_is_answered_by_the_rules(world: World, pytestconfig: pytest.Config) -> None:
    is_torture = pytestconfig.getoption("torture", default=False)
    machine = type("MachineOfThisWorld", (Machine,), {"world": world})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=500 if is_torture else 15,
            stateful_step_count=60 if is_torture else 40,
            deadline=None,
            phases=[Phase.reuse, Phase.generate, Phase.shrink],
            # A slow machine is no fault of the code's.
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
