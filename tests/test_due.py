"""What is due of a meter: it is read as if it were booked, while the ledger shows what is written."""

from datetime import timedelta
from typing import Any

import pytest

from resolvers.actor import Actor, Scope
from resolvers.bounds import DEFAULT_BOUNDS
from resolvers.reading.keys import GrantsOfMeter, HoldsOfMeter
from resolvers.reading.loaders import Loaders
from resolvers.reading.moment import Moment
from resolvers.rules.credits import BASE, Credits
from schema.scalars import write_instant
from storage.engine.pages import Page
from storage.meters.credit_grants import GrantFilter
from storage.tenants import Environment
from tests.conftest import NOW, Gateway
from tests.credit_walks import Walk
from tests.steps import books_of, disagreements, hold, make_customer, make_grant, make_meter, must, unchanged

pytestmark = pytest.mark.slow

SUMS = "totalCredits usedCredits heldCredits pinnedCredits overageCredits availableCredits"
SHOWN = f"""{SUMS} updatedAt
  burnDown {{ creditGrant {{ id }} openCredits expiresAt }}
  creditGrants(first: 3) {{ nodes {{
    id state openCredits pinnedCredits expiredCredits billingMeter {{ totalCredits }}
  }} }}
  holds(first: 3) {{ nodes {{ id state closedAt billingMeter {{ heldCredits }} }} }}"""

EVERYWHERE = f"""query ($meter: ID!, $grant: ID!, $hold: ID!, $customer: ID!) {{
  byNames: billingMeter(workspaceId: "w", externalMeterId: "m") {{ {SHOWN} }}
  byId: node(id: $meter) {{ ... on BillingMeter {{ {SHOWN} }} }}
  byIds: nodes(ids: [$meter]) {{ ... on BillingMeter {{ {SHOWN} }} }}
  listed: billingMeters(first: 2, filter: {{workspaceId: "w"}}) {{ nodes {{ {SHOWN} }} }}
  customer(id: $customer) {{ billingMeters(first: 2) {{ nodes {{ {SHOWN} }} edges {{ node {{ totalCredits }} }} }} }}
  grant: node(id: $grant) {{ ... on CreditGrant {{ billingMeter {{ {SHOWN} }} }} }}
  hold: node(id: $hold) {{ ... on Hold {{ billingMeter {{ {SHOWN} }} }} }}
}}"""


async def a_meter_with_something_due(gateway: Gateway) -> dict[str, str]:
    """Make the meter `m` of which a hold and two grants are due at 12:01, and return the ids of what there is.

    It opens with 10. Of the grant `pinned` of 5 a hold reserves 4 to 12:02, and one to 12:01 the fifth with 6 of the
    grant of 20.
    """
    customer = await make_customer(gateway)
    meter = await make_meter(gateway, totalCredits="10", customerId=customer)
    pinned = await make_grant(gateway, 5, expiresAt="2026-03-16T12:01:00Z", priority=1)
    open_ = await hold(gateway, "open", 4, expiresInSeconds=120)
    ending = await make_grant(gateway, 20, expiresAt="2026-03-16T12:01:00Z", priority=2)
    over = await hold(gateway, "over", 7, expiresInSeconds=60)
    gateway.clock.forward(seconds=60)
    return {"meter": meter, "customer": customer, "grant": ending, "pinned": pinned, "hold": over, "open": open_}


