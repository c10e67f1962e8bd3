"""Malformed values: each is reported in its channel, which names the field and the rule, and nothing changes."""

import base64
import itertools
import json
import random
from collections.abc import Mapping
from typing import Any

import pytest

from resolvers.actor import Scope
from resolvers.errors import InvalidInput
from resolvers.values import check_metadata, check_text
from tests.conftest import Caller, Gateway
from tests.steps import hold, make_customer, make_grant, make_meter, must

MAX_AMOUNT = 2**63 - 1

AMOUNT_RULE = "An amount is a whole number from 0 to 9223372036854775807, as an integer or a string of ASCII digits."
DAY_RULE = "A date is a day of the calendar, written YYYY-MM-DD."
TIME_RULE = "A time is written as in RFC 3339, with an offset and at most 30 decimals: 2026-01-31T09:30:00.25Z."
ZONE_RULE = "must be a zone of the IANA time zone database, like Europe/Zurich."
BLANK_RULE = "must have a visible character; it has white space alone."

#: Texts that show nothing: ASCII's white space, Unicode's, and characters without width or glyph.
BLANKS = (" ", "\t\r\n", "\u00a0\u3000", "\u2028\x85", "\u200b", "\ufeff \u2060", "\u3164", "\u2800", "\u00ad\ufe0f")

CHARACTER_RULE = "must not contain NUL or lone surrogates."

#: 2026-03-16 in Arabic digits, which `str.isdigit` takes for digits.
ARABIC_DAY = "٢٠٢٦-٠٣-\u0661\u0666"

BAD_AMOUNTS: tuple[Any, ...] = (
    -1,
    "-1",
    "-0",
    0.5,
    "0.5",
    1.0,
    "1.0",
    1e3,
    "1e3",
    "0x10",
    True,
    False,
    2**63,
    str(2**63),
    10**30,
    "9" * 5_000,
    "٣",
    "\uff11",
    "+1",
    " 1",
    "1 ",
    "1\n",
    "1_000",
    "1,000",
    "1\x00",
    "",
    "NaN",
    [],
    [1],
    {},
    {"value": 1},
)

BAD_AMOUNT_LITERALS = (
    "-1",
    "0.5",
    "1.0",
    "1e3",
    "true",
    "ONE",
    str(2**63),
    "9" * 5_000,
    '"-1"',
    '"1.0"',
    '"1e3"',
    '"٣"',
    '"+1"',
    '" 1"',
    '""',
    "[]",
    "[1]",
    "{}",
    "{value: 1}",
)

#: Where an amount goes in; the first five are required.
AMOUNTS = (
    ("recordUsage", "amount"),
    ("createBillingMeter", "totalCredits"),
    ("grantCredits", "amount"),
    ("holdCredits", "amount"),
    ("commitHold", "amount"),
    ("createBillingMeter", "spendCap"),
    ("updateBillingMeter", "spendCap"),
    ("refillBillingMeter", "refill"),
    ("voidUsage", "amount"),
    ("revokeCreditGrant", "amount"),
)

#: Each text that callers choose, and the most characters that it may have.
TEXTS = (
    ("createCustomer", "name", 256),
    ("createCustomer", "externalId", 256),
    ("createCustomer", "idempotencyKey", 255),
    ("updateCustomer", "name", 256),
    ("updateCustomer", "externalId", 256),
    ("createBillingMeter", "workspaceId", 256),
    ("createBillingMeter", "externalMeterId", 256),
    ("createBillingMeter", "idempotencyKey", 255),
    ("updateBillingMeter", "workspaceId", 256),
    ("updateBillingMeter", "externalMeterId", 256),
    ("refillBillingMeter", "workspaceId", 256),
    ("refillBillingMeter", "externalMeterId", 256),
    ("refillBillingMeter", "idempotencyKey", 255),
    ("recordUsage", "workspaceId", 256),
    ("recordUsage", "externalMeterId", 256),
    ("recordUsage", "eventId", 255),
    ("recordUsage", "usageName", 128),
    ("voidUsage", "workspaceId", 256),
    ("voidUsage", "externalMeterId", 256),
    ("voidUsage", "eventId", 255),
    ("voidUsage", "reason", 500),
    ("voidUsage", "idempotencyKey", 255),
    ("grantCredits", "workspaceId", 256),
    ("grantCredits", "externalMeterId", 256),
    ("grantCredits", "reason", 500),
    ("grantCredits", "idempotencyKey", 255),
    ("updateCreditGrant", "reason", 500),
    ("revokeCreditGrant", "reason", 500),
    ("revokeCreditGrant", "idempotencyKey", 255),
    *(
        (mutation, field, 255 if field == "holdId" else 256)
        for mutation in ("holdCredits", "commitHold", "releaseHold", "extendHold")
        for field in ("workspaceId", "externalMeterId", "holdId")
    ),
    ("commitHold", "usageName", 128),
)

BAD_EMAILS = (
    "nobody",
    "nobody@",
    "@example.com",
    "nobody@example",
    "nobody@localhost",
    "no body@example.com",
    " nobody@example.com",
    "nobody@example.com ",
    "nobody@example.com\n",
    "nobody@exam ple.com",
    "nobody@example..com",
    "nobody@-example.com",
    "nobody@[127.0.0.1]",
    "nobody@127.0.0.1",
    ".nobody@example.com",
    "no..body@example.com",
    "no@body@example.com",
    "Nobody <nobody@example.com>",
    f"nobody@{'e' * 64}.com",
)

BAD_ZONES = (
    "",
    "localtime",
    "posixrules",
    "../etc/passwd",
    "/etc/localtime",
    "Europe",
    "Europe/",
    "Europe/Nowhere",
    "europe/zurich",
    "EUROPE/ZURICH",
    "utc",
    "UTC ",
    "UTC\x00",
    "UTC+1",
    "+01:00",
    "right/UTC",
    "tzdata.zi",
)

BAD_DAYS: tuple[Any, ...] = (
    "2026-W12-1",
    "2026W121",
    "20260316",
    "2026-075",
    "2026-3-16",
    "26-03-16",
    "2026-02-30",
    "2026-02-29",
    "2026-13-01",
    "2026-00-10",
    "2026-03-00",
    "0000-01-01",
    "10000-01-01",
    "-2026-03-16",
    ARABIC_DAY,
    "2026-03-16T00:00:00Z",
    "2026/03/16",
    "16.03.2026",
    " 2026-03-16",
    "2026-03-16\n",
    "today",
    "",
    20260316,
    1.5,
    True,
    ["2026-03-16"],
    {"day": "2026-03-16"},
)

BAD_TIMES: tuple[Any, ...] = (
    "2026-03-16",
    "2026-03-16T11:00:00",
    "2026-03-16T11:00Z",
    "2026-03-16T11Z",
    "2026-03-16 11:00:00Z",
    "2026-03-16T11:00:00 Z",
    "2026-03-16T11:00:00.Z",
    f"2026-03-16T11:00:00.{'1' * 31}Z",
    "2026-03-16T11:00:00,5Z",
    "2026-03-16T11:00:60Z",
    "2026-03-16T23:59:60Z",
    "2026-03-16T11:60:00Z",
    "2026-03-16T24:00:00Z",
    "2026-03-16T25:00:00Z",
    "2026-03-16T11:00:00+24:00",
    "2026-03-16T11:00:00+01:60",
    "2026-03-16T11:00:00+01",
    "2026-03-16T11:00:00+0100",
    "2026-03-16T11:00:00+1:00",
    "2026-03-16T11:00:00+01:00:00",
    "2026-03-16T11:00:00UTC",
    "2026-03-16T11:00:00Z ",
    "2026-03-16T11:00:00Z\n",
    "2026-02-30T11:00:00Z",
    "2026-W12-1T11:00:00Z",
    "20260316T110000Z",
    f"{ARABIC_DAY}T11:00:00Z",
    "0001-01-01T00:00:00+01:00",
    "9999-12-31T23:59:59-01:00",
    "10000-01-01T00:00:00Z",
    "now",
    "",
    1773658800,
    1.5,
    True,
    ["2026-03-16T11:00:00Z"],
    {},
)

#: Where a time goes in.
TIMES = (
    ("recordUsage", "occurredAt"),
    ("commitHold", "occurredAt"),
    ("grantCredits", "expiresAt"),
    ("updateCreditGrant", "expiresAt"),
)

#: Where a metadata object goes in.
METADATA = ("createCustomer", "updateCustomer", "recordUsage", "grantCredits", "holdCredits", "commitHold")

USAGE = """query ($id: ID!, $from: Date, $to: Date, $names: [String!]) {
  usage(billingId: $id, from: $from, to: $to, names: $names) { day totalBillingUsage }
}"""
METER_USAGE = """query ($from: Date, $to: Date, $names: [String!]) {
  billingMeter(workspaceId: "w", externalMeterId: "m") { usage(from: $from, to: $to, names: $names) { day } }
}"""

