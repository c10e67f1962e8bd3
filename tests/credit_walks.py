"""Walks: what happens to a meter with grants and holds, step by step, in words that a table of a test can hold.

A step is a line of words, steps are separated by `;`, and so are the lines that say what came of them:

    meter 10 overages cap 5    a meter that opens with 10 credits
    grant a 10 p40 promo 60s   10 promotional credits of priority 40 that end in 60 seconds, called `a`
    update a p10 60s endless   another priority, another end, or none
    revoke a 5                 5 of its open credits; without a number all
    use e 12 PARTIAL           usage, `void e 5` gives back of it, without a number all that is left
    hold h 5 PARTIAL 60s       a hold
    commit h 5 REJECT RECORD   a commit with its policy, and with `ifClosed: RECORD`
    release h; extend h 60s    what else becomes of a hold
    refill 5; cap 5            the base and the cap; `overages on` and `overages off`
    wait 60                    the clock goes on by 60 seconds

What comes of a step are the entries that it writes, like `USAGE 12 of 15 h: a 10, base 2`: the amount, what was asked
for where it is more, the grant or hold that it is about, and its draws; or its refusal with its facts.
"""

import re
from datetime import timedelta
from typing import Any

from tests.conftest import Caller, Gateway
from tests.steps import disagreements, make_meter

_ANSWERS = {
    "grantCredits": "... on GrantCreditsSuccess { replayed creditGrant { id } }",
    "revokeCreditGrant": "... on RevokeCreditGrantSuccess { replayed revoked shortfall }",
    "recordUsage": "... on RecordUsageSuccess { replayed accepted refused overLimit }",
    "voidUsage": "... on VoidUsageSuccess { replayed }",
    "holdCredits": "... on HoldCreditsSuccess { replayed refused }",
    "commitHold": "... on CommitHoldSuccess { replayed accepted refused overLimit }",
    "releaseHold": "... on ReleaseHoldSuccess { replayed released }",
}

#: The facts of each refusal, and the fields that may answer it.
_FACTS = {
    "InsufficientCredits": ("available held openHolds", ("recordUsage", "holdCredits", "commitHold")),
    "SpendCapExceeded": ("available held openHolds", ("recordUsage", "holdCredits", "commitHold")),
    "TooManyHolds": ("max", ("holdCredits",)),
    "TooManyCreditGrants": ("max", ("grantCredits",)),
    "ExceedsVoidable": ("voidable", ("voidUsage",)),
    "HoldNotOpen": ("hold { state }", ("commitHold", "releaseHold", "extendHold")),
    "CreditGrantNotLive": ("creditGrant { state }", ("updateCreditGrant",)),
}

#: The mutation of each step, and what its words are; the others are options.
_MUTATIONS = {
    "grant": ("grantCredits", ("idempotencyKey", "amount")),
    "update": ("updateCreditGrant", ("id",)),
    "revoke": ("revokeCreditGrant", ("id", "amount")),
    "use": ("recordUsage", ("eventId", "amount")),
    "void": ("voidUsage", ("eventId", "amount")),
    "hold": ("holdCredits", ("holdId", "amount")),
    "commit": ("commitHold", ("holdId", "amount")),
    "release": ("releaseHold", ("holdId",)),
    "extend": ("extendHold", ("holdId",)),
    "refill": ("refillBillingMeter", ("refill",)),
    "cap": ("updateBillingMeter", ("spendCap",)),
    "overages": ("updateBillingMeter", ()),
}

#: What an option sets. Other words are policies, priorities and ends.
_OPTIONS: dict[str, dict[str, Any]] = {
    "promo": {"category": "PROMOTIONAL"},
    "paid": {"category": "PAID"},
    "endless": {"removeExpiry": True},
    "RECORD": {"ifClosed": "RECORD"},
    "on": {"allowOverages": True},
    "off": {"allowOverages": False},
}

_LEDGER = """query ($w: String!, $m: String!) { billingMeter(workspaceId: $w, externalMeterId: $m) {
  ledger(first: 12) { nodes {
    id kind amount requestedAmount draws { creditGrant { id } amount } creditGrant { id } hold { holdId }
  } }
} }"""

_STATE = """query ($w: String!, $m: String!) { billingMeter(workspaceId: $w, externalMeterId: $m) {
  totalCredits usedCredits heldCredits pinnedCredits availableCredits overageCredits
  burnDown { creditGrant { id } openCredits }
  creditGrants(last: 100) { nodes {
    id state openCredits pinnedCredits drawnCredits expiredCredits revokedCredits
  } }
  holds(last: 100) { nodes { holdId state committedAmount } }
} }"""