def as_if_booked(ids: dict[str, str]) -> dict[str, Any]:
    """Return what of the meter is seen at 12:01: of 35 credits 10 are left, and 4 that a hold reserves."""
    sums = {
        "totalCredits": "14",
        "usedCredits": "0",
        "heldCredits": "4",
        "pinnedCredits": "4",
        "overageCredits": "0",
        "availableCredits": "10",
    }
    ended = {"state": "EXPIRED", "openCredits": "0", "billingMeter": {"totalCredits": "14"}}
    return sums | {
        "updatedAt": "2026-03-16T12:01:00Z",
        "burnDown": [{"creditGrant": None, "openCredits": "10", "expiresAt": None}],
        "creditGrants": {
            "nodes": [
                {"id": ids["grant"], "pinnedCredits": "0", "expiredCredits": "20"} | ended,
                {"id": ids["pinned"], "pinnedCredits": "4", "expiredCredits": "1"} | ended,
            ]
        },
        "holds": {
            "nodes": [
                {"id": ids["hold"], "state": "EXPIRED", "closedAt": "2026-03-16T12:01:00Z"}
                | {"billingMeter": {"heldCredits": "4"}},
                {"id": ids["open"], "state": "OPEN", "closedAt": None, "billingMeter": {"heldCredits": "4"}},
            ]
        },
    }


@pytest.mark.slow
async def test_a_meter_is_read_as_if_what_is_due_were_booked(own: Gateway) -> None:
    ids = await a_meter_with_something_due(own)
    shown = as_if_booked(ids)
    expected = {
        "byNames": shown,
        "byId": shown,
        "byIds": [shown],
        "listed": {"nodes": [shown]},
        "customer": {"billingMeters": {"nodes": [shown], "edges": [{"node": {"totalCredits": "14"}}]}},
        "grant": {"billingMeter": shown},
        "hold": {"billingMeter": shown},
    }
    variables = {name: ids[name] for name in ("meter", "grant", "hold", "customer")}
    ledger = '{ billingMeter(workspaceId: "w", externalMeterId: "m") { ledger { nodes { kind amount } } } }'
    async with unchanged(own):
        written = await own.data(ledger)
        assert [entry["kind"] for entry in written["billingMeter"]["ledger"]["nodes"]] == [
            *("HOLD", "GRANT", "HOLD", "GRANT", "OPENING")
        ]
        assert await own.data(EVERYWHERE, variables) == expected
        # Reading has written nothing.
        assert await own.data(ledger) == written
    # Any command writes it, and everything is seen as before.
    await must(own, "updateBillingMeter", allowOverages=False)
    assert await own.data(EVERYWHERE, variables) == expected
    now_written = (await own.data(ledger))["billingMeter"]["ledger"]["nodes"]
    assert [(entry["kind"], entry["amount"]) for entry in now_written[:3]] == [
        *(("EXPIRY", "20"), ("EXPIRY", "1"), ("HOLD_EXPIRY", "7"))
    ]
    assert now_written[3:] == written["billingMeter"]["ledger"]["nodes"]
    assert await disagreements(own.database, ids["meter"]) == []


async def test_rest_reads_a_meter_as_if_what_is_due_were_booked(own: Gateway) -> None:
    await a_meter_with_something_due(own)
    async with unchanged(own):
        answer = await own.client.get(
            "/api/v1/customer-billing",
            params={"workspaceId": "w", "externalMeterId": "m"},
            headers={"authorization": f"Bearer {own.key}"},
        )
    billing = answer.json()["billing"]
    assert (billing["totalCredits"], billing["usedCredits"]) == ("14", "0")