STATE = """{
  customers(first: 100) { nodes { id email name externalId metadata updatedAt } }
  billingMeters(first: 30) {
    nodes {
      id totalCredits usedCredits allowOverages spendCap timezone updatedAt customer { id }
      usage { day totalBillingUsage billingUsageName }
      ledger(first: 100) { nodes { id kind amount key metadata } }
      creditGrants(first: 10) { nodes { id openCredits pinnedCredits priority expiresAt state metadata } }
      holds(first: 10) { nodes { id holdId state expiresAt committedAmount metadata } }
    }
  }
}"""


class Tenant:
    """An organization with a customer, its meter `m`, and mutations that would be accepted.

    The meter has one debit, one grant and the hold `held`.
    """

    def __init__(self, gateway: Gateway, customer_id: str, meter_id: str, grant_id: str) -> None:
        self.gateway = gateway
        self.customer_id = customer_id
        self.meter_id = meter_id
        self.grant_id = grant_id
        names = {"workspaceId": "w", "externalMeterId": "m"}
        self.inputs: dict[str, dict[str, Any]] = {
            "createCustomer": {"email": "new@example.com"},
            "updateCustomer": {"id": customer_id, "email": "changed@example.com"},
            "createBillingMeter": {"workspaceId": "w", "externalMeterId": "new"},
            "updateBillingMeter": names | {"allowOverages": True},
            "refillBillingMeter": names | {"refill": "5"},
            "recordUsage": names | {"eventId": "new", "amount": "1"},
            "voidUsage": names | {"eventId": "first", "reason": "a mistake", "idempotencyKey": "new"},
            "grantCredits": names | {"amount": "5"},
            "updateCreditGrant": {"id": grant_id, "priority": 40},
            "revokeCreditGrant": {"id": grant_id, "amount": "1"},
            "holdCredits": names | {"holdId": "another", "amount": "1"},
            "commitHold": names | {"holdId": "held", "amount": "2"},
            "releaseHold": names | {"holdId": "held"},
            "extendHold": names | {"holdId": "held", "expiresInSeconds": 2_000},
        }

    async def state(self) -> dict[str, Any]:
        """Return everything that a mutation could have changed."""
        return await self.gateway.data(STATE)

    async def mutate(self, mutation: str, caller: Caller | None = None, /, **values: Any) -> dict[str, Any]:
        """Run the mutation with these values instead of its good ones, and return its answer."""
        return await (caller or self.gateway).mutate(mutation, "", **self.inputs[mutation] | values)

    async def error(self, mutation: str, caller: Caller | None = None, /, **values: Any) -> dict[str, Any]:
        """Run the mutation with these values instead of its good ones, and return its one top-level error."""
        return await (caller or self.gateway).error(document(mutation), {"input": self.inputs[mutation] | values})

    async def literal_error(self, mutation: str, field: str, literal: str) -> dict[str, Any]:
        """Run the mutation with its values as literals, one of them replaced, and return its one top-level error."""
        return await self.gateway.error(literal_document(mutation, self.inputs[mutation], field, literal))


def given(first: str | None, last: str | None) -> dict[str, str]:
    """Return the variables of a range, without the end that is left out."""
    return {name: day for name, day in (("from", first), ("to", last)) if day is not None}


def in_json_words(value: object) -> str:
    """Return the value as messages show it."""
    return repr(value).replace("True", "true").replace("False", "false").replace("None", "null")


def document(mutation: str) -> str:
    name = mutation[0].upper() + mutation[1:]
    return f"mutation ($input: {name}Input!) {{ {mutation}(input: $input) {{ __typename }} }}"


def literal_document(mutation: str, values: Mapping[str, object], field: str, literal: str) -> str:
    literals = {name: json.dumps(value) for name, value in values.items()} | {field: literal}
    fields = ", ".join(f"{name}: {text}" for name, text in literals.items())
    selection = "__typename ... on UserError { code message } ... on InvalidInput { field }"
    return f"mutation {{ {mutation}(input: {{{fields}}}) {{ {selection} }} }}"


def invalid(field: str, rule: str) -> dict[str, Any]:
    """Return the refusal of a value below the input."""
    return {
        "__typename": "InvalidInput",
        "code": "INVALID_INPUT",
        "message": f"{field} {rule}",
        "field": ["input", field],
    }


def shown(value: object) -> str:
    """Return a value as a subtest is named by it."""
    return repr(value)[:60]


@pytest.fixture
async def tenant(gateway: Gateway) -> Tenant:
    customer_id = await make_customer(gateway, name="Ada", externalId="ada", metadata={"plan": "starter"})
    meter_id = await make_meter(gateway, totalCredits="100", spendCap="50", customerId=customer_id)
    await must(gateway, "recordUsage", eventId="first", amount="30")
    grant_id = await make_grant(gateway, 10)
    await hold(gateway, "held", 3)
    return Tenant(gateway, customer_id, meter_id, grant_id)


@pytest.mark.parametrize(
    "mutation",
    [
        "createCustomer",
        "updateCustomer",
        "createBillingMeter",
        "updateBillingMeter",
        "refillBillingMeter",
        "recordUsage",
        "voidUsage",
        "grantCredits",
        "updateCreditGrant",
        "revokeCreditGrant",
        "holdCredits",
        "commitHold",
        "releaseHold",
        "extendHold",
    ],
)
async def test_the_values_around_a_bad_one_are_accepted_and_change_something(tenant: Tenant, mutation: str) -> None:
    before = await tenant.state()
    assert await tenant.mutate(mutation) == {"__typename": f"{mutation[0].upper()}{mutation[1:]}Success"}
    assert await tenant.state() != before


class TestAmounts:
    @pytest.mark.slow
    async def test_a_bad_variable_is_bad_user_input(self, tenant: Tenant, subtests: pytest.Subtests) -> None:
        before = await tenant.state()
        for mutation, field in AMOUNTS:
            for value in BAD_AMOUNTS:
                with subtests.test(mutation=mutation, field=field, value=shown(value)):
                    error = await tenant.error(mutation, **{field: value})
                    assert error["message"] == f"Variable '$input' has invalid value at .{field}: {AMOUNT_RULE}"
                    assert error["extensions"] == {"code": "BAD_USER_INPUT"}
        assert await tenant.state() == before

    async def test_a_number_that_a_client_may_have_rounded_is_refused(
        self, tenant: Tenant, subtests: pytest.Subtests
    ) -> None:
        before = await tenant.state()
        for mutation, field in AMOUNTS:
            for value in (2**53, 2**53 + 1, MAX_AMOUNT):
                with subtests.test(mutation=mutation, field=field, value=value):
                    error = await tenant.error(mutation, **{field: value})
                    assert error["message"] == (
                        f"Variable '$input' has invalid value at .{field}: An amount greater than 9007199254740991 must"
                        " be a string of digits, as many clients round a JSON number so great."
                    )
                    assert error["extensions"] == {"code": "BAD_USER_INPUT"}
        assert await tenant.state() == before

    @pytest.mark.slow
    async def test_a_bad_literal_is_bad_user_input(self, tenant: Tenant, subtests: pytest.Subtests) -> None:
        before = await tenant.state()
        for mutation, field in AMOUNTS:
            # One reader serves all fields: the first one shows what it refuses, the others that it is theirs.
            for literal in BAD_AMOUNT_LITERALS if (mutation, field) == AMOUNTS[0] else BAD_AMOUNT_LITERALS[::6]:
                with subtests.test(mutation=mutation, field=field, literal=shown(literal)):
                    error = await tenant.literal_error(mutation, field, literal)
                    assert error["message"] == f"input.{field}: {AMOUNT_RULE}"
                    assert error["extensions"] == {"code": "BAD_USER_INPUT"}
        assert await tenant.state() == before

    async def test_a_bad_amount_in_a_filter_is_bad_user_input(
        self, gateway: Gateway, subtests: pytest.Subtests
    ) -> None:
        query = "query ($below: BigInt) { billingMeters(filter: {availableBelow: $below}) { nodes { id } } }"
        for value in BAD_AMOUNTS:
            with subtests.test(value=shown(value)):
                error = await gateway.error(query, {"below": value})
                assert error["message"] == f"Variable '$below' has invalid value: {AMOUNT_RULE}"
                assert error["extensions"] == {"code": "BAD_USER_INPUT"}
        for literal in BAD_AMOUNT_LITERALS:
            with subtests.test(literal=shown(literal)):
                error = await gateway.error(
                    f"{{ billingMeters(filter: {{availableBelow: {literal}}}) {{ nodes {{ id }} }} }}"
                )
                assert error["message"] == f"filter.availableBelow: {AMOUNT_RULE}"
                assert error["extensions"] == {"code": "BAD_USER_INPUT"}

    async def test_null_is_refused_where_an_amount_is_required(self, tenant: Tenant) -> None:
        before = await tenant.state()
        for mutation, field in AMOUNTS[:5]:
            error = await tenant.error(mutation, **{field: None})
            assert error["message"].startswith(f"Variable '$input' has invalid value at .{field}: ")
            assert error["extensions"] == {"code": "BAD_USER_INPUT"}
            # The type of the field refuses the literal before its value is read.
            error = await tenant.literal_error(mutation, field, "null")
            assert error["extensions"] == {"code": "GRAPHQL_VALIDATION_FAILED"}
        assert await tenant.state() == before

    async def test_nothing_to_give_or_take_is_invalid(self, tenant: Tenant) -> None:
        before = await tenant.state()
        of_amount = ("voidUsage", "grantCredits", "revokeCreditGrant", "holdCredits")
        for mutation, field in (("refillBillingMeter", "refill"), *[(each, "amount") for each in of_amount]):
            for value in (0, "0", "00"):
                answer = await tenant.mutate(mutation, **{field: value})
                assert answer == invalid(field, "must be greater than 0.")
        assert await tenant.state() == before

    async def test_the_least_and_the_greatest_amounts_are_accepted(self, gateway: Gateway) -> None:
        selection = "... on CreateBillingMeterSuccess { billingMeter { totalCredits } }"
        for literal in (str(MAX_AMOUNT), str(2**53 - 1), f'"{MAX_AMOUNT}"', "0", '"0"', '"007"'):
            expected = {"totalCredits": str(int(literal.strip('"')))}
            # As a number, the greatest is exact in a literal alone.
            if literal != str(MAX_AMOUNT):
                values = {
                    "workspaceId": "w",
                    "externalMeterId": f"variable {literal}",
                    "totalCredits": json.loads(literal),
                }
                answer = await gateway.mutate("createBillingMeter", selection, **values)
                assert answer["billingMeter"] == expected
            name = f"literal {int(literal.strip(chr(34)))} {len(literal)}"
            data = await gateway.data(
                f'mutation {{ createBillingMeter(input: {{workspaceId: "w", externalMeterId: "{name}", '
                f"totalCredits: {literal}}}) {{ {selection} }} }}"
            )
            assert data["createBillingMeter"]["billingMeter"] == expected


