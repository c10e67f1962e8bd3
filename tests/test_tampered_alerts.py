"""What is changed of alerts and their events behind the gateway's back is found by `tollgate verify`.

Each case is undone by a rollback.
"""

from collections.abc import AsyncIterator

import pytest

from tests.alert_tamperings import CASES
from tests.alerting import make_alert, make_workspace_alert
from tests.conftest import Gateway, empty_database, gateway_on, migrated
from tests.credit_walks import Walk
from tests.steps import found_after

pytestmark = pytest.mark.slow


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
