"""Pages: every list forward and backward, and objects by their ids."""

from typing import Any

import pytest

from tests.conftest import Gateway
from tests.steps import delete_row, hold, make_customer, make_grant, make_meter, must

ROWS = "edges { cursor node { id } } nodes { id } pageInfo { hasNextPage hasPreviousPage startCursor endCursor }"
PAGE = "first: $first, after: $after, last: $last, before: $before"
VARIABLES = "$first: Int, $after: String, $last: Int, $before: String"

#: Each list of the schema, by the field that answers it; the lists of an object are those of `$of`.
QUERIES = {
    "customers": f"query ({VARIABLES}) {{ rows: customers({PAGE}) {{ {ROWS} }} }}",
    "billingMeters": f"query ({VARIABLES}) {{ rows: billingMeters({PAGE}) {{ {ROWS} }} }}",
    "Customer.billingMeters": f"""query ({VARIABLES}, $of: ID!) {{
      customer(id: $of) {{ rows: billingMeters({PAGE}) {{ {ROWS} }} }}
    }}""",
    **{
        f"BillingMeter.{field}": f"""query ({VARIABLES}, $of: ID!) {{
          node(id: $of) {{ ... on BillingMeter {{ rows: {field}({PAGE}) {{ {ROWS} }} }} }}
        }}"""
        for field in ("ledger", "creditGrants", "holds")
    },
}
#: The lists of a meter, whose rows never go.
OF_METER = ("BillingMeter.ledger", "BillingMeter.creditGrants", "BillingMeter.holds")

NODES = "query ($ids: [ID!]!) { nodes(ids: $ids) { __typename id } }"
NODE = "query ($id: ID!) { node(id: $id) { __typename id } }"


async def new_entry(gateway: Gateway, meter: str) -> str:
    refilled = await must(gateway, "refillBillingMeter", "entry { id }", externalMeterId=meter, refill="1")
    return str(refilled["entry"]["id"])


class Listing:
    """One list, the ids of its rows from the newest on, and rows of lists beside it that are not its own."""

    def __init__(self, gateway: Gateway, field: str) -> None:
        self.gateway = gateway
        self.field = field
        self.of = ""
        self.ids: list[str] = []
        self.made = 0
        #: The meter whose list it is, and another.
        self.mine, self.other = f"mine {field}", f"other {field}"

    async def open(self) -> None:
        """Make what the list is of."""
        if self.field == "Customer.billingMeters":
            self.of = await make_customer(self.gateway)
        if self.field in OF_METER:
            self.of = await make_meter(self.gateway, self.mine, totalCredits="1000")
            await make_meter(self.gateway, self.other, totalCredits="1000")
        if self.field == "BillingMeter.ledger":
            # A ledger is never empty.
            self.ids = [f"ent_{self.of.removeprefix('mtr_')}_1"]

    async def add(self, rows: int = 1) -> None:
        """Add rows, each after a row of another list of its kind."""
        for _ in range(rows):
            self.made += 1
            if self.field == "customers":
                id_ = await make_customer(self.gateway)
            elif self.field == "billingMeters":
                id_ = await make_meter(self.gateway, f"any {self.made}")
            elif self.field == "Customer.billingMeters":
                await make_meter(self.gateway, f"nobody's {self.made}")
                id_ = await make_meter(self.gateway, f"theirs {self.made}", customerId=self.of)
            elif self.field == "BillingMeter.ledger":
                await new_entry(self.gateway, self.other)
                id_ = await new_entry(self.gateway, self.mine)
            elif self.field == "BillingMeter.creditGrants":
                await make_grant(self.gateway, 1, externalMeterId=self.other)
                id_ = await make_grant(self.gateway, 1, externalMeterId=self.mine)
            else:
                await hold(self.gateway, f"h{self.made}", 1, externalMeterId=self.other)
                id_ = await hold(self.gateway, f"h{self.made}", 1, externalMeterId=self.mine)
            self.ids.insert(0, id_)

    async def fill(self, rows: int) -> None:
        """Add rows until there are this many."""
        await self.add(rows - len(self.ids))

    async def delete(self, *ids: str) -> None:
        """Delete rows of the list."""
        for id_ in ids:
            await delete_row(self.gateway.database, id_)
            self.ids.remove(id_)

    def _variables(self, page: dict[str, Any]) -> dict[str, Any]:
        return page | ({"of": self.of} if self.of else {})

    async def _rows(self, page: dict[str, Any]) -> dict[str, Any]:
        data = await self.gateway.data(QUERIES[self.field], self._variables(page))
        rows: dict[str, Any] = (data.get("customer") or data.get("node") or data)["rows"]
        return rows

    async def page(self, **page: Any) -> tuple[list[str], dict[str, Any]]:
        """Return the ids of a page, and where it lies."""
        rows = await self._rows(page)
        ids = [node["id"] for node in rows["nodes"]]
        assert [edge["node"]["id"] for edge in rows["edges"]] == ids
        info = rows["pageInfo"]
        cursors = [edge["cursor"] for edge in rows["edges"]]
        assert (info["startCursor"], info["endCursor"]) == ((cursors[0], cursors[-1]) if cursors else (None, None))
        return ids, info

    async def error(self, **page: Any) -> dict[str, Any]:
        """Ask for a page that is refused, and return the error."""
        return await self.gateway.error(QUERIES[self.field], self._variables(page))

    async def cursors(self) -> list[str]:
        """Return the cursors of all rows, from the newest on."""
        return [edge["cursor"] for edge in (await self._rows({"first": 100}))["edges"]]