class TestTexts:
    @pytest.mark.slow
    async def test_its_length_and_its_characters_are_checked(self, tenant: Tenant, subtests: pytest.Subtests) -> None:
        before = await tenant.state()
        for mutation, field, most in TEXTS:
            for value, rule in (
                ("", f"must have 1 to {most} characters; it has 0."),
                ("x" * (most + 1), f"must have 1 to {most} characters; it has {most + 1}."),
                ("😀" * (most + 1), f"must have 1 to {most} characters; it has {most + 1}."),
                ("a\x00b", CHARACTER_RULE),
                ("\x00", CHARACTER_RULE),
                *[(blank, BLANK_RULE) for blank in BLANKS],
            ):
                with subtests.test(mutation=mutation, field=field, value=shown(value)):
                    assert await tenant.mutate(mutation, **{field: value}) == invalid(field, rule)
        assert await tenant.state() == before

    async def test_nul_in_a_literal_is_refused(self, tenant: Tenant) -> None:
        before = await tenant.state()
        query = literal_document("createCustomer", tenant.inputs["createCustomer"], "name", r'"a\u0000b"')
        data = await tenant.gateway.data(query)
        assert data["createCustomer"] == invalid("name", CHARACTER_RULE)
        assert await tenant.state() == before

    async def test_a_lone_surrogate_in_a_literal_fails_the_parser(self, tenant: Tenant) -> None:
        before = await tenant.state()
        for literal in (r'"a\ud800b"', r'"\udc00"', r'"\u{d800}"'):
            error = await tenant.literal_error("createCustomer", "name", literal)
            assert error["extensions"] == {"code": "GRAPHQL_PARSE_FAILED"}
        assert await tenant.state() == before

    @pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\udc00\ud800", "a\x00"])
    def test_the_rule_itself_refuses_nul_and_lone_surrogates(self, text: str) -> None:
        with pytest.raises(InvalidInput) as refusal:
            check_text("name", text, length=256)
        assert refusal.value.message == f"name {CHARACTER_RULE}"
        assert refusal.value.field == "name"

    @pytest.mark.parametrize("text", BLANKS)
    def test_the_rule_itself_refuses_what_shows_nothing(self, text: str) -> None:
        with pytest.raises(InvalidInput) as refusal:
            check_text("name", text, length=256)
        assert refusal.value.message == f"name {BLANK_RULE}"
        # The beginning of a text may be blank, and so may be what surrounds a visible character.
        check_text("namePrefix", text, length=256, may_be_blank=True)
        check_text("name", f"{text}a", length=256)
        check_text("name", f"👩{text}", length=256)

    @pytest.mark.parametrize("character", [*(chr(code) for code in range(33, 127)), "é", "中", "٣", "😀", "\u0301"])
    def test_the_rule_itself_takes_what_shows_something(self, character: str) -> None:
        check_text("name", character, length=256)

    async def test_texts_of_the_greatest_length_are_accepted_and_come_back_as_they_were(self, gateway: Gateway) -> None:
        names = {"workspaceId": long_text(256), "externalMeterId": long_text(256)}
        key = long_text(255)
        person = {"name": long_text(256), "externalId": long_text(256)}
        customer = await gateway.mutate(
            "createCustomer",
            "... on CreateCustomerSuccess { customer { name externalId } }",
            email="ada@example.com",
            idempotencyKey=key,
            **person,
        )
        assert customer["customer"] == person
        found = await gateway.data(
            "query ($id: String!) { customerByExternalId(externalId: $id) { name } }", {"id": person["externalId"]}
        )
        assert found["customerByExternalId"] == {"name": person["name"]}
        made = await gateway.mutate(
            "createBillingMeter",
            "... on CreateBillingMeterSuccess { billingMeter { workspaceId externalMeterId } }",
            totalCredits="10",
            idempotencyKey=key,
            **names,
        )
        assert made["billingMeter"] == names
        refilled = await gateway.mutate(
            "refillBillingMeter",
            "... on RefillBillingMeterSuccess { entry { key } }",
            refill="1",
            idempotencyKey=key,
            **names,
        )
        assert refilled["entry"] == {"key": key}
        recorded = await gateway.mutate(
            "recordUsage",
            "... on RecordUsageSuccess { entry { key usageName } }",
            eventId=key,
            amount="1",
            usageName=long_text(128),
            **names,
        )
        assert recorded["entry"] == {"key": key, "usageName": long_text(128)}

    async def test_texts_of_the_greatest_length_are_accepted_also_where_the_organization_is_as_long(
        self, gateway: Gateway
    ) -> None:
        caller = await gateway.caller(org_id="o" * 64)
        names = {"workspaceId": long_text(256), "externalMeterId": long_text(256)}
        body = await caller.run(document("createBillingMeter"), {"input": names})
        assert body == {"data": {"createBillingMeter": {"__typename": "CreateBillingMeterSuccess"}}}

    async def test_a_bad_text_of_a_query_is_bad_user_input(self, tenant: Tenant, subtests: pytest.Subtests) -> None:
        for query, field, most in (
            ('($text: String!) { billingMeter(workspaceId: $text, externalMeterId: "m") { id } }', "workspaceId", 256),
            (
                '($text: String!) { billingMeter(workspaceId: "w", externalMeterId: $text) { id } }',
                "externalMeterId",
                256,
            ),
            ("($text: String!) { customerByExternalId(externalId: $text) { id } }", "externalId", 256),
            ("($text: String) { billingMeters(filter: {workspaceId: $text}) { nodes { id } } }", "workspaceId", 256),
            ('($text: String!) { usage(billingId: "METER", names: [$text]) { day } }', "names", 128),
            ("($text: String!) { billingMeters { nodes { usage(names: [$text]) { day } } } }", "names", 128),
        ):
            for value, rule in (
                ("", f"must have 1 to {most} characters; it has 0."),
                ("x" * (most + 1), f"must have 1 to {most} characters; it has {most + 1}."),
                ("a\x00b", CHARACTER_RULE),
            ):
                with subtests.test(query=query, value=shown(value)):
                    error = await tenant.gateway.error(
                        "query " + query.replace("METER", tenant.meter_id), {"text": value}
                    )
                    assert error["message"] == f"{field} {rule}"
                    assert error["extensions"] == {"code": "BAD_USER_INPUT"}


