"""Changes behind the gateway's back of the meter `R` of `tests.test_tampered_refills`, and what `verify` finds then."""

from tests.ledgers import change


def refill(values: str) -> str:
    return change("auto_refills", values, "meter_id = '<R>'")


def request(number: int, values: str) -> str:
    return change("auto_refill_requests", values, f"meter_id = '<R>' AND number = {number}")


def entry(seq: int, values: str) -> str:
    return change("ledger_entries", values, f"meter_id = '<R>' AND seq = {seq}")


def meter(values: str) -> str:
    return change("billing_meters", values, "id = '<R>'")


def no_events(type_: str, number: int) -> str:
    return (
        f"DELETE FROM events WHERE owner_id = '<R>' AND type = 'refill.{type_}'"  # noqa: S608  # All of it is our own.
        f" AND payload LIKE '%<D>\\_{number}\"%' ESCAPE '\\'"
    )


_SECOND = "owner_id = '<R>' AND number = 2"
_NO_MODE = (
    "<R> of its automatic refill: it cannot be read: 'x' is not among the defined enum values. Enum name:"
    " autorefillmode. Possible values: target, fixed"
)
_ENDS = "@13:02:00"

#: What is changed, by a name for it, and what is found first.
BROKEN: dict[str, tuple[list[str], list[str]]] = {
    "nothing": ([], []),
    # The automatic refill.
    "the flag of the meter": (
        [meter("has_auto_refill = FALSE")],
        ["<R> its has_auto_refill is False and should be True"],
    ),
    "when it is looked at": (
        [meter("next_due_at = NULL")],
        [f"<R> its automatic refill is to be looked at at {_ENDS}, and it says None"],
    ),
    "when it is looked at, later": (
        [meter("next_due_at = '2026-03-16T13:02:01+00:00'")],
        [f"<R> its automatic refill is to be looked at at {_ENDS}, and it says @13:02:01"],
    ),
    "the number of the newest request": (
        [refill("last_request = 4")],
        ["<R> the last_request of its automatic refill is 4 and should be 5"],
    ),
    "more failures than requests that failed": (
        [refill("failures = 2")],
        ["<R> the failures of its automatic refill are 2, and 1 requests have failed"],
    ),
    "another reason": (
        [refill("last_failure = 'x'")],
        ["<R> the last_failure of its automatic refill is 'x', which is no request's"],
    ),
    "failures without a reason": (
        [refill("last_failure = NULL")],
        ["<R> the last_failure of its automatic refill is None, which is no request's"],
    ),
    "a reason without failures": (
        [refill("failures = 0")],
        ["<R> the last_failure of its automatic refill is 'declined', which is no request's"],
    ),
    **{
        f"{column} = {value}": ([refill(f"{column} = {value}")], [f"<R> the {name} of its automatic refill is {value}"])
        for name, column, value in (
            *(("below", "below", -1), ("maxRefills", "max_refills", 101), ("maxCredits", "max_credits", 0)),
            *(("windowSeconds", "window_seconds", 59), ("cooldownSeconds", "cooldown_seconds", -1)),
            *(("requestSeconds", "request_seconds", 43_201), ("maxFailures", "max_failures", 0)),
        )
    },
    "a target below the line": (
        [refill("amount = 9")],
        ["<R> the amount of its automatic refill is 9, a target below 10"],
    ),
    "a mode that there is not": ([refill("mode = 'x'")], [_NO_MODE]),
    "the automatic refill": (
        ["DELETE FROM auto_refills WHERE meter_id = '<R>'"],
        ["<R> its has_auto_refill is True and should be False"],
    ),
    # The requests.
    "an amount": (
        [request(1, "amount = 44")],
        ["<R> request 1: entry 3 is not the refill of 44 that fulfils it at its end"],
    ),
    "no amount": ([request(3, "amount = 0")], ["<R> request 3: its amount is 0"]),
    "a request that was open when the next one was made": (
        [request(1, "expires_at = '2026-03-16T12:01:00+00:00', state = 'open', closed_at = NULL, entry_seq = NULL")],
        [
            "<R> request 2: it was made while the one before it was open",
            "<R> entry 3: its request is fulfilled by entry None",
        ],
    ),
    "an end": (
        [request(3, "expires_at = '2026-03-16T15:03:00+00:00'")],
        ["<R> request 3: it expired at @12:01:00 and should have at @15:03:00"],
    ),
    "a request that is open for longer than may be": (
        [request(5, "expires_at = '2026-03-17T12:00:00+00:00'")],
        ["<R> request 5: it is from @12:02:00 to @@12:00:00"],
    ),
    "when it was closed": (
        [request(1, "closed_at = '2026-03-16T12:00:01+00:00'")],
        ["<R> request 1: entry 3 is not the refill of 45 that fulfils it at its end"],
    ),
    "that it was closed": (
        [request(2, "closed_at = NULL")],
        ["<R> request 2: it is failed, and was closed at None"],
    ),
    "why it failed": (
        [request(2, "failure = NULL")],
        ["<R> request 2: it is failed, and its failure is None"],
    ),
    "a failure of one that was fulfilled": (
        [request(1, "failure = 'x'")],
        ["<R> request 1: it is fulfilled, and its failure is 'x'"],
    ),
    "what failed it": (
        [request(2, "failure_key = NULL")],
        ["<R> request 2: it is failed, and its failure_key is None"],
    ),
    "what fulfilled it": (
        [request(1, "entry_seq = NULL")],
        [
            "<R> request 1: it is fulfilled, and its entry is None",
            "<R> entry 3: its request is fulfilled by entry None",
        ],
    ),
    "what fulfilled it, to another entry": (
        [request(1, "entry_seq = 2")],
        ["<R> request 1: entry 2 is not the refill of 45 that fulfils it at its end"],
    ),
    "a fulfilled one to failed": (
        [request(1, "state = 'failed'")],
        ["<R> request 1: it is failed, and its failure is None"],
    ),
    "a request": (
        ["DELETE FROM auto_refill_requests WHERE meter_id = '<R>' AND number = 1"],
        ["<R> request 2: its number should be 1"],
    ),
    "when one was made, before the one before it": (
        [request(2, "requested_at = '2026-03-16T11:59:00+00:00', expires_at = '2026-03-16T12:30:00+00:00'")],
        ["<R> request 2: it was made at @11:59:00, before the one before it"],
    ),
    # The refills.
    "the key of a refill, to that of no request": (
        [entry(3, "key = '<D>_77'")],
        [
            "<R> request 1: entry 3 is not the refill of 45 that fulfils it at its end",
            "<R> entry 3: its key is <D>_77, a request that the meter never made",
        ],
    ),
    # The events.
    "the event of a request": (
        [no_events("requested", 3)],
        ["<R> event 7: it follows event 5", "<R> request 3: it has 0 events refill.requested"],
    ),
    "the event of a refill": (
        [no_events("fulfilled", 1)],
        ["<R> event 4: it follows event 2", "<R> request 1: it has 0 events refill.fulfilled"],
    ),
    "the event of a failure": (
        [no_events("failed", 2)],
        ["<R> event 6: it follows event 4", "<R> request 2: it has 0 events refill.failed"],
    ),
    "an event of another amount": (
        [
            change("events", 'payload = replace(payload, \'"amount":"45"\', \'"amount":"46"\')', _SECOND),
        ],
        [
            "<R> event 2: it is of a request of 46 that the meter never made",
            "<R> request 1: it has 0 events refill.requested",
        ],
    ),
    "events that are no longer kept": (
        ["DELETE FROM events WHERE owner_id = '<R>' AND created_at < '2026-03-16T12:02:00+00:00'"],
        [],
    ),
    # The condition.
    "that it has been looked at": (
        [
            "DELETE FROM auto_refill_requests WHERE meter_id = '<R>' AND number = 5",
            no_events("requested", 5),
            refill("last_request = 4"),
        ],
        [
            "<R> its last event is 8 and should be 7",
            "<R> it meets the condition of its automatic refill, and has not asked",
        ],
    ),
}