@pytest.mark.parametrize("is_booked", [False, True])
@pytest.mark.parametrize(
    ("filter_", "names"),
    [
        ("", ["revoked", "used", "late", "due", "paid", "free"]),
        ("state: LIVE", ["late", "paid", "free"]),
        ("state: DEPLETED", ["used"]),
        ("state: EXPIRED", ["due"]),
        ("state: REVOKED", ["revoked"]),
        ("category: PAID", ["revoked", "used", "late", "due", "paid"]),
        ("category: PROMOTIONAL", ["free"]),
        ('expiresBefore: "2026-03-16T12:01:00Z"', []),
        ('expiresBefore: "2026-03-16T12:01:00.000001Z"', ["due"]),
        ('expiresBefore: "2026-03-16T12:02:00.000001Z"', ["late", "due"]),
        ('expiresBefore: "2026-03-16T13:02:00.000001+01:00", state: LIVE, category: PAID', ["late"]),
        ("state: LIVE, category: PROMOTIONAL", ["free"]),
        ("state: EXPIRED, category: PROMOTIONAL", []),
    ],
)
async def test_grants_are_filtered_as_if_what_is_due_were_booked(
    gateway: Gateway, filter_: str, names: list[str], *, is_booked: bool
) -> None:
    await make_meter(gateway)
    ids = {
        "free": await make_grant(gateway, 1, category="PROMOTIONAL"),
        "paid": await make_grant(gateway, 1),
        "due": await make_grant(gateway, 1, expiresAt="2026-03-16T12:01:00Z"),
        "late": await make_grant(gateway, 1, expiresAt="2026-03-16T12:02:00Z"),
        "used": await make_grant(gateway, 1, priority=1),
        "revoked": await make_grant(gateway, 1),
    }
    await gateway.mutate("revokeCreditGrant", "", id=ids["revoked"])
    await must(gateway, "recordUsage", eventId="e", amount="1")
    gateway.clock.forward(seconds=60)
    if is_booked:
        await must(gateway, "refillBillingMeter", refill="1")
    page = f"(filter: {{{filter_}}})" if filter_ else ""
    data = await gateway.data(
        f"""{{ billingMeter(workspaceId: "w", externalMeterId: "m") {{ creditGrants{page} {{ nodes {{ id }} }} }} }}"""
    )
    shown = {id_: name for name, id_ in ids.items()}
    assert [shown[grant["id"]] for grant in data["billingMeter"]["creditGrants"]["nodes"]] == names


@pytest.mark.parametrize("is_booked", [False, True])
async def test_holds_are_filtered_as_if_what_is_due_were_booked(gateway: Gateway, *, is_booked: bool) -> None:
    walk = Walk(gateway)
    await walk.take(
        "meter 20; hold due 1 60s; hold open 1 61s; hold committed 1; hold released 1; hold over 1 30s;"
        "commit committed 1; release released; wait 30; refill 1; wait 30"
    )
    if is_booked:
        await walk.take("refill 1")
    query = """query ($state: HoldState) { billingMeter(workspaceId: "w", externalMeterId: "m") {
      holds(state: $state) { nodes { holdId state } }
    } }"""
    for state, names in (
        ("OPEN", ["open"]),
        ("COMMITTED", ["committed"]),
        ("RELEASED", ["released"]),
        ("EXPIRED", ["over", "due"]),
    ):
        data = await gateway.data(query, {"state": state})
        assert data["billingMeter"]["holds"]["nodes"] == [{"holdId": name, "state": state} for name in names]
    data = await gateway.data(query.replace("(state: $state)", "").replace("query ($state: HoldState)", "query"))
    assert [each["holdId"] for each in data["billingMeter"]["holds"]["nodes"]] == [
        *("over", "released", "committed", "open", "due")
    ]