class TestEmails:
    @pytest.mark.parametrize("mutation", ["createCustomer", "updateCustomer"])
    async def test_a_bad_email_is_invalid(self, tenant: Tenant, mutation: str, subtests: pytest.Subtests) -> None:
        before = await tenant.state()
        for email in BAD_EMAILS:
            with subtests.test(email=email):
                answer = await tenant.mutate(mutation, email=email)
                assert answer.pop("message").startswith("email must be a valid email address: ")
                assert answer == {"__typename": "InvalidInput", "code": "INVALID_INPUT", "field": ["input", "email"]}
        for email, rule in (
            ("", "must have 1 to 256 characters; it has 0."),
            (f"{'n' * 64}@{'e' * 63}.{'e' * 63}.{'e' * 60}.com", "must have 1 to 256 characters; it has 257."),
            ("nobody\x00@example.com", CHARACTER_RULE),
        ):
            with subtests.test(email=email):
                assert await tenant.mutate(mutation, email=email) == invalid("email", rule)
        assert await tenant.state() == before

    async def test_a_null_email_is_refused(self, tenant: Tenant) -> None:
        before = await tenant.state()
        error = await tenant.error("createCustomer", email=None)
        assert error["message"].startswith("Variable '$input' has invalid value at .email: ")
        assert error["extensions"] == {"code": "BAD_USER_INPUT"}
        answer = await tenant.mutate("updateCustomer", email=None)
        assert answer == invalid("email", "must not be null; leave it out to keep it.")
        assert await tenant.state() == before


class TestZones:
    async def test_what_is_no_zone_of_the_iana_is_invalid(self, tenant: Tenant, subtests: pytest.Subtests) -> None:
        before = await tenant.state()
        for zone in BAD_ZONES:
            with subtests.test(zone=zone):
                assert await tenant.mutate("createBillingMeter", timezone=zone) == invalid("timezone", ZONE_RULE)
        assert await tenant.state() == before

    async def test_a_zone_of_the_iana_is_kept_as_it_was_given(self, gateway: Gateway) -> None:
        for zone in ("UTC", "Etc/GMT+12", "Europe/Zurich", "America/Argentina/Buenos_Aires"):
            answer = await gateway.mutate(
                "createBillingMeter",
                "... on CreateBillingMeterSuccess { billingMeter { timezone } }",
                workspaceId="w",
                externalMeterId=zone,
                timezone=zone,
            )
            assert answer["billingMeter"] == {"timezone": zone}


class TestDays:
    async def test_a_bad_variable_is_bad_user_input(self, tenant: Tenant, subtests: pytest.Subtests) -> None:
        for query, argument in ((USAGE, "from"), (USAGE, "to"), (METER_USAGE, "from"), (METER_USAGE, "to")):
            for value in BAD_DAYS:
                with subtests.test(query=query, argument=argument, value=shown(value)):
                    error = await tenant.gateway.error(query, {"id": tenant.meter_id, argument: value})
                    assert error["message"] == f"Variable '${argument}' has invalid value: {DAY_RULE}"
                    assert error["extensions"] == {"code": "BAD_USER_INPUT"}

    async def test_a_bad_literal_is_bad_user_input(self, tenant: Tenant, subtests: pytest.Subtests) -> None:
        literals = [json.dumps(value) for value in BAD_DAYS if not isinstance(value, dict)]
        for literal in (*literals, '{day: "2026-03-16"}', "TODAY", "9" * 5_000):
            with subtests.test(literal=shown(literal)):
                error = await tenant.gateway.error(
                    f'{{ usage(billingId: "{tenant.meter_id}", from: {literal}) {{ day }} }}'
                )
                assert error["message"] == f"from: {DAY_RULE}"
                assert error["extensions"] == {"code": "BAD_USER_INPUT"}

    async def test_a_reversed_or_too_long_range_is_bad_user_input(
        self, tenant: Tenant, subtests: pytest.Subtests
    ) -> None:
        reversed_ = "from must not be after to: {} is after {}."
        too_long = "from and to must span at most 366 days; they span {}."
        for first, last, message in (
            ("2026-03-02", "2026-03-01", reversed_.format("2026-03-02", "2026-03-01")),
            ("2026-03-17", None, reversed_.format("2026-03-17", "2026-03-16")),
            ("9999-12-31", "0001-01-01", reversed_.format("9999-12-31", "0001-01-01")),
            ("2025-03-15", None, too_long.format(367)),
            ("2024-01-01", "2025-01-01", too_long.format(367)),
            ("0001-01-01", "9999-12-31", too_long.format(3_652_059)),
        ):
            for query in (USAGE, METER_USAGE):
                with subtests.test(first=first, last=last, query=query):
                    error = await tenant.gateway.error(query, {"id": tenant.meter_id} | given(first, last))
                    assert error["message"] == message
                    assert error["extensions"] == {"code": "BAD_USER_INPUT"}

    async def test_the_longest_and_the_farthest_ranges_are_answered(self, tenant: Tenant) -> None:
        for first, last, days in (
            ("2024-01-01", "2024-12-31", []),
            (None, "0001-01-01", []),
            (None, "9999-12-31", []),
            ("9999-12-31", "9999-12-31", []),
            (None, None, [{"day": "2026-03-16", "totalBillingUsage": "30"}]),
            ("2025-03-16", None, [{"day": "2026-03-16", "totalBillingUsage": "30"}]),
        ):
            data = await tenant.gateway.data(USAGE, {"id": tenant.meter_id} | given(first, last))
            assert data == {"usage": days}

    async def test_too_few_or_too_many_names_are_bad_user_input(self, tenant: Tenant) -> None:
        for count in (0, 101):
            names = [f"name{number}" for number in range(count)]
            for query in (USAGE, METER_USAGE):
                error = await tenant.gateway.error(query, {"id": tenant.meter_id, "names": names})
                assert error["message"] == f"names must have 1 to 100 items; it has {count}."
                assert error["extensions"] == {"code": "BAD_USER_INPUT"}


class TestTimes:
    @pytest.mark.slow
    async def test_a_bad_variable_is_bad_user_input(self, tenant: Tenant, subtests: pytest.Subtests) -> None:
        before = await tenant.state()
        for (mutation, field), value in itertools.product(TIMES, BAD_TIMES):
            with subtests.test(mutation=mutation, value=shown(value)):
                error = await tenant.error(mutation, **{field: value})
                assert error["message"] == f"Variable '$input' has invalid value at .{field}: {TIME_RULE}"
                assert error["extensions"] == {"code": "BAD_USER_INPUT"}
        assert await tenant.state() == before

    @pytest.mark.slow
    async def test_a_bad_literal_is_bad_user_input(self, tenant: Tenant, subtests: pytest.Subtests) -> None:
        before = await tenant.state()
        for (mutation, field), value in itertools.product(TIMES, (*BAD_TIMES, 10**400)):
            literal = json.dumps(value)
            with subtests.test(mutation=mutation, literal=shown(literal)):
                error = await tenant.literal_error(mutation, field, literal)
                assert error["message"] == f"input.{field}: {TIME_RULE}"
                assert error["extensions"] == {"code": "BAD_USER_INPUT"}
        assert await tenant.state() == before

    async def test_what_rfc_3339_allows_is_accepted_and_returned_in_utc(self, tenant: Tenant) -> None:
        for sent, in_utc in (
            ("2026-03-16T11:00:00Z", "2026-03-16T11:00:00Z"),
            ("2026-03-16t11:00:00z", "2026-03-16T11:00:00Z"),
            ("2026-03-16T11:00:00-00:00", "2026-03-16T11:00:00Z"),
            ("2026-03-17T10:59:59.5+23:59", "2026-03-16T11:00:59.500000Z"),
            ("2026-03-16T00:00:00.123456-11:30", "2026-03-16T11:30:00.123456Z"),
            (f"2026-03-16T11:00:00.{'9' * 30}Z", "2026-03-16T11:00:00.999999Z"),
            ("2026-03-16T11:00:00.0000009+00:00", "2026-03-16T11:00:00Z"),
        ):
            answer = await tenant.gateway.mutate(
                "recordUsage",
                "... on RecordUsageSuccess { entry { occurredAt } }",
                **tenant.inputs["recordUsage"] | {"eventId": sent, "occurredAt": sent},
            )
            assert answer["entry"] == {"occurredAt": in_utc}

    async def test_a_time_outside_the_window_is_invalid(self, tenant: Tenant) -> None:
        before = await tenant.state()
        for sent, rule in (
            ("2026-03-16T12:05:00.000001Z", "must be at most 5 minutes ahead."),
            ("9999-12-31T23:59:59Z", "must be at most 5 minutes ahead."),
            ("1969-12-31T23:59:59Z", "must not be before 1970."),
            ("0001-01-01T00:00:00Z", "must not be before 1970."),
        ):
            for mutation in ("recordUsage", "commitHold"):
                assert await tenant.mutate(mutation, occurredAt=sent) == invalid("occurredAt", rule)
        assert await tenant.state() == before

    async def test_an_end_that_is_not_ahead_is_invalid(self, tenant: Tenant) -> None:
        before = await tenant.state()
        for sent in ("0001-01-01T00:00:00Z", "2026-03-16T11:59:59.999999Z", "2026-03-16T12:00:00Z"):
            for mutation in ("grantCredits", "updateCreditGrant"):
                assert await tenant.mutate(mutation, expiresAt=sent) == invalid("expiresAt", "must be later than now.")
        assert await tenant.state() == before
        for sent in ("2026-03-16T12:00:00.000001Z", "9999-12-31T23:59:59.999999Z"):
            assert await tenant.mutate("grantCredits", expiresAt=sent) == {"__typename": "GrantCreditsSuccess"}
            assert await tenant.mutate("updateCreditGrant", expiresAt=sent) == {
                "__typename": "UpdateCreditGrantSuccess"
            }