@pytest.fixture(params=list(QUERIES))
async def listing(request: pytest.FixtureRequest, gateway: Gateway) -> Listing:
    """Each list in turn."""
    listing = Listing(gateway, request.param)
    await listing.open()
    return listing


def sides(info: dict[str, Any]) -> tuple[bool, bool]:
    """Return whether there are rows before a page and after it."""
    return info["hasPreviousPage"], info["hasNextPage"]


# Whole walks


async def test_a_walk_forward_gives_every_row_once_newest_first(listing: Listing) -> None:
    await listing.fill(6)
    for size in (1, 2, 4, 6, 7):
        seen: list[list[str]] = []
        after, is_more = None, True
        while is_more:
            ids, info = await listing.page(first=size, after=after)
            assert sides(info) == (bool(seen), sum(map(len, seen)) + len(ids) < 6)
            seen.append(ids)
            after, is_more = info["endCursor"], info["hasNextPage"]
        assert seen == [listing.ids[start : start + size] for start in range(0, 6, size)]


async def test_a_walk_backward_gives_every_row_once_and_each_page_newest_first(listing: Listing) -> None:
    await listing.fill(6)
    for size in (1, 2, 4, 6, 7):
        seen: list[list[str]] = []
        before, is_more = None, True
        while is_more:
            ids, info = await listing.page(last=size, before=before)
            assert sides(info) == (sum(map(len, seen)) + len(ids) < 6, bool(seen))
            seen.append(ids)
            before, is_more = info["startCursor"], info["hasPreviousPage"]
        assert seen == [listing.ids[max(0, end - size) : end] for end in range(6, 0, -size)]


async def test_a_walk_forward_is_not_moved_by_new_rows(listing: Listing) -> None:
    await listing.fill(6)
    there = list(listing.ids)
    seen: list[str] = []
    after, is_more = None, True
    while is_more:
        ids, info = await listing.page(first=2, after=after)
        seen += ids
        after, is_more = info["endCursor"], info["hasNextPage"]
        await listing.add()
    assert seen == there
    assert (await listing.page(first=9))[0] == listing.ids


async def test_a_walk_backward_comes_to_the_new_rows_last(listing: Listing) -> None:
    await listing.fill(4)
    seen: list[str] = []
    before, is_more = None, True
    while is_more:
        ids, info = await listing.page(last=2, before=before)
        seen = ids + seen
        before, is_more = info["startCursor"], info["hasPreviousPage"]
        # After the first page; without it, the second would be the last.
        if len(seen) == 2:
            await listing.add()
    assert seen == listing.ids
    assert len(seen) == 5
    await listing.add(2)
    ids, info = await listing.page(last=5, before=before)
    assert ids == listing.ids[:2]
    assert sides(info) == (False, True)


#: The lists whose rows could go.
SHRINKING = [field for field in QUERIES if field not in OF_METER]


@pytest.mark.parametrize("field", SHRINKING)
async def test_a_walk_forward_is_not_moved_by_rows_that_go(gateway: Gateway, field: str) -> None:
    listing = Listing(gateway, field)
    await listing.open()
    await listing.fill(12)
    row = list(listing.ids)
    after = None
    # Of each page the row of its cursor goes, then rows that were shown and rows that were not; and a new one comes.
    for shown, gone in (([0, 1, 2], [2, 4]), ([3, 5, 6], [6, 5, 7, 9]), ([8, 10, 11], [11, 8])):
        ids, info = await listing.page(first=3, after=after)
        assert ids == [row[number] for number in shown]
        assert sides(info) == (after is not None, 11 not in shown)
        after = info["endCursor"]
        await listing.delete(*(row[number] for number in gone))
        await listing.add()
    ids, info = await listing.page(first=3, after=after)
    assert (ids, sides(info)) == ([], (True, False))
    ids, info = await listing.page(first=100)
    assert (ids[3:], sides(info)) == ([row[number] for number in (0, 1, 3, 10)], (False, False))
    assert ids == listing.ids


