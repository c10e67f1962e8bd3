"""The tables of the pages of grants and holds: each row is done, and what comes of it compared."""

from datetime import timedelta
from typing import Any, NamedTuple

import pytest

from tests.conftest import NOW, Gateway
from tests.doc_pages import ROOT, rows_after
from tests.steps import disagreements, make_meter

#: How long the grant of its page's table has, in seconds, and the hold of its own.
GRANT_SECONDS, HOLD_SECONDS = 3_600, 900


class Step(NamedTuple):
    """A mutation of the meter `m` of `w` with its values, or a wait of some seconds."""

    field: str
    values: dict[str, Any]


def wait(seconds: float) -> Step:
    return Step("", {"seconds": seconds})


def use(amount: int, event: str = "e", **values: Any) -> Step:
    return Step("recordUsage", {"eventId": event, "amount": str(amount)} | values)


def void(event: str, **values: Any) -> Step:
    return Step("voidUsage", {"eventId": event, "reason": "wrong", "idempotencyKey": "v"} | values)


def settings(**values: Any) -> Step:
    return Step("updateBillingMeter", values)


def grant(amount: int, key: str = "g", **values: Any) -> Step:
    terms = {"category": "PROMOTIONAL", "expiresAt": at(GRANT_SECONDS), "idempotencyKey": key}
    return Step("grantCredits", {"amount": str(amount)} | terms | values)


def change(**values: Any) -> Step:
    return Step("updateCreditGrant", {"id": "g"} | values)


def revoke(**values: Any) -> Step:
    return Step("revokeCreditGrant", {"id": "g", "idempotencyKey": "r"} | values)


def hold(amount: int, hold_id: str = "h", **values: Any) -> Step:
    return Step("holdCredits", {"holdId": hold_id, "amount": str(amount)} | values)


def commit(amount: int, hold_id: str = "h", **values: Any) -> Step:
    return Step("commitHold", {"holdId": hold_id, "amount": str(amount)} | values)


def release(hold_id: str = "h") -> Step:
    return Step("releaseHold", {"holdId": hold_id})


def extend(seconds: int) -> Step:
    return Step("extendHold", {"holdId": "h", "expiresInSeconds": seconds})


def at(seconds: float) -> str:
    return (NOW + timedelta(seconds=seconds)).isoformat()


#: What is done for each row of the page of grants, on a meter of 100 credits with the grant `g` of 50.
GRANTS: dict[str, list[Step]] = {
    "20 are used, and then it ends": [use(20), wait(GRANT_SECONDS)],
    "a debit comes a microsecond before its end": [wait(GRANT_SECONDS - 0.000001), use(20)],
    "a debit comes at its end": [wait(GRANT_SECONDS), use(20)],
    "usage of before its end is sent after it": [wait(GRANT_SECONDS + 60), use(20, occurredAt=at(60))],
    "60 are used, and 15 of them voided": [use(60), void("e", amount="15")],
    "60 are used, and all of them voided": [use(60), void("e")],
    "60 are used, and voided after its end": [use(60), wait(GRANT_SECONDS), void("e")],
    "30 are held, it ends, and 20 are committed": [
        *(hold(30, expiresInSeconds=7_200), wait(GRANT_SECONDS), commit(20))
    ],
    "30 are held, it ends, and the hold is released": [
        *(hold(30, expiresInSeconds=7_200), wait(GRANT_SECONDS), release())
    ],
    "30 are held, and both end in one moment": [hold(30, expiresInSeconds=GRANT_SECONDS), wait(GRANT_SECONDS)],
    "20 are used, and 50 are revoked": [use(20), revoke(amount="50")],
    "20 are used, and voided after it was revoked": [use(20), revoke(), void("e")],
    "30 are held, it is revoked, and the hold is released": [hold(30), revoke(), release()],
    "it is revoked after its end": [wait(GRANT_SECONDS), revoke()],
    "it is revoked again under the same key": [revoke(), revoke()],
    "its end is put off, and the first end passes": [change(expiresAt=at(9_999)), wait(GRANT_SECONDS)],
    "it is changed after its end": [wait(GRANT_SECONDS), change(priority=10)],
    "it is granted again under the same key": [grant(50)],
    "it is granted again under the same key with another amount": [grant(51)],
    "180 are used with overages, and then 50 are granted as `g2`": [
        *(settings(allowOverages=True, spendCap="50"), use(180), grant(50, "g2"))
    ],
    "… and then the usage is voided": [
        *(settings(allowOverages=True, spendCap="50"), use(180), grant(50, "g2"), void("e"))
    ],
}