@pytest.mark.slow
async def test_a_grant_that_pays_when_a_hold_ends_is_in_its_new_state_on_each_page(own: Gateway) -> None:
    walk = Walk(own)
    await walk.take(
        "meter 0 overages; grant a 3; use d 3; grant b 2; use e 2; grant c 5; hold h 5 60s; use f 5; wait 60"
    )

    async def page(state: str, arguments: str) -> tuple[list[str], dict[str, Any]]:
        data = await own.data(
            f"""{{ billingMeter(workspaceId: "w", externalMeterId: "m") {{
              creditGrants({arguments}, filter: {{state: {state}, category: PAID}}) {{
                nodes {{ id }} pageInfo {{ startCursor endCursor hasNextPage hasPreviousPage }} }} }} }}"""
        )
        grants = data["billingMeter"]["creditGrants"]
        return [walk.grants[each["id"]] for each in grants["nodes"]], grants["pageInfo"]

    for is_booked in (False, True):
        if is_booked:
            await walk.take("refill 1")
        assert await walk.states() == "a DEPLETED drawn 3; b DEPLETED drawn 2; c DEPLETED drawn 5; h EXPIRED"
        assert [(await page(state, "first: 9"))[0] for state in ("LIVE", "EXPIRED", "REVOKED")] == [[], [], []]
        assert (await page("DEPLETED", "first: 9"))[0] == ["c", "b", "a"]
        for first, further, cursor in (("first: 2", "after", "endCursor"), ("last: 2", "before", "startCursor")):
            is_forward = further == "after"
            names, info = await page("DEPLETED", first)
            assert names == (["c", "b"] if is_forward else ["b", "a"])
            assert info["hasNextPage" if is_forward else "hasPreviousPage"] is True
            names, info = await page("DEPLETED", f'{first}, {further}: "{info[cursor]}"')
            assert names == (["a"] if is_forward else ["c"])
            assert info["hasNextPage" if is_forward else "hasPreviousPage"] is False


@pytest.mark.parametrize("name", ["state", "category", "expiresBefore"])
async def test_null_in_a_filter_of_grants_is_refused(gateway: Gateway, name: str) -> None:
    await make_meter(gateway)
    query = f"""{{ billingMeter(workspaceId: "w", externalMeterId: "m") {{
      creditGrants(filter: {{{name}: null}}) {{ nodes {{ id }} }} }} }}"""
    error = await gateway.error(query)
    assert error["message"].startswith(f"filter.{name} must not be null")
    assert error["extensions"] == {"code": "BAD_USER_INPUT"}


@pytest.mark.slow
async def test_the_newest_entry_is_the_clock_where_the_gateways_is_behind(own: Gateway) -> None:
    """A meter's time never runs backwards: what another gateway has decided stays decided."""
    walk = Walk(own)
    await walk.take("meter 0; grant c 2 60s; use d 2; grant a 10 60s; hold h 4 60s; wait 60; refill 1")
    own.clock.forward(seconds=-3)
    assert await walk.states() == "c EXPIRED drawn 2; a EXPIRED expired 10; h EXPIRED"
    for state, names in (("LIVE", []), ("DEPLETED", []), ("EXPIRED", ["a", "c"])):
        meter = await own.data(
            f"""{{ billingMeter(workspaceId: "w", externalMeterId: "m") {{
              creditGrants(filter: {{state: {state}}}) {{ nodes {{ id }} }} }} }}"""
        )
        assert [walk.grants[each["id"]] for each in meter["billingMeter"]["creditGrants"]["nodes"]] == names
    assert await walk.meter() == "total 3, used 2, available 1"
    node = await own.data("query ($id: ID!) { node(id: $id) { ... on CreditGrant { state } } }", {"id": walk.ids["c"]})
    assert node == {"node": {"state": "EXPIRED"}}
    selection = "... on RevokeCreditGrantSuccess { revoked creditGrant { state } }"
    revoked = await own.mutate("revokeCreditGrant", selection, id=walk.ids["c"], amount="1")
    assert (revoked["revoked"], revoked["creditGrant"]) == ("0", {"state": "EXPIRED"})
    assert await walk.take("use e 2; commit h 1; grant b 1 0s; grant b 1 2s; grant b 1 3s") == (
        "InsufficientCredits available 1, held 0 by 0; HoldNotOpen EXPIRED;"
        " InvalidInput expiresAt; InvalidInput expiresAt; InvalidInput expiresAt"
    )
    assert await walk.take("grant b 1 4s; hold g 1") == "GRANT 1 b; HOLD 1 g: b 1"
    entries = (await books_of(own)).entries
    assert [str(entry.recorded_at.time()) for entry in entries[-2:]] == ["12:01:00", "12:01:00"]
    await walk.check()