@pytest.mark.parametrize("field", SHRINKING)
async def test_a_walk_backward_is_not_moved_by_rows_that_go(gateway: Gateway, field: str) -> None:
    listing = Listing(gateway, field)
    await listing.open()
    await listing.fill(12)
    row = list(listing.ids)
    before = None
    for shown, gone in (([9, 10, 11], [9, 7]), ([5, 6, 8], [5, 6, 4, 2]), ([0, 1, 3], [0, 3])):
        ids, info = await listing.page(last=3, before=before)
        assert ids == [row[number] for number in shown]
        assert sides(info) == (True, before is not None)
        before = info["startCursor"]
        await listing.delete(*(row[number] for number in gone))
        await listing.add()
    # The three that came meanwhile are newer than all of them.
    ids, info = await listing.page(last=3, before=before)
    assert (ids, sides(info)) == (listing.ids[:3], (False, True))
    ids, info = await listing.page(last=100)
    assert (ids[3:], sides(info)) == ([row[number] for number in (1, 8, 10, 11)], (False, False))
    assert ids == listing.ids


# Where a page lies


async def test_an_empty_list_has_one_empty_page(listing: Listing) -> None:
    empty = {"hasNextPage": False, "hasPreviousPage": False, "startCursor": None, "endCursor": None}
    if listing.field == "BillingMeter.ledger":
        # A ledger is never empty; a page past its end is.
        ids, info = await listing.page(after=(await listing.cursors())[0])
        assert (ids, info) == ([], empty | {"hasPreviousPage": True})
        return
    for page in ({}, {"first": 1}, {"last": 1}):
        assert await listing.page(**page) == ([], empty)


async def test_a_page_says_where_it_lies(listing: Listing) -> None:
    await listing.fill(5)
    ids = listing.ids
    newest, second, middle, fourth, oldest = await listing.cursors()
    for page, shown, around in (
        # At the start, in the middle, at the end, past the end; forward.
        ({"first": 2}, ids[:2], (False, True)),
        ({"first": 5}, ids, (False, False)),
        ({"first": 6}, ids, (False, False)),
        ({"first": 2, "after": newest}, ids[1:3], (True, True)),
        ({"first": 2, "after": middle}, ids[3:], (True, False)),
        ({"first": 3, "after": middle}, ids[3:], (True, False)),
        ({"first": 1, "after": oldest}, [], (True, False)),
        # Likewise, backward.
        ({"last": 2}, ids[3:], (True, False)),
        ({"last": 5}, ids, (False, False)),
        ({"last": 6}, ids, (False, False)),
        ({"last": 2, "before": oldest}, ids[2:4], (True, True)),
        ({"last": 2, "before": middle}, ids[:2], (False, True)),
        ({"last": 3, "before": middle}, ids[:2], (False, True)),
        ({"last": 1, "before": newest}, [], (False, True)),
        # From the end that the cursor does not bound.
        ({"first": 2, "before": fourth}, ids[:2], (False, True)),
        ({"first": 4, "before": fourth}, ids[:3], (False, True)),
        ({"last": 2, "after": second}, ids[3:], (True, False)),
        ({"last": 4, "after": second}, ids[2:], (True, False)),
    ):
        found, info = await listing.page(**page)
        assert (found, sides(info)) == (shown, around), page


async def test_two_cursors_bound_a_page_on_both_sides(listing: Listing) -> None:
    await listing.fill(6)
    ids = listing.ids
    newest, second, _, _, fifth, _ = await listing.cursors()
    for page, shown in (
        ({}, ids[1:4]),
        ({"first": 2}, ids[1:3]),
        ({"first": 3}, ids[1:4]),
        ({"last": 2}, ids[2:4]),
        ({"last": 4}, ids[1:4]),
    ):
        found, info = await listing.page(after=newest, before=fifth, **page)
        assert (found, sides(info)) == (shown, (True, True)), page
    assert (await listing.page(after=newest, before=second))[0] == []
    assert (await listing.page(after=newest, before=newest))[0] == []