#: What is done for each row of the page of holds, on a meter of 100 credits with the hold `h` of 40.
HOLDS: dict[str, list[Step]] = {
    "25 are committed": [commit(25)],
    "70 are committed": [commit(70)],
    "120 are committed": [commit(120)],
    "120 are committed under `REJECT`": [commit(120, policy="REJECT")],
    "120 are committed under `FORCE`": [commit(120, policy="FORCE")],
    "the other 60 are used, and 50 are committed": [use(60), commit(50)],
    "with a cap of 50, 100 more are held as `i`; overages are switched off, and 100 are committed of `i`": [
        settings(allowOverages=True, spendCap="50"),
        hold(100, "i"),
        settings(allowOverages=False),
        commit(100, "i"),
    ],
    "90 are used under `FORCE`": [use(90, policy="FORCE")],
    "100 are to be held as `i`": [hold(100, "i")],
    "100 are to be held as `i` under `PARTIAL`": [hold(100, "i", policy="PARTIAL")],
    "`maxOpenHolds` is 1, and 10 are to be held as `i`": [settings(maxOpenHolds=1), hold(10, "i")],
    "it expires": [wait(HOLD_SECONDS)],
    "25 are committed after it has expired": [wait(HOLD_SECONDS), commit(25)],
    "25 are committed after it has expired, with `ifClosed: RECORD`": [
        *(wait(HOLD_SECONDS), commit(25, ifClosed="RECORD"))
    ],
    "it expires, all is used, and 25 are committed with `ifClosed: RECORD`": [
        *(wait(HOLD_SECONDS), use(100), commit(25, ifClosed="RECORD"))
    ],
    "it is extended by an hour, and 25 are committed in time": [extend(3_600), wait(3_599), commit(25)],
    "it is to end more than 24 hours after it was made": [wait(1), extend(86_400)],
    "0 are committed": [commit(0)],
    "it is released twice": [release(), release()],
    "25 are committed twice": [commit(25), commit(25)],
    "25 are committed, and then 26": [commit(25), commit(26)],
    "25 are committed after it was released": [release(), commit(25)],
    "it is released after 25 were committed": [commit(25), release()],
    "it is asked for again after it was released": [release(), hold(40)],
    "it is asked for again with another amount": [hold(41)],
    "usage is recorded under its id": [use(10, "h")],
    "a hold is asked for under the id of an event": [use(10), hold(10, "e")],
    "an event that was no hold is committed": [use(10), commit(10, "e")],
    "25 are committed, and voided by the hold's id": [commit(25), void("h")],
}

#: What is asked for and shown of a mutation's success beside `replayed`, where it has that.
FACTS = {
    "recordUsage": "accepted refused overLimit replayed",
    "voidUsage": "replayed",
    "updateBillingMeter": "",
    "grantCredits": "creditGrant { id } replayed",
    "updateCreditGrant": "",
    "revokeCreditGrant": "revoked shortfall replayed",
    "holdCredits": "refused replayed",
    "commitHold": "accepted refused overLimit replayed",
    "releaseHold": "released replayed",
    "extendHold": "",
}

BOOKS = """{ billingMeter(workspaceId: "w", externalMeterId: "m") {
  totalCredits usedCredits heldCredits availableCredits
  ledger(last: 40) { nodes { kind amount draws { amount creditGrant { id } } } }
} }"""


