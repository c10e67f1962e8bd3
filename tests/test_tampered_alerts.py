"""What is changed of alerts and their events behind the gateway's back is found by `tollgate verify`.

Each case is undone by a rollback.
"""

from collections.abc import AsyncIterator

import pytest

from tests.alerting import make_alert, make_workspace_alert
from tests.conftest import Gateway, empty_database, gateway_on, migrated
from tests.credit_walks import Walk
from tests.steps import found_after


@pytest.fixture(scope="module")
async def books(
    dialect: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Gateway, dict[str, str]]]:
    """Books that are found to be right, on a database of this module, and the ids that the cases name."""
    url = empty_database(dialect, request, tmp_path_factory.mktemp("tampered"))
    async with gateway_on(await migrated(url)) as gateway:
        walk = Walk(gateway)
        await walk.take("meter 20; grant g 10 100s p90; use a 5")  # 1 to 3
        low = await make_alert(gateway, "REMAINING_BELOW", 10, triggerIfPast=True)
        day = await make_alert(gateway, "DAY_USAGE_ABOVE", 20)
        near = await make_alert(gateway, "GRANT_EXPIRES_WITHIN", 40)
        over = await make_workspace_alert(gateway, "REMAINING_BELOW", 8)
        await walk.take("use b 18; void b 6; use c 5; refill 1; wait 61; use d 1")  # 4 to 8
        await gateway.mutate("updateAlert", "", id=low, threshold="9", triggerIfPast=True)
        await walk.take("use e 1")  # 9
        yield gateway, {"M": walk.meter_id, "low": low, "day": day, "near": near, "over": over}


def event(where: str) -> str:
    return f"DELETE FROM events WHERE owner_id = '<M>' AND {where}"  # noqa: S608  # Our own names.


def taken_on(values: str, name: str, version: int = 1) -> str:
    return f"UPDATE meter_alerts SET {values} WHERE alert_id = '<{name}>' AND version = {version}"  # noqa: S608  # Our own names.


#: What is changed, and what is found: what follows from it may be reported, too.
CASES: dict[str, tuple[list[str], list[str]]] = {
    "nothing": ([], []),
    "an event that is lost": (
        [event("seq = 4 AND alert_id = '<low>'")],
        ["entry 4: the alert.triggered of alert <low>, version 1 is missing"],
    ),
    "an event that is another alert's": (
        ["UPDATE events SET payload = replace(payload, '<low>', '<day>') WHERE seq = 4 AND alert_id = '<low>'"],
        [
            "entry 4: the alert.triggered of alert <low>, version 1 is missing",
            "entry 4: the alert.triggered of alert <day>, version 1 does not follow from the ledger",
        ],
    ),
    "an event of the other side": (
        [
            "UPDATE events SET type = 'alert.recovered' WHERE seq = 4 AND alert_id = '<low>'",
            (
                "UPDATE events SET payload = replace(payload, 'triggered', 'recovered') WHERE seq = 4"
                " AND alert_id = '<low>'"
            ),
        ],
        [
            "entry 4: the alert.triggered of alert <low>, version 1 is missing",
            "entry 4: the alert.recovered of alert <low>, version 1 does not follow from the ledger",
        ],
    ),
    "an event of another day": (
        ['UPDATE events SET payload = replace(payload, \'"day":"2026-03-16\', \'"day":"2026-03-15\') WHERE seq = 4'],
        [
            "entry 4: the alert.triggered of alert <day>, version 1 is missing",
            "entry 4: the alert.triggered of alert <day>, version 1 does not follow from the ledger",
        ],
    ),
    "an event of another threshold": (
        ['UPDATE events SET payload = replace(payload, \'"threshold":"10"\', \'"threshold":"11"\') WHERE seq = 5'],
        [
            "entry 5: the alert.recovered of alert <low>, version 1 is missing",
            "entry 5: the alert.recovered of alert <low>, version 1 does not follow from the ledger",
        ],
    ),
    "a grant whose coming end is lost": (
        [event("alert_id = '<near>'")],
        ["entry 7: the alert.triggered of alert <near>, version 1 is missing"],
    ),
    "a grant that came near earlier": (
        ["UPDATE events SET seq = 6 WHERE alert_id = '<near>'"],
        [
            "entry 7: the alert.triggered of alert <near>, version 1 is missing",
            "entry 6: the alert.triggered of alert <near>, version 1 does not follow from the ledger",
        ],
    ),
    "what triggered at once": (
        [event("seq = 8 AND alert_id = '<low>'")],
        ["entry 8: the alert.triggered of alert <low>, version 2 is missing"],
    ),
    "what is taken on earlier": (
        [taken_on("since_seq = 1", "low", 2)],
        ["entry 4: the alert.triggered of alert <low>, version 2 is missing"],
    ),
    "what is given up earlier": (
        [taken_on("until_seq = 4", "low")],
        ["entry 5: the alert.recovered of alert <low>, version 1 does not follow from the ledger"],
    ),
    "what holds since an entry that there is not": (
        [taken_on("since_seq = 99", "over")],
        ["alert <over>, version 1: it holds since entry 99 until None, and there is none"],
    ),
    "when it last triggered": (
        [taken_on("last_triggered_at = NULL", "day")],
        ["alert <day>, version 1: it last triggered at None and should have at 2026-03-16 12:00:00+00:00"],
    ),
    "a meter that does not say so": (
        ["UPDATE billing_meters SET has_alerts = FALSE WHERE id = '<M>'"],
        ["its has_alerts is False and should be True"],
    ),
    "a threshold that is another one": (
        [taken_on("threshold = 12", "low")],
        [
            "entry 4: the alert.triggered of alert <low>, version 1 is missing",
            "entry 4: the alert.triggered of alert <low>, version 1 does not follow from the ledger",
        ],
    ),
    "an alert whose meter is missing": (
        ["UPDATE meter_alerts SET meter_id = 'mtr_x' WHERE alert_id = '<over>'"],
        ["meter_alerts has rows of it, and there is no such meter"],
    ),
}


@pytest.mark.parametrize("name", CASES)
async def test_what_is_changed_is_found(books: tuple[Gateway, dict[str, str]], name: str) -> None:
    gateway, ids = books
    statements, expected = CASES[name]

    def named(text: str) -> str:
        for short, id_ in ids.items():
            text = text.replace(f"<{short}>", id_)
        return text

    found = [each.message for each in await found_after(gateway.database, [*map(named, statements)])]
    assert bool(found) is bool(statements)
    missing = [each for each in map(named, expected) if each not in found]
    assert missing == []