class Walk:
    """A meter of its own workspace `w`, on which steps are taken."""

    def __init__(self, gateway: Gateway, caller: Caller | None = None, *, name: str = "m") -> None:
        self.gateway = gateway
        self.caller = caller or gateway
        self.names = {"workspaceId": "w", "externalMeterId": name}
        self.meter_id = ""
        #: The ids of the grants by the names that the steps give them, and their names by their ids.
        self.ids: dict[str, str] = {}
        self.grants: dict[str, str] = {}
        self.voids = 0
        #: The newest entry, where a step was taken just before.
        self._newest: str | None = None

    async def take(self, steps: str) -> str:
        """Take the steps, and return what came of them."""
        self._newest = None
        return "; ".join([line for step in steps.split(";") for line in await self._take(step.split())])

    async def check(self) -> None:
        """Assert that `tollgate verify` finds nothing wrong with the meter."""
        assert await disagreements(self.gateway.database, self.meter_id) == []

    async def _take(self, words: list[str]) -> list[str]:
        match words:
            case ["meter", total, *options]:
                values: dict[str, Any] = {"totalCredits": total, "allowOverages": "overages" in options}
                values |= {"spendCap": options[-1]} if "cap" in options else {}
                self.meter_id = await make_meter(self.gateway, **self.names | values)
                return []
            case ["wait", seconds]:
                self.gateway.clock.forward(seconds=float(seconds))  # Steps wait parts of a second, too, as `59.999999`.
                return []
        newest = self._newest or (await self._entries())[0]["id"]
        answer = await self.send(" ".join(words))
        typename = answer["__typename"]
        written = await self._lines(newest)
        if not typename.endswith("Success"):
            return [*written, _refusal(answer)]
        if answer.get("replayed"):
            return [*written, "replayed"]
        return [*written, *(["over the limit"] if answer.get("overLimit") else [])]

    async def send(self, step: str) -> dict[str, Any]:
        """Send the mutation of a step alone, and return what is answered."""
        what, *rest = step.split()
        field, names = _MUTATIONS[what]
        values = dict(zip(names, rest, strict=False)) | self._options(field, rest[len(names) :])
        if "id" in names:
            values["id"] = self.ids[values["id"]]
        else:
            values |= self.names
        if what == "void":
            self.voids += 1
            values |= {"reason": "wrong", "idempotencyKey": f"v{self.voids}"}
        facts = [f"... on {type_} {{ {facts} }}" for type_, (facts, fields) in _FACTS.items() if field in fields]
        answer = await self.caller.mutate(field, " ".join([_ANSWERS.get(field, ""), *facts]), **values)
        if answer["__typename"] == "GrantCreditsSuccess":
            name, id_ = values["idempotencyKey"], answer["creditGrant"]["id"]
            self.ids[name], self.grants[id_] = id_, name
        return answer

    def _options(self, field: str, words: list[str]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for word in words:
            if match := re.fullmatch(r"p(\d+)", word):
                values["priority"] = int(match[1])
            elif (match := re.fullmatch(r"(\d+)s", word)) and "grant" in field.lower():
                values["expiresAt"] = (self.gateway.clock.now + timedelta(seconds=int(match[1]))).isoformat()
            elif match:
                values["expiresInSeconds"] = int(match[1])
            else:
                values |= _OPTIONS.get(word) or {"policy": word}
        return values

    async def _entries(self) -> list[dict[str, Any]]:
        """Return more of the ledger than a step writes, newest first."""
        return (await self._read(_LEDGER))["ledger"]["nodes"]  # type: ignore[no-any-return]

    async def _read(self, query: str) -> dict[str, Any]:
        variables = {"w": self.names["workspaceId"], "m": self.names["externalMeterId"]}
        return (await self.gateway.data(query, variables))["billingMeter"]  # type: ignore[no-any-return]

    async def _lines(self, newest: str) -> list[str]:
        """Return the entries that have been written after this one, oldest first."""
        entries = await self._entries()
        self._newest = entries[0]["id"]
        written = [entry["id"] for entry in entries].index(newest)
        return [self._line(entry) for entry in entries[:written][::-1]]

    def _line(self, entry: dict[str, Any]) -> str:
        asked, amount = entry["requestedAmount"], entry["amount"]
        words = [entry["kind"], amount, *(["of", asked] if asked not in (None, amount) else [])]
        words += [self._name(entry["creditGrant"])] if entry["creditGrant"] else []
        words += [entry["hold"]["holdId"]] if entry["hold"] else []
        draws = ", ".join(f"{self._name(draw['creditGrant'])} {draw['amount']}" for draw in entry["draws"])
        return " ".join(words) + (f": {draws}" if draws else "")

    def _name(self, grant: dict[str, Any] | None) -> str:
        return "base" if grant is None else self.grants.get(grant["id"], "new")

    async def meter(self) -> str:
        """Return what is the meter's: its sums, of which overage and those of holds are left out where they are 0."""
        meter = await self._read(_STATE)
        available = meter["availableCredits"]
        sums = [f"{name} {meter[f'{name}Credits']}" for name in ("total", "used")]
        sums += [
            f"{name} {meter[f'{name}Credits']}"
            for name in ("held", "pinned", "overage")
            if meter[f"{name}Credits"] != "0"
        ]
        return ", ".join([*sums, f"available {available}"])

    async def burn_down(self) -> str:
        """Return what is open, in the order of use."""
        steps = (await self._read(_STATE))["burnDown"]
        return ", ".join(f"{self._name(step['creditGrant'])} {step['openCredits']}" for step in steps)

    async def states(self) -> str:
        """Return each grant with its state and those of its sums that are not 0, and each hold with its state."""
        meter = await self._read(_STATE)
        lines = []
        # A page backward is in the list's own order, newest first.
        for grant in meter["creditGrants"]["nodes"][::-1]:
            sums = [
                f"{name} {grant[f'{name}Credits']}"
                for name in ("open", "pinned", "drawn", "expired", "revoked")
                if grant[f"{name}Credits"] != "0"
            ]
            lines.append(" ".join([self._name(grant), grant["state"], *sums]))
        for hold in meter["holds"]["nodes"][::-1]:
            committed = [hold["committedAmount"]] if hold["committedAmount"] is not None else []
            lines.append(" ".join([hold["holdId"], hold["state"], *committed]))
        return "; ".join(lines)


def _refusal(answer: dict[str, Any]) -> str:
    words = [answer["__typename"]]
    if answer["__typename"] in ("InsufficientCredits", "SpendCapExceeded"):
        words += [f"available {answer['available']}, held {answer['held']} by {answer['openHolds']}"]
    words += [str(answer[fact]) for fact in ("max", "voidable") if fact in answer]
    words += answer["field"][1:] if "field" in answer else []
    for about in ("hold", "creditGrant"):
        words += [answer[about]["state"]] if about in answer else []
    return " ".join(words)