class Story:
    """A meter of 100 credits, what is done to it, and what its row of the table has to say."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.grants: dict[str, str] = {}

    async def do(self, step: Step) -> str:
        """Do it, and return what its answer says."""
        if not step.field:
            self.gateway.clock.forward(**step.values)
            return ""
        names = {"workspaceId": "w", "externalMeterId": "m"}
        values = step.values
        if "id" in values:
            names, values = {}, values | {"id": next(id_ for id_, key in self.grants.items() if key == values["id"])}
        success = f"{step.field[0].upper()}{step.field[1:]}Success"
        facts = FACTS[step.field]
        answer = await self.gateway.mutate(
            step.field, f"... on {success} {{ {facts} }}" if facts else "", **names | values
        )
        if (found := answer.pop("__typename")) != success:
            return str(found)
        if step.field == "grantCredits":
            self.grants[answer.pop("creditGrant")["id"]] = values["idempotencyKey"]
        said = [
            name if value is True else f"{name} {value}" for name, value in answer.items() if value not in {"0", False}
        ]
        return ", ".join(said) or "success"

    async def books(self) -> tuple[str, list[str]]:
        """Return the balances as the table has them, and each ledger entry; what is due is written before."""
        assert await self.do(use(0)) in {"success", "overLimit"}
        meter = (await self.gateway.data(BOOKS))["billingMeter"]
        ledger = [self._shown(entry) for entry in meter.pop("ledger")["nodes"][::-1]]
        return ", ".join(meter.values()), ledger

    def _shown(self, entry: dict[str, Any]) -> str:
        shown = f"{entry['kind']} {entry['amount']}"
        if not self.grants or not entry["draws"]:
            return shown
        draws = [
            f"{self.grants[draw['creditGrant']['id']] if draw['creditGrant'] else 'base'} {draw['amount']}"
            for draw in entry["draws"]
        ]
        return f"{shown} ({', '.join(draws)})"


def table_of(page: str) -> dict[str, list[str]]:
    """Return the rows of the page's table of what happens when, by their first cells; the second is for people."""
    rows = rows_after(ROOT / "docs" / page, "What happens when")
    return {when: [cell.replace("`", "") for cell in cells] for when, _, *cells in rows}


def plain(rows: dict[str, list[Step]]) -> dict[str, list[Step]]:
    """Return the rows by their first cells as they are read."""
    return {when.strip("`"): steps for when, steps in rows.items()}


@pytest.mark.parametrize(("page", "rows"), [("grants.md", GRANTS), ("holds.md", HOLDS)])
def test_every_row_of_the_table_is_tried_here_and_no_other(page: str, rows: dict[str, list[Step]]) -> None:
    assert list(table_of(page)) == list(plain(rows))


async def happens(gateway: Gateway, page: str, when: str, first: Step, steps: list[Step]) -> None:
    """Do the steps after the first, and hold what happens against the page's row."""
    meter_id = await make_meter(gateway, totalCredits="100")
    story = Story(gateway)
    await story.do(first)
    _, before = await story.books()
    answers = [await story.do(step) for step in steps]
    balances, ledger = await story.books()
    said = [answer for answer in answers if answer]
    assert [said[-1] if said else "none", ", ".join(ledger[len(before) :]) or "none", balances] == table_of(page)[when]
    assert await disagreements(gateway.database, meter_id) == []


@pytest.mark.parametrize("when", plain(GRANTS))
async def test_it_happens_as_the_page_of_grants_says(gateway: Gateway, when: str) -> None:
    await happens(gateway, "grants.md", when, grant(50), plain(GRANTS)[when])


@pytest.mark.parametrize("when", plain(HOLDS))
async def test_it_happens_as_the_page_of_holds_says(gateway: Gateway, when: str) -> None:
    await happens(gateway, "holds.md", when, hold(40), plain(HOLDS)[when])