async def test_a_meter_that_is_made_again_is_shown_with_what_is_due(own: Gateway) -> None:
    answers = []
    for _ in range(2):
        answer = await own.mutate(
            "createBillingMeter",
            "... on CreateBillingMeterSuccess { replayed billingMeter { totalCredits burnDown { openCredits } } }",
            workspaceId="w",
            externalMeterId="m",
            totalCredits="10",
            idempotencyKey="k",
        )
        answers.append(answer["billingMeter"])
        if not answer["replayed"]:
            await make_grant(own, 90, expiresAt=write_instant(own.clock() + timedelta(seconds=60)))
            own.clock.now += timedelta(seconds=60)
    assert answers == [{"totalCredits": "10", "burnDown": [{"openCredits": "10"}]}] * 2


def test_a_request_reads_as_of_one_moment_until_it_writes() -> None:
    ticks = iter(NOW + timedelta(microseconds=number) for number in range(3))
    moment = Moment(lambda: next(ticks))
    assert [moment(), moment()] == [NOW, NOW]
    moment.forget()
    assert [moment(), moment()] == [NOW + timedelta(microseconds=1)] * 2


# Draws.


@pytest.mark.slow
async def test_draws_name_the_grants_and_what_became_of_them_since(own: Gateway) -> None:
    walk = Walk(own)
    await walk.take("meter 10; use before 1; grant a 5 60s; use e 7; hold h 4; commit h 2; void e 3; wait 60")
    data = await own.data(
        """{ billingMeter(workspaceId: "w", externalMeterId: "m") { ledger(first: 8) { nodes {
          kind draws { amount creditGrant { id state openCredits drawnCredits billingMeter { id } } }
          creditGrant { id } hold { id state }
        } } } }"""
    )
    grant = {"id": walk.ids["a"], "state": "EXPIRED", "openCredits": "0", "drawnCredits": "4"}
    of_grant = grant | {"billingMeter": {"id": walk.meter_id}}
    held = {"id": f"hld_{walk.meter_id.removeprefix('mtr_')}_5", "state": "COMMITTED"}

    def entry(kind: str, *draws: tuple[Any, str], grant: Any = None, hold: Any = None) -> dict[str, Any]:
        shown = [{"amount": amount, "creditGrant": of} for of, amount in draws]
        return {"kind": kind, "draws": shown, "creditGrant": grant, "hold": hold}

    assert data["billingMeter"]["ledger"]["nodes"] == [
        entry("VOID", (None, "2"), (of_grant, "1")),
        entry("USAGE", (None, "2"), hold=held),
        entry("HOLD", (None, "4"), hold=held),
        entry("USAGE", (of_grant, "5"), (None, "2")),
        entry("GRANT", grant={"id": walk.ids["a"]}),
        entry("USAGE"),
        entry("OPENING"),
    ]


# What is read while others write.


async def test_of_a_meter_that_cannot_be_seen_nothing_is_read(own: Gateway) -> None:
    """As of one that went to another customer after it was read."""
    ids = await a_meter_with_something_due(own)
    actor = Actor(org_id="others", environment=Environment.SANDBOX, scopes=frozenset(Scope), key_id="key_x")
    loaders = Loaders(own.database, actor, DEFAULT_BOUNDS, Moment(own.clock))
    assert await loaders.usable_grants_of_meter.load(ids["meter"]) == []
    assert await loaders.grants_of_meter.load(GrantsOfMeter(ids["meter"], Page(5), GrantFilter())) == []
    assert await loaders.holds_of_meter.load(HoldsOfMeter(ids["meter"], Page(5), None)) == []


async def test_of_grants_that_were_read_after_their_meter_the_base_has_nothing_and_not_less(own: Gateway) -> None:
    await make_meter(own, totalCredits="10")
    earlier = await books_of(own)
    await make_grant(own, 20)
    later = await books_of(own)
    assert Credits.of(earlier.meter, later.grants).grants[BASE].open_credits == 0
    assert Credits.of(later.meter, later.grants).grants[BASE].open_credits == 10
