"""What the page of operations says that `tollgate verify` checks, and cannot find, held against what it finds."""

import re

from tests.alert_tamperings import CASES as ALERTS_BROKEN
from tests.credit_tamperings import BROKEN, COLUMNS
from tests.doc_pages import ROOT
from tests.refill_tamperings import BROKEN as REFILLS_BROKEN
from tests.spoilt import SPOILT
from tests.tamperings import TAMPERINGS

PAGE = ROOT / "docs" / "operations.md"

#: What is changed behind the gateway's back in the tests of `verify`, by name, and whether something is found of it;
#: and the tests that change something by themselves.
CASES = {name: bool(found) for name, (_, found) in {**TAMPERINGS, **BROKEN, **REFILLS_BROKEN, **ALERTS_BROKEN}.items()}
CASES |= {name: bool(found) for name, (_, found) in COLUMNS.items()}
CASES |= {spoilt.name: bool(spoilt.messages) for spoilt in SPOILT}
CASES |= {
    name: True
    for module in ("test_events", "test_tampered_credits", "test_tampered_refills", "test_verify")
    for name in re.findall(r"^async def (test_\w+)", (ROOT / "tests" / f"{module}.py").read_text("utf-8"), re.MULTILINE)
}

#: Each statement of the page's table, and cases that break it.
CHECKS: dict[str, dict[str, tuple[str, ...]]] = {
    "each meter's ledger": {
        "it begins with `OPENING` and is numbered without a gap": (
            "the first entry is no opening",
            "an entry is missing",
        ),
        "each entry has the fields of its kind and no others, and an amount that its kind may have": (
            "fields that a debit has, lost",
            "fields that no refill has",
            "a refill of nothing",
            "an amount is negative",
        ),
        "its totals follow from those of the entry before": (
            "the total credits after an entry are wrong",
            "the used credits after an entry are wrong",
        ),
    },
    "settings": {
        "`OPENING` records the meter's organization, environment, names, time zone, overage switch, spend cap and"
        " customer, and each `SETTINGS` what it changed, old and new: together they are the meter's row.": (
            "the organization of the meter",
            "the environment of the meter",
            "the workspace of the meter",
            "the external id of the meter",
            "the zone of the meter",
            "one setting at the opening, lost",
            "the old value of a change",
        ),
        "A setting that was changed otherwise is found": (
            "the overage switch of the meter",
            "the cap of the meter, and its limit",
            "the cap of the meter, removed",
            "the customer of the meter",
            "billing_meters.max_open_holds",
        ),
    },
    "decisions": {
        "the limit of each entry is that of the settings and the total of its moment": (
            "the limits of entries, raised",
            "the limits of entries, removed",
        ),
        "`REJECT` and `FORCE` took what was asked, `PARTIAL` what was available of it, and none but `FORCE` passed the"
        " limit": (
            "a REJECT that took less",
            "a FORCE that took more",
            "a PARTIAL that took less than there was",
            "a PARTIAL that took more than there was",
            "a FORCE made a REJECT",
        ),
    },
    "time": {
        "a debit's day is that of its time in the meter's zone, by the time zone database that is installed": (
            "the time that was sent, to another day",
        ),
        "the time as sent lies after 1970 and at most 5 minutes ahead": (
            "the time that was sent, to before 1970",
            "the time that was sent, ahead",
        ),
        "no entry was recorded more than 5 minutes before the one that it follows": (
            "the time of a recording, backwards",
        ),
        "the meter was made with its first entry and changed last with its newest": ("the times of the meter",),
        "what is due of a grant or hold is known to the meter's row": ("billing_meters.next_due_at",),
    },
    "who recorded": {
        "the key exists, belongs to the meter's tenant and workspace, and has the scope that the entry needs:"
        " `usage:correct` for `FORCE`, a void, or a time more than 35 days back": (
            "the recorder, to nobody",
            "the recorder, to another tenant's key",
            "the recorder, to another workspace's key",
            "the recorder, to one who may not",
            "a PARTIAL that took all, made a FORCE",
            "the recorder of a void, to one who may not",
            "the time that was sent, to long ago",
        ),
        "it was made before, or at most 5 minutes after.": ("the recorder, to a key that there was not yet",),
        "`tollgate-import` and `tollgate-demo` are an operator's, and record openings and usage alone, `tollgate-demo`"
        " also grants and holds": ("the recorder, to an operator's command that does not do so",),
        "`tollgate` is the gateway itself, which alone records what ends by time": (
            "the recorder, to the gateway itself",
            "who recorded entry 9, to a key",
        ),
    },
    "voids": {
        "each is of an earlier debit, on its day and under its name, and no more is given back than was taken": (
            "a void of what comes after it",
            "what is voided is a refill",
            "a void is on another day than what it voids",
            "a void under another name than its event",
            "more is voided than was used, and all sums agree",
        ),
    },
    "[grants](grants.md) and [holds](holds.md)": {
        "the order of use, replayed over the ledger, gives each entry's draws and each grant's and hold's row: what is"
        " open, pinned, drawn, expired and revoked of a grant adds up to its amount": (
            "draws in another order",
            "credit_grants.open_credits",
            "credit_grants.pinned_credits",
            "credit_grants.drawn_credits",
            "credit_grants.expired_credits",
            "credit_grants.revoked_credits",
            "credit_grants.amount",
            "holds.pins",
        ),
        "what is held is the sum of the open holds": ("billing_meters.held_credits",),
        "an entry makes each hold and grant, and each hold is closed at most once": (
            "a hold that no entry makes",
            "a grant that no entry makes",
            "a hold that is resolved twice",
        ),
        "nothing is drawn of a grant after its end but what a hold had reserved": ("a draw of a grant after its end",),
        "no usage is unpaid while something is open": ("credits that are open beside usage that none has paid",),
        "what was due before an entry is written before it, at its own moment": (
            "an expiry that was written late",
            "an expiry that is missing",
        ),
        "nothing is overdue by more than a minute, by this machine's clock": (
            "test_what_is_overdue_by_more_than_a_minute_is_found",
        ),
    },
    "[events](events.md)": {
        "of a meter they are numbered without a gap": ("test_what_is_changed_of_events_is_found",),
        "an entry that is one has its event, as far back as events are kept, and a body says what the entry says": (
            "test_what_is_changed_of_events_is_found",
        ),
    },
    "[alerts](alerts.md)": {
        "each crossing of a threshold along the ledger has its event, and each event its crossing, as far back as"
        " events are kept": ("an event that is lost", "an event of the other side", "an event of another threshold"),
        "a grant that came near its end was reported once": ("a grant that came near earlier",),
    },
    "[automatic refills](auto-refill.md)": {
        "the requests of a meter are numbered without a gap, none was made while the one before it was open, and at"
        " most the newest is": (
            "a request",
            "the number of the newest request",
            "a request that was open when the next one was made",
        ),
        "one that is fulfilled has exactly one refill, of its amount and under its id, and each such refill its"
        " request": (
            "an amount",
            "what fulfilled it",
            "what fulfilled it, to another entry",
            "the key of a refill, to that of no request",
        ),
        "each step has its event, as far back as events are kept": (
            "the event of a request",
            "the event of a refill",
            "the event of a failure",
            "an event of another amount",
        ),
        "a meter that meets the condition has asked, and is looked at when time may make it do so": (
            "test_a_meter_that_should_have_been_looked_at_a_minute_ago_is_found",
            "when it is looked at",
        ),
    },
    "usage days": {
        "each is the sum of its entries, and there is none without entries": (
            "the usage of a day is wrong",
            "a day is missing",
            "a day without entries",
        ),
    },
    "the meter's row": {
        "totals, last entry, limit, and the number of available bits that a filter uses": (
            "the used credits of the meter are wrong",
            "the total credits of the meter are wrong, and so its limit",
            "the meter does not know its newest entry",
            "the limit is wrong",
            "the number of available bits is wrong",
        ),
    },
    "customers": {
        "a meter's customer exists and is of the same organization and environment": (
            "the customer of the meter, to another tenant's",
            "the customer of the meter, to another environment's, with its entry",
        ),
        "a customer is found by its email and name, and was made by a key of its tenant": (
            "test_the_command_reports_a_customer_that_is_not_found_by_its_email_and_name",
            "who made a customer, to another tenant's key",
        ),
    },
    "idempotency keys": {
        "a key of a create leads to what was made under it, of that kind and tenant, and what was made under a key is"
        " led to by it": (
            "a meter's key, lost",
            "a meter's key, to another meter",
            "a meter's key, to another tenant's meter",
            "a meter's key, to a customer",
            "a customer's key, lost",
            "a customer's key, to another tenant's",
        ),
        "a meter's has the digest of the request": ("the request of a meter's key",),
        "a key names one entry of its kind on a meter": ("test_a_key_of_two_entries_is_reported",),
        "each entry but an opening has a key, the caller's or one of the gateway's, which the API does not show": (
            "fields that a debit has, lost",
            "the key of a refill, lost",
            "the key of a change of settings, lost",
            "fields that a void has, lost",
        ),
    },
    "keys and sessions": {
        "scopes that exist": ("a key's scopes",),
        "a session has its parent and its customer, of one tenant, the parent's workspaces, no scope but"
        " `billing:read`, and does not outlive its parent or a day": (
            "a session's parent, lost",
            "a session's parent, of another tenant",
            "a session's parent, of another workspace",
            "a session's customer, forgotten",
            "a session's customer, of another tenant",
            "a session's scopes",
            "a session's end",
            "a session's end, too late",
        ),
    },
    "ids": {
        "each has the form of its kind": ("the id of a key", "the id of a meter"),
        "no usage day or entry is without its meter": ("test_rows_of_no_meter_are_reported",),
        "every row can be read": ("a kind that there is not", "metadata that is no JSON"),
    },
}