class TestTerms:
    """What else a grant or a hold is given."""

    async def test_a_value_out_of_its_range_is_invalid(self, tenant: Tenant, subtests: pytest.Subtests) -> None:
        before = await tenant.state()
        cases: tuple[tuple[str, str, Any, str], ...] = (
            *((each, "priority", -1, "must be 0 to 100.") for each in ("grantCredits", "updateCreditGrant")),
            *((each, "priority", 101, "must be 0 to 100.") for each in ("grantCredits", "updateCreditGrant")),
            *(
                (mutation, "expiresInSeconds", seconds, "must be 1 to 86400.")
                for mutation in ("holdCredits", "extendHold")
                for seconds in (-1, 0, 86_401)
            ),
            ("holdCredits", "policy", "FORCE", "must be REJECT or PARTIAL: a hold is not forced."),
            *(
                (mutation, "maxOpenHolds", most, "must be 1 or more.")
                for mutation in ("createBillingMeter", "updateBillingMeter")
                for most in (-1, 0)
            ),
        )
        for mutation, field, value, rule in cases:
            with subtests.test(mutation=mutation, field=field, value=value):
                assert await tenant.mutate(mutation, **{field: value}) == invalid(field, rule)
        assert await tenant.state() == before

    async def test_a_lost_value_never_widens_what_is_done(self, tenant: Tenant, subtests: pytest.Subtests) -> None:
        cases: tuple[tuple[str, dict[str, Any], str, str], ...] = (
            ("grantCredits", {"expiresAt": None}, "expiresAt", "must not be null; leave it out for no end."),
            ("updateCreditGrant", {"priority": None}, "priority", "must not be null; leave it out to keep it."),
            ("updateCreditGrant", {"expiresAt": None}, "expiresAt", "must not be null; removeExpiry removes it."),
            (
                "updateCreditGrant",
                {"expiresAt": None, "removeExpiry": True},
                "expiresAt",
                "must not be null; removeExpiry removes it.",
            ),
            (
                "updateCreditGrant",
                {"expiresAt": "2027-01-01T00:00:00Z", "removeExpiry": True},
                "removeExpiry",
                "must not be true beside an expiresAt.",
            ),
            (
                "revokeCreditGrant",
                {"amount": None},
                "amount",
                "must not be null; leave it out to take back all that is open.",
            ),
            (
                "createBillingMeter",
                {"maxOpenHolds": None},
                "maxOpenHolds",
                "must not be null; leave it out for the operator's.",
            ),
            (
                "updateBillingMeter",
                {"maxOpenHolds": None},
                "maxOpenHolds",
                "must not be null; removeMaxOpenHolds removes it.",
            ),
            (
                "updateBillingMeter",
                {"maxOpenHolds": 5, "removeMaxOpenHolds": True},
                "removeMaxOpenHolds",
                "must not be true beside maxOpenHolds.",
            ),
        )
        before = await tenant.state()
        for mutation, values, field, rule in cases:
            with subtests.test(mutation=mutation, values=values):
                assert await tenant.mutate(mutation, **values) == invalid(field, rule)
        assert await tenant.state() == before

    async def test_null_is_bad_user_input_where_there_is_a_default(
        self, tenant: Tenant, subtests: pytest.Subtests
    ) -> None:
        before = await tenant.state()
        for mutation, field in (
            ("grantCredits", "priority"),
            ("grantCredits", "category"),
            ("updateCreditGrant", "removeExpiry"),
            ("holdCredits", "policy"),
            ("holdCredits", "expiresInSeconds"),
            ("extendHold", "expiresInSeconds"),
            ("commitHold", "policy"),
            ("commitHold", "usageName"),
            ("commitHold", "ifClosed"),
        ):
            with subtests.test(mutation=mutation, field=field):
                error = await tenant.error(mutation, **{field: None})
                assert error["message"].startswith(f"Variable '$input' has invalid value at .{field}: ")
                assert error["extensions"] == {"code": "BAD_USER_INPUT"}
        assert await tenant.state() == before

    async def test_what_is_no_integer_is_bad_user_input(self, tenant: Tenant, subtests: pytest.Subtests) -> None:
        before = await tenant.state()
        values: tuple[Any, ...] = (0.5, "50", True, 2**31, -(2**31) - 1, [50], {})
        for mutation, field in (
            ("grantCredits", "priority"),
            ("updateCreditGrant", "priority"),
            ("holdCredits", "expiresInSeconds"),
            ("extendHold", "expiresInSeconds"),
            ("createBillingMeter", "maxOpenHolds"),
            ("updateBillingMeter", "maxOpenHolds"),
        ):
            for value in values:
                with subtests.test(mutation=mutation, field=field, value=value):
                    error = await tenant.error(mutation, **{field: value})
                    assert error["message"].startswith(f"Variable '$input' has invalid value at .{field}: Int cannot")
                    assert error["extensions"] == {"code": "BAD_USER_INPUT"}
        assert await tenant.state() == before


class TestPages:
    @pytest.mark.parametrize(
        ("query", "own"),
        [
            ("{ customers(after: $cursor) { nodes { id } } }", "cus_"),
            ("{ customers(last: 1, before: $cursor) { nodes { id } } }", "cus_"),
            ("{ billingMeters(after: $cursor) { nodes { id } } }", "mtr_"),
            ("{ customers { nodes { billingMeters(before: $cursor) { nodes { id } } } } }", "mtr_"),
            ("{ billingMeters { nodes { ledger(after: $cursor) { nodes { id } } } } }", "ent_"),
            ("{ billingMeters { nodes { creditGrants(after: $cursor) { nodes { id } } } } }", "grt_"),
            ("{ billingMeters { nodes { holds(last: 1, before: $cursor) { nodes { id } } } } }", "hld_"),
        ],
    )
    async def test_what_is_no_cursor_of_the_list_is_bad_user_input(
        self, tenant: Tenant, query: str, own: str, subtests: pytest.Subtests
    ) -> None:
        argument = "after" if "after" in query else "before"
        digits = "0" * 24
        whole = [f"cus_{digits}", f"mtr_{digits}", f"ent_{digits}_1", f"grt_{digits}_1", f"hld_{digits}_1"]
        foreign = [*(id_ for id_ in whole if not id_.startswith(own)), "", "cus_", f"key_{digits}", f"{own}{digits}0"]
        malformed = ("=", "a", "!!!!", "é", "1", "\x00", "x" * 10_000, f"{own}{digits}", " bXRyXw")
        for cursor in [*map(cursor_of, foreign), *malformed]:
            with subtests.test(cursor=shown(cursor)):
                error = await tenant.gateway.error(f"query ($cursor: String) {query}", {"cursor": cursor})
                assert error["message"] == f"{argument} is not a cursor of this list."
                assert error["extensions"] == {"code": "BAD_USER_INPUT"}

    @pytest.mark.parametrize(
        ("field", "prefix", "shown_as"),
        [("ledger", "ent_", "ledger"), ("creditGrants", "grt_", "credit grants"), ("holds", "hld_", "holds")],
    )
    async def test_a_cursor_of_another_meter_is_bad_user_input(
        self, tenant: Tenant, field: str, prefix: str, shown_as: str
    ) -> None:
        for argument in ("after", "before"):
            page = f"{field}({argument}: $cursor) {{ nodes {{ id }} }}"
            error = await tenant.gateway.error(
                f"query ($cursor: String) {{ billingMeters {{ nodes {{ {page} }} }} }}",
                {"cursor": cursor_of(f"{prefix}{'0' * 24}_1")},
            )
            assert error["message"] == f"after and before must be cursors of this meter's {shown_as}."
            assert error["extensions"] == {"code": "BAD_USER_INPUT"}

    @pytest.mark.parametrize(
        "query",
        [
            "{ customers(PAGE) { nodes { id } } }",
            "{ billingMeters(PAGE) { nodes { id } } }",
            "{ customers { nodes { billingMeters(PAGE) { nodes { id } } } } }",
            "{ billingMeters { nodes { ledger(PAGE) { nodes { id } } } } }",
            "{ billingMeters { nodes { creditGrants(PAGE) { nodes { id } } } } }",
            "{ billingMeters { nodes { holds(PAGE) { nodes { id } } } } }",
        ],
    )
    async def test_a_page_has_1_to_100_rows_from_one_end(
        self, tenant: Tenant, query: str, subtests: pytest.Subtests
    ) -> None:
        query = "query ($first: Int, $last: Int) " + query.replace("PAGE", "first: $first, last: $last")
        cases: list[tuple[dict[str, Any], str]] = [
            ({"first": 1, "last": 1}, "first and last exclude each other."),
            ({"first": 0, "last": 0}, "first and last exclude each other."),
        ]
        for name in ("first", "last"):
            cases += [({name: count}, f"{name} must be 1 to 100; it is {count}.") for count in (0, -1, 101, 2**31 - 1)]
            refused = f"Variable '${name}' has invalid value: Int cannot represent non"
            cases += [
                ({name: 2**31}, f"{refused} 32-bit signed integer value: {2**31}"),
                ({name: 1.5}, f"{refused}-integer value: 1.5"),
                ({name: "5"}, f"{refused}-integer value: '5'"),
                ({name: True}, f"{refused}-integer value: true"),
            ]
        for variables, message in cases:
            with subtests.test(variables=variables):
                error = await tenant.gateway.error(query, variables)
                assert error["message"] == message
                assert error["extensions"] == {"code": "BAD_USER_INPUT"}