async def test_a_page_has_25_rows_unless_said_otherwise(listing: Listing) -> None:
    await listing.fill(25)
    assert (await listing.page())[0] == listing.ids
    assert sides((await listing.page())[1]) == (False, False)
    await listing.add()
    pages: list[dict[str, Any]] = [{}, {"first": None, "after": None, "last": None, "before": None}]
    for page in pages:
        ids, info = await listing.page(**page)
        assert (ids, sides(info)) == (listing.ids[:25], (False, True))
    ids, info = await listing.page(before=(await listing.cursors())[25])
    assert (ids, sides(info)) == (listing.ids[:25], (False, True))
    assert (await listing.page(first=100))[0] == listing.ids
    assert (await listing.page(last=100))[0] == listing.ids


# What is refused


async def test_a_page_of_no_size_is_refused(listing: Listing) -> None:
    for page in (
        {"first": 1, "last": 1},
        {"first": 0},
        {"first": -1},
        {"first": 101},
        {"first": 2**31 - 1},
        {"last": 0},
        {"last": -1},
        {"last": 101},
    ):
        error = await listing.error(**page)
        assert error["extensions"] == {"code": "BAD_USER_INPUT"}, page
        assert error["path"][-1] == "rows"
    assert (await listing.page())[0] == listing.ids


async def test_what_is_no_cursor_is_refused(listing: Listing) -> None:
    await listing.fill(2)
    cursor, _ = await listing.cursors()
    for foreign in (
        "",
        "x",
        "=",
        "Ω",
        "\0",
        "null",
        " " + cursor,
        cursor + "A",
        cursor[:-1],
        cursor.swapcase(),
        *listing.ids,
        "A" * 10_000,
    ):
        for side in ("after", "before"):
            error = await listing.error(**{side: foreign})
            assert error["extensions"] == {"code": "BAD_USER_INPUT"}, foreign
            assert error["path"][-1] == "rows"


@pytest.mark.slow
async def test_a_cursor_of_another_list_is_refused(gateway: Gateway) -> None:
    listings, cursors = [], {}
    for field in QUERIES:
        listing = Listing(gateway, field)
        await listing.open()
        await listing.fill(1)
        listings.append(listing)
        cursors[field] = (await listing.cursors())[0]
    for listing in listings:
        for field, cursor in cursors.items():
            # A customer's meters are some of all meters, and their cursors mean the same.
            if field.endswith("illingMeters") and listing.field.endswith("illingMeters"):
                await listing.page(after=cursor)
            elif field != listing.field:
                for side in ("after", "before"):
                    error = await listing.error(**{side: cursor})
                    assert error["extensions"] == {"code": "BAD_USER_INPUT"}, (listing.field, field)


async def test_a_cursor_of_another_meters_ledger_is_refused(gateway: Gateway) -> None:
    listing = Listing(gateway, "BillingMeter.ledger")
    await listing.open()
    await listing.fill(3)
    data = await gateway.data(
        """query ($name: String!) { billingMeter(workspaceId: "w", externalMeterId: $name) {
            ledger { pageInfo { startCursor endCursor } } } }""",
        {"name": listing.other},
    )
    for cursor in data["billingMeter"]["ledger"]["pageInfo"].values():
        for side in ("after", "before"):
            error = await listing.error(**{side: cursor})
            assert error["extensions"] == {"code": "BAD_USER_INPUT"}


# Lists below a list