#: Each thing that the page says cannot be found, and a case of it.
NOT_FOUND = {
    "another metadata, key or reason of one entry": "another metadata, key or reason",
    "another recorder that may record it too": "another recorder who may",
    "another metadata of a grant": "the metadata of a grant",
    "another end of a hold that it could have been extended to, or a shorter time that it was asked for": (
        "the end of a hold, and the time that it was asked for"
    ),
    "another time that was sent on the same day": "the time that was sent, on the same day",
    "another `policy`, or amount that was asked for, by which the same would have been taken": (
        "what was asked for, by which the same is taken"
    ),
    "what a customer is called": "what a customer is called",
    "what an API key may do, whether it is revoked, and that a session was one": "what a key may do",
    "rows that are changed together so that all of the above still holds.": "a debit that was another, in all rows",
}


def test_each_statement_of_the_page_has_changes_that_are_found() -> None:
    section = PAGE.read_text("utf-8").partition("## Verify\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")][1:]
    stated = {of.strip(): re.split(r"; |(?<=\.) ", what.strip()) for of, what in rows}
    assert stated == {of: list(checks) for of, checks in CHECKS.items()}
    cases = {name for checks in CHECKS.values() for names in checks.values() for name in names}
    assert all(names for checks in CHECKS.values() for names in checks.values())
    assert {name for name in cases if not CASES.get(name)} == set()


def test_each_thing_that_is_said_to_be_not_found_has_a_change_of_which_nothing_is_found() -> None:
    section = " ".join(PAGE.read_text("utf-8").partition("It cannot find what leaves no trace elsewhere: ")[2].split())
    assert re.split(r"; (?:or )?", section.partition(" Against a person")[0]) == list(NOT_FOUND)
    assert {name: CASES.get(name) for name in NOT_FOUND.values()} == dict.fromkeys(NOT_FOUND.values(), False)