class TestMetadata:
    @pytest.mark.parametrize("mutation", METADATA)
    async def test_a_bad_variable_is_invalid(self, tenant: Tenant, mutation: str, subtests: pytest.Subtests) -> None:
        not_objects: tuple[Any, ...] = ([], [{}], "{}", "", 0, 1.5, True, False)
        object_rule = "must be a JSON object."
        bits_rule = "must not contain integers of more than 64 bits; write them as strings."
        depth_rule = "must not be nested deeper than 100 levels."
        size_rule = "must take at most 16384 bytes as compact JSON; it takes 16385."
        cases: tuple[tuple[Any, str], ...] = (
            *((value, object_rule) for value in not_objects),
            ({"a\x00": 1}, CHARACTER_RULE),
            ({"a": "\x00"}, CHARACTER_RULE),
            ({"a": [{"b": ["c\x00"]}]}, CHARACTER_RULE),
            ({"a": {"b\x00": {}}}, CHARACTER_RULE),
            ({"a": 2**64}, bits_rule),
            ({"a": -(2**63) - 1}, bits_rule),
            ({"a": [{"b": 10**30}]}, bits_rule),
            (nested(101), depth_rule),
            (nested(300), depth_rule),
            ({"a": "x" * 16_377}, size_rule),
            ({"a": "é" * 8_186, "": 0}, size_rule),
        )
        before = await tenant.state()
        for value, rule in cases:
            with subtests.test(value=shown(value)):
                assert await tenant.mutate(mutation, metadata=value) == invalid("metadata", rule)
        assert await tenant.state() == before

    @pytest.mark.slow
    async def test_a_bad_literal_is_invalid(self, tenant: Tenant, subtests: pytest.Subtests) -> None:
        bits_rule = "must not contain integers of more than 64 bits; write them as strings."
        before = await tenant.state()
        for literal, rule in (
            ("[]", "must be a JSON object."),
            ('"{}"', "must be a JSON object."),
            ("5", "must be a JSON object."),
            (r'{a: "\u0000"}', CHARACTER_RULE),
            (f"{{a: {2**64}}}", bits_rule),
            (f"{{a: {-(2**63) - 1}}}", bits_rule),
            (f"{{a: {'9' * 300}}}", bits_rule),
            ("{a: 1e999}", "must not contain numbers that are not finite."),
            (f'{{a: "{"x" * 16_377}"}}', "must take at most 16384 bytes as compact JSON; it takes 16385."),
        ):
            for mutation in METADATA:
                with subtests.test(mutation=mutation, literal=shown(literal)):
                    query = literal_document(mutation, tenant.inputs[mutation], "metadata", literal)
                    assert await tenant.gateway.data(query) == {mutation: invalid("metadata", rule)}
        assert await tenant.state() == before

    @pytest.mark.parametrize("mutation", METADATA)
    async def test_16_kib_as_compact_json_are_accepted_and_kept(self, tenant: Tenant, mutation: str) -> None:
        value = {"a": "x" * 16_376}
        assert len(json.dumps(value, separators=(",", ":"))) == 16_384
        success = mutation[0].upper() + mutation[1:] + "Success"
        assert await tenant.mutate(mutation, metadata=value) == {"__typename": success}
        state = await tenant.state()
        kept = [customer["metadata"] for customer in state["customers"]["nodes"]]
        for meter in state["billingMeters"]["nodes"]:
            kept += [
                each["metadata"] for field in ("ledger", "creditGrants", "holds") for each in meter[field]["nodes"]
            ]
        # A hold's is on its entry, too.
        assert kept.count(value) == (2 if mutation == "holdCredits" else 1)

    async def test_it_comes_back_as_it_was_sent(self, gateway: Gateway, subtests: pytest.Subtests) -> None:
        values: tuple[dict[str, Any], ...] = (
            {},
            {"a": None, "b": [True, False, "", {}], "é😀": -0.5},
            {"a": 2**64 - 1, "b": -(2**63), "c": 1.0, "d": 1},
            {"": "\x7f\u2028"},
            nested(100),
        )
        for value in values:
            with subtests.test(value=shown(value)):
                answer = await gateway.mutate(
                    "createCustomer",
                    "... on CreateCustomerSuccess { customer { metadata } }",
                    email="ada@example.com",
                    metadata=value,
                )
                returned = answer["customer"]["metadata"]
                assert json.dumps(returned, sort_keys=True) == json.dumps(value, sort_keys=True)

    async def test_null_is_refused_by_an_update_alone(self, tenant: Tenant) -> None:
        before = await tenant.state()
        answer = await tenant.mutate("updateCustomer", metadata=None)
        assert answer == invalid("metadata", "must not be null; leave it out to keep it.")
        assert await tenant.state() == before
        assert await tenant.mutate("createCustomer", metadata=None) == {"__typename": "CreateCustomerSuccess"}
        for mutation in ("recordUsage", "grantCredits", "holdCredits", "commitHold"):
            success = f"{mutation[0].upper()}{mutation[1:]}Success"
            assert await tenant.mutate(mutation, metadata=None) == {"__typename": success}

    @pytest.mark.parametrize(
        ("value", "rule"),
        [
            ({"a": "\ud800"}, CHARACTER_RULE),
            ({"\udfff": 1}, CHARACTER_RULE),
            ({"a": [{"b": "x\udc00"}]}, CHARACTER_RULE),
            ({"a": float("nan")}, "must not contain numbers that are not finite."),
            ({"a": [float("-inf")]}, "must not contain numbers that are not finite."),
        ],
    )
    def test_the_rule_itself_refuses_what_http_already_does(self, value: dict[str, Any], rule: str) -> None:
        with pytest.raises(InvalidInput) as refusal:
            check_metadata("metadata", value)
        assert refusal.value.message == f"metadata {rule}"

    def test_the_rule_itself_refuses_what_is_nested_ten_thousand_levels_deep(self) -> None:
        with pytest.raises(InvalidInput) as refusal:
            check_metadata("metadata", nested(10_000))
        assert refusal.value.message == "metadata must not be nested deeper than 100 levels."


class TestSwitches:
    async def test_a_lost_value_never_lifts_the_emergency_stop(self, tenant: Tenant, subtests: pytest.Subtests) -> None:
        cases: tuple[tuple[dict[str, Any], str, str], ...] = (
            ({"allowOverages": None}, "allowOverages", "must not be null; leave it out to keep it."),
            ({"spendCap": None}, "spendCap", "must not be null; removeSpendCap removes it."),
            ({"spendCap": "5", "removeSpendCap": True}, "removeSpendCap", "must not be true beside a spendCap."),
            (
                {"spendCap": None, "removeSpendCap": True},
                "spendCap",
                "must not be null; removeSpendCap removes it.",
            ),
        )
        before = await tenant.state()
        for values, field, rule in cases:
            with subtests.test(values=values):
                assert await tenant.mutate("updateBillingMeter", **values) == invalid(field, rule)
        assert await tenant.state() == before

    async def test_a_key_of_no_refill_is_invalid(self, tenant: Tenant) -> None:
        before = await tenant.state()
        names = {"workspaceId": "w", "externalMeterId": "m"}
        for values in ({"refill": None}, {}):
            answer = await tenant.gateway.mutate("refillBillingMeter", "", **names, **values, idempotencyKey="k")
            assert answer == invalid("refill", "must be given with an idempotencyKey.")
        assert await tenant.state() == before