async def test_each_parent_has_a_page_of_its_own(gateway: Gateway) -> None:
    customers = [await make_customer(gateway) for _ in range(3)]
    meters: dict[str, list[str]] = {customer_id: [] for customer_id in customers}
    for number, owner in enumerate([0, 2, 2, 0, 2, 2]):
        meters[customers[owner]].insert(0, await make_meter(gateway, f"{number}", customerId=customers[owner]))
        for _ in range(number):
            await new_entry(gateway, f"{number}")
    first, none, second = customers
    data = await gateway.data(
        """{ customers { nodes {
          id
          newest: billingMeters(first: 2) { ...Page nodes { ledger(last: 2) { nodes { amount totalCreditsAfter } } } }
          oldest: billingMeters(last: 1) { ...Page }
        } } }
        fragment Page on BillingMeterConnection { nodes { id } pageInfo { hasNextPage hasPreviousPage } }"""
    )

    def shown(field: str, part: str) -> dict[str, Any]:
        return {customer["id"]: customer[field][part] for customer in data["customers"]["nodes"]}

    assert list(shown("newest", "nodes")) == [second, none, first]
    assert {customer: [node["id"] for node in nodes] for customer, nodes in shown("newest", "nodes").items()} == {
        customer: meters[customer][:2] for customer in customers
    }
    assert {customer: [node["id"] for node in nodes] for customer, nodes in shown("oldest", "nodes").items()} == {
        customer: meters[customer][-1:] for customer in customers
    }
    assert shown("newest", "pageInfo") == {
        first: {"hasNextPage": False, "hasPreviousPage": False},
        none: {"hasNextPage": False, "hasPreviousPage": False},
        second: {"hasNextPage": True, "hasPreviousPage": False},
    }
    assert shown("oldest", "pageInfo") == {
        first: {"hasNextPage": False, "hasPreviousPage": True},
        none: {"hasNextPage": False, "hasPreviousPage": False},
        second: {"hasNextPage": False, "hasPreviousPage": True},
    }
    opening = {"amount": "0", "totalCreditsAfter": "0"}
    refill = {"amount": "1", "totalCreditsAfter": "1"}
    # Of the meters 3 and 0, then of 5 and 4, whose numbers are those of their refills.
    assert [node["ledger"]["nodes"] for node in shown("newest", "nodes")[first]] == [[refill, opening], [opening]]
    assert [node["ledger"]["nodes"] for node in shown("newest", "nodes")[second]] == [[refill, opening]] * 2


async def test_a_page_goes_on_after_a_row_that_left_the_list(gateway: Gateway) -> None:
    listing = Listing(gateway, "Customer.billingMeters")
    await listing.open()
    await listing.fill(4)
    ids, info = await listing.page(first=2)
    answer = await gateway.mutate(
        "updateBillingMeter",
        "... on UpdateBillingMeterSuccess { billingMeter { id } }",
        workspaceId="w",
        externalMeterId="theirs 3",
        customerId=None,
    )
    assert answer["billingMeter"]["id"] == ids[1]
    assert (await listing.page(first=2, after=info["endCursor"]))[0] == listing.ids[2:]


# Objects by their ids


async def test_every_object_is_found_by_its_id(gateway: Gateway) -> None:
    customer_id = await make_customer(gateway)
    meter_id = await make_meter(gateway, "m", customerId=customer_id)
    entry_id = await new_entry(gateway, "m")
    for id_, kind in ((customer_id, "Customer"), (meter_id, "BillingMeter"), (entry_id, "LedgerEntry")):
        assert (await gateway.data(NODE, {"id": id_}))["node"] == {"__typename": kind, "id": id_}


async def test_objects_are_found_in_the_order_of_their_ids(gateway: Gateway) -> None:
    customers = [await make_customer(gateway) for _ in range(2)]
    meters = [await make_meter(gateway, name) for name in ("m", "n")]
    entries = [await new_entry(gateway, "m") for _ in range(2)]
    missing = ["cus_0123456789abcdef01234567", "mtr_0123456789abcdef01234567", "ent_0123456789abcdef01234567_1"]
    malformed = ["", "x", "cus_", "key_0123456789abcdef01234567", customers[0][4:], meters[0] + "0", entries[0] + "9"]
    ids = [
        entries[1],
        missing[0],
        customers[1],
        meters[0],
        meters[0],
        malformed[0],
        *malformed,
        customers[0],
        *missing,
        entries[0],
        entries[1],
        meters[1],
        customers[1],
    ]
    kinds = dict.fromkeys(customers, "Customer") | dict.fromkeys(meters, "BillingMeter")
    kinds |= dict.fromkeys(entries, "LedgerEntry")
    data = await gateway.data(NODES, {"ids": ids})
    assert data["nodes"] == [{"__typename": kinds[id_], "id": id_} if id_ in kinds else None for id_ in ids]
    assert (await gateway.data(NODES, {"ids": []}))["nodes"] == []
    for id_ in missing + malformed:
        assert (await gateway.data(NODE, {"id": id_}))["node"] is None, id_


async def test_at_most_100_objects_are_fetched_at_once(gateway: Gateway) -> None:
    customer_id = await make_customer(gateway)
    found = await gateway.data(NODES, {"ids": [customer_id] * 100})
    assert found["nodes"] == [{"__typename": "Customer", "id": customer_id}] * 100
    error = await gateway.error(NODES, {"ids": [customer_id] * 101})
    assert error["extensions"] == {"code": "LIMIT_EXCEEDED"}
    assert error["path"] == ["nodes"]