class TestTypes:
    """What a variable's type already refuses."""

    @pytest.mark.slow
    async def test_what_is_no_string_is_bad_user_input(self, tenant: Tenant, subtests: pytest.Subtests) -> None:
        before = await tenant.state()
        not_strings: tuple[Any, ...] = (5, 1.5, True, ["x"], {"a": 1})
        emails_and_zones = [
            ("createCustomer", "email"),
            ("updateCustomer", "email"),
            ("createBillingMeter", "timezone"),
        ]
        for mutation, field in [(mutation, field) for mutation, field, _ in TEXTS] + emails_and_zones:
            for value in not_strings:
                with subtests.test(mutation=mutation, field=field, value=value):
                    error = await tenant.error(mutation, **{field: value})
                    assert error["message"] == (
                        f"Variable '$input' has invalid value at .{field}: "
                        f"String cannot represent a non string value: {in_json_words(value)}"
                    )
                    assert error["extensions"] == {"code": "BAD_USER_INPUT"}
        assert await tenant.state() == before

    async def test_what_is_no_boolean_is_bad_user_input(self, tenant: Tenant, subtests: pytest.Subtests) -> None:
        before = await tenant.state()
        not_booleans: tuple[Any, ...] = (0, 1, "true", "", [True], {})
        for mutation, field in (
            ("createBillingMeter", "allowOverages"),
            ("updateBillingMeter", "allowOverages"),
            ("updateBillingMeter", "removeSpendCap"),
            ("updateBillingMeter", "removeMaxOpenHolds"),
            ("updateCreditGrant", "removeExpiry"),
        ):
            for value in not_booleans:
                with subtests.test(mutation=mutation, field=field, value=value):
                    error = await tenant.error(mutation, **{field: value})
                    assert error["message"] == (
                        f"Variable '$input' has invalid value at .{field}: "
                        f"Boolean cannot represent a non boolean value: {in_json_words(value)}"
                    )
                    assert error["extensions"] == {"code": "BAD_USER_INPUT"}
        assert await tenant.state() == before

    async def test_what_is_no_value_of_an_enumeration_is_bad_user_input(
        self, tenant: Tenant, subtests: pytest.Subtests
    ) -> None:
        before = await tenant.state()
        for mutation, field, good in (
            ("recordUsage", "policy", "REJECT"),
            ("holdCredits", "policy", "REJECT"),
            ("commitHold", "policy", "REJECT"),
            ("commitHold", "ifClosed", "RECORD"),
            ("grantCredits", "category", "PAID"),
        ):
            for value in (good.lower(), "NOPE", "", 1, True, None, [good]):
                with subtests.test(mutation=mutation, field=field, value=value):
                    error = await tenant.error(mutation, **{field: value})
                    assert error["message"].startswith(f"Variable '$input' has invalid value at .{field}: ")
                    assert error["extensions"] == {"code": "BAD_USER_INPUT"}
        assert await tenant.state() == before

    async def test_an_unknown_a_missing_and_a_foreign_input_are_bad_user_input(
        self, tenant: Tenant, subtests: pytest.Subtests
    ) -> None:
        before = await tenant.state()
        for mutation, good in tenant.inputs.items():
            required = next(iter(good))
            cases: tuple[tuple[Any, str], ...] = (
                (good | {"orgId": "other"}, "'orgId'"),
                ({name: value for name, value in good.items() if name != required}, f"'{required}'"),
                ("x", "'$input'"),
                ([good, good], "'$input'"),
                (None, "'$input'"),
            )
            for value, name in cases:
                with subtests.test(mutation=mutation, value=shown(value)):
                    error = await tenant.gateway.error(document(mutation), {"input": value})
                    assert error["message"].startswith("Variable '$input' has invalid value")
                    assert name in error["message"]
                    assert error["extensions"] == {"code": "BAD_USER_INPUT"}
        assert await tenant.state() == before

    async def test_an_id_of_any_form_names_nothing(self, tenant: Tenant, subtests: pytest.Subtests) -> None:
        before = await tenant.state()
        missing = {
            "__typename": "CustomerNotFound",
            "code": "CUSTOMER_NOT_FOUND",
            "message": "There is no customer of this id.",
        }
        for id_ in ("", "nope", "cus_", f"cus_{'0' * 24}", f"mtr_{'0' * 24}", "cus_\x00", "é", "x" * 10_000):
            with subtests.test(id=shown(id_)):
                data = await tenant.gateway.data(
                    "query ($id: ID!) { node(id: $id) { id } nodes(ids: [$id]) { id } customer(id: $id) { id }"
                    " usage(billingId: $id) { day } billingMeters(filter: {customerId: $id}) { nodes { id } } }",
                    {"id": id_},
                )
                assert data == {
                    "node": None,
                    "nodes": [None],
                    "customer": None,
                    "usage": None,
                    "billingMeters": {"nodes": []},
                }
                assert await tenant.mutate("updateCustomer", id=id_) == missing
                assert await tenant.mutate("createBillingMeter", customerId=id_) == missing
                assert await tenant.mutate("updateBillingMeter", customerId=id_) == missing
        assert await tenant.state() == before

    async def test_an_id_of_no_grant_or_hold_names_nothing(self, tenant: Tenant, subtests: pytest.Subtests) -> None:
        before = await tenant.state()
        missing = {
            "__typename": "CreditGrantNotFound",
            "code": "CREDIT_GRANT_NOT_FOUND",
            "message": "There is no credit grant of this id.",
        }
        digits = tenant.meter_id.removeprefix("mtr_")
        # The meter's other entries are no grants, and neither is its hold.
        numbers = (1, 2, 4, 5, 0, "03", "3 ", "-3", "x", "", 10**17, 10**18)
        ids = [f"grt_{digits}_{number}" for number in numbers]
        ids += [f"grt_{'0' * 24}_3", f"ent_{digits}_3", f"hld_{digits}_3", tenant.meter_id, "grt_", "", "é\x00"]
        for id_ in ids:
            with subtests.test(id=shown(id_)):
                assert await tenant.mutate("updateCreditGrant", id=id_) == missing
                assert await tenant.mutate("revokeCreditGrant", id=id_) == missing
                if id_.startswith(("grt_", "hld_")):
                    data = await tenant.gateway.data(
                        "query ($id: ID!) { node(id: $id) { id } nodes(ids: [$id]) { id } }", {"id": id_}
                    )
                    assert data == {"node": None, "nodes": [None]}
        for number in (1, 2, 3, 5):
            data = await tenant.gateway.data(f'{{ node(id: "hld_{digits}_{number}") {{ id }} }}')
            assert data == {"node": None}
        assert await tenant.state() == before


class TestPrecedence:
    """Malformed, no permission, not found, replay or conflict, time window, limit: the first that applies is named."""

    async def test_a_malformed_value_comes_before_a_missing_permission(
        self, tenant: Tenant, subtests: pytest.Subtests
    ) -> None:
        before = await tenant.state()
        without_scope = await tenant.gateway.caller(Scope.BILLING_READ)
        elsewhere = await tenant.gateway.caller(workspaces=["elsewhere"])
        cases: tuple[tuple[str, str, Any, str], ...] = (
            ("createCustomer", "name", "", "must have 1 to 256 characters; it has 0."),
            ("updateCustomer", "metadata", [], "must be a JSON object."),
            ("createBillingMeter", "timezone", "utc", ZONE_RULE),
            ("updateBillingMeter", "spendCap", None, "must not be null; removeSpendCap removes it."),
            ("refillBillingMeter", "refill", "0", "must be greater than 0."),
            ("recordUsage", "eventId", "", "must have 1 to 255 characters; it has 0."),
            ("voidUsage", "amount", "0", "must be greater than 0."),
            ("grantCredits", "amount", "0", "must be greater than 0."),
            ("grantCredits", "expiresAt", None, "must not be null; leave it out for no end."),
            ("updateCreditGrant", "priority", 101, "must be 0 to 100."),
            ("revokeCreditGrant", "amount", "0", "must be greater than 0."),
            ("holdCredits", "policy", "FORCE", "must be REJECT or PARTIAL: a hold is not forced."),
            ("commitHold", "usageName", "", "must have 1 to 128 characters; it has 0."),
            ("releaseHold", "holdId", "", "must have 1 to 255 characters; it has 0."),
            ("extendHold", "expiresInSeconds", 0, "must be 1 to 86400."),
        )
        for mutation, field, value, rule in cases:
            with subtests.test(mutation=mutation):
                assert await tenant.mutate(mutation, without_scope, **{field: value}) == invalid(field, rule)
                assert await tenant.mutate(mutation, elsewhere, **{field: value}) == invalid(field, rule)
        assert await tenant.state() == before

    async def test_a_malformed_argument_of_a_query_comes_before_a_missing_permission(
        self, tenant: Tenant, subtests: pytest.Subtests
    ) -> None:
        caller = await tenant.gateway.caller(Scope.USAGE_WRITE)
        for query, message in (
            ('billingMeter(workspaceId: "", externalMeterId: "m") { id }', "workspaceId must have 1 to 256"),
            ('customerByExternalId(externalId: "") { id }', "externalId must have 1 to 256"),
            ("customers(first: 0) { nodes { id } }", "first must be 1 to 100"),
            ('billingMeters(after: "x") { nodes { id } }', "after is not a cursor"),
            ('billingMeters(filter: {workspaceId: ""}) { nodes { id } }', "workspaceId must have 1 to 256"),
            ('usage(billingId: "METER", names: []) { day }', "names must have 1 to 100 items"),
            ('usage(billingId: "METER", from: "2026-03-02", to: "2026-03-01") { day }', "from must not be after to"),
        ):
            with subtests.test(query=query):
                error = await caller.error(f"{{ {query.replace('METER', tenant.meter_id)} }}")
                assert error["message"].startswith(message)
                assert error["extensions"] == {"code": "BAD_USER_INPUT"}

    async def test_a_malformed_argument_of_a_query_comes_before_what_is_not_found(
        self, gateway: Gateway, subtests: pytest.Subtests
    ) -> None:
        for arguments, message in (
            ("names: []", "names must have 1 to 100 items; it has 0."),
            ('names: [""]', "names must have 1 to 128 characters; it has 0."),
            ('from: "2026-03-02", to: "2026-03-01"', "from must not be after to: 2026-03-02 is after 2026-03-01."),
            ('from: "2024-03-02", to: "2026-03-01"', "from and to must span at most 366 days; they span 730."),
        ):
            with subtests.test(arguments=arguments):
                error = await gateway.error(f'{{ usage(billingId: "mtr_{"0" * 24}", {arguments}) {{ day }} }}')
                assert error["message"] == message
                assert error["extensions"] == {"code": "BAD_USER_INPUT"}

    async def test_a_missing_permission_comes_before_what_is_not_found(
        self, tenant: Tenant, subtests: pytest.Subtests
    ) -> None:
        before = await tenant.state()
        without_scope = await tenant.gateway.caller(Scope.BILLING_READ)
        elsewhere = await tenant.gateway.caller(workspaces=["elsewhere"])
        for mutation, field, value in (
            ("updateCustomer", "id", f"cus_{'0' * 24}"),
            ("createBillingMeter", "customerId", f"cus_{'0' * 24}"),
            ("updateBillingMeter", "externalMeterId", "missing"),
            ("refillBillingMeter", "externalMeterId", "missing"),
            ("recordUsage", "externalMeterId", "missing"),
            ("voidUsage", "eventId", "missing"),
            ("grantCredits", "externalMeterId", "missing"),
            ("updateCreditGrant", "id", "missing"),
            ("revokeCreditGrant", "id", "missing"),
            ("holdCredits", "externalMeterId", "missing"),
            ("commitHold", "holdId", "missing"),
            ("releaseHold", "holdId", "missing"),
            ("extendHold", "holdId", "missing"),
        ):
            with subtests.test(mutation=mutation):
                error = await tenant.error(mutation, without_scope, **{field: value})
                of_holds = dict.fromkeys(("holdCredits", "commitHold", "releaseHold", "extendHold"), "usage:write")
                scopes = of_holds | {"recordUsage": "usage:write", "voidUsage": "usage:correct"}
                assert error["message"] == f"The key lacks the scope {scopes.get(mutation, 'billing:write')}."
                assert error["extensions"] == {"code": "FORBIDDEN"}
                # What an id names is in a workspace that is not known before.
                if field != "id":
                    error = await tenant.error(mutation, elsewhere, **{field: value})
                    assert error["message"] == "The key is limited to other workspaces than 'w'."
                    assert error["extensions"] == {"code": "FORBIDDEN"}
        assert await tenant.state() == before

    async def test_what_is_not_found_comes_before_a_conflict(self, tenant: Tenant) -> None:
        before = await tenant.state()
        nobody = f"cus_{'0' * 24}"
        # Another customer has the external id.
        answer = await tenant.mutate("updateCustomer", id=nobody, externalId="ada")
        assert answer["__typename"] == "CustomerNotFound"
        # The meter's names are taken.
        answer = await tenant.mutate("createBillingMeter", externalMeterId="m", customerId=nobody)
        assert answer["__typename"] == "CustomerNotFound"
        # Both are missing; the meter is looked for first.
        answer = await tenant.mutate("updateBillingMeter", externalMeterId="missing", customerId=nobody)
        assert answer["__typename"] == "BillingMeterNotFound"
        # Another meter has the event.
        answer = await tenant.mutate("recordUsage", externalMeterId="missing", eventId="first", amount="99")
        assert answer["__typename"] == "BillingMeterNotFound"
        assert await tenant.state() == before

    async def test_what_is_not_found_comes_before_a_conflict_of_idempotency_keys(self, tenant: Tenant) -> None:
        await tenant.mutate("createBillingMeter", idempotencyKey="k")
        before = await tenant.state()
        answer = await tenant.mutate(
            "createBillingMeter", idempotencyKey="k", externalMeterId="other", customerId=f"cus_{'0' * 24}"
        )
        assert answer["__typename"] == "CustomerNotFound"
        assert await tenant.state() == before

    async def test_a_conflict_comes_before_the_time_window_and_the_limit(self, tenant: Tenant) -> None:
        await tenant.mutate("refillBillingMeter", idempotencyKey="k")
        before = await tenant.state()
        conflict = {"__typename": "IdempotencyConflict", "code": "IDEMPOTENCY_CONFLICT"}
        answer = await tenant.mutate("recordUsage", eventId="first", amount="1000", occurredAt="1960-01-01T00:00:00Z")
        assert answer == conflict | {"message": "'first' was used before with other values."}
        answer = await tenant.mutate("refillBillingMeter", refill=str(MAX_AMOUNT), idempotencyKey="k")
        assert answer == conflict | {"message": "'k' was used before with other values."}
        assert await tenant.state() == before

    async def test_the_time_window_comes_before_the_limit(self, tenant: Tenant) -> None:
        before = await tenant.state()
        answer = await tenant.mutate("recordUsage", amount="1000", occurredAt="2026-03-16T13:00:00Z")
        assert answer == invalid("occurredAt", "must be at most 5 minutes ahead.")
        answer = await tenant.mutate("recordUsage", amount=str(MAX_AMOUNT), occurredAt="1960-01-01T00:00:00Z")
        assert answer == invalid("occurredAt", "must not be before 1970.")
        assert await tenant.state() == before


def long_text(length: int) -> str:
    """Return a text of characters of 4 bytes each, which no database can shorten."""
    chance = random.Random(length)  # noqa: S311  # Any characters do, and the same ones each time.
    return "".join(chr(chance.randrange(0x1_0000, 0x3_0000)) for _ in range(length))


def nested(levels: int) -> dict[str, Any]:
    """Return an object of so many levels: an object of lists of lists."""
    value: list[Any] = []
    for _ in range(levels - 2):
        value = [value]
    return {"a": value}


def cursor_of(id_: str) -> str:
    return base64.urlsafe_b64encode(id_.encode()).decode()


async def test_a_message_has_the_words_of_json_and_no_others(on_sqlite: Gateway, subtests: pytest.Subtests) -> None:
    page = "query ($v: Int) { customers(first: $v) { nodes { id } } }"
    filtered = "query ($v: CustomerFilter) { customers(filter: $v) { nodes { id } } }"
    nodes = "query ($v: [ID!]!) { nodes(ids: $v) { id } }"
    create = "mutation ($v: CreateCustomerInput!) { createCustomer(input: $v) { __typename } }"
    of_v = "Variable '$v' has invalid value"
    for query, value, message in (
        (page, True, f"{of_v}: Int cannot represent non-integer value: true"),
        (page, [None, False], f"{of_v}: Int cannot represent non-integer value: [null, false]"),
        (page, {"True": "None"}, f"{of_v}: Int cannot represent non-integer value: {{'True': 'None'}}"),
        (filtered, True, f"{of_v}: Expected value of type 'CustomerFilter' to be an object, found: true."),
        (filtered, {"namePrefix": False}, f"{of_v} at .namePrefix: String cannot represent a non string value: false"),
        (nodes, None, f"{of_v}: Expected value of non-null type '[ID!]!' not to be null."),
        (nodes, [None], f"{of_v} at [0]: Expected value of non-null type 'ID!' not to be null."),
        (nodes, [True], f"{of_v} at [0]: ID cannot represent value: true"),
        (create, {"email": None}, f"{of_v} at .email: Expected value of non-null type 'String!' not to be null."),
        ("{ nodes(ids: null) { id } }", None, "Expected value of non-null type '[ID!]!' not to be null."),
        (page.replace("$v: Int", "$v: Int = " + "9" * 5_000), 1, f"Expected value of type 'Int'; found: {'9' * 262}…"),
    ):
        with subtests.test(value=value):
            (error,) = (await on_sqlite.post(query, {"v": value})).json()["errors"]
            assert error["message"] == message
