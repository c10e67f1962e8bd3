"""What a scenario is: one kind of request, sent to each contestant in its own form."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

#: Who takes part: Tollgate; its usage writer without GraphQL; the comparators (see README.md).
TOLLGATE, WRITER, LIMIT, PLAIN = "tollgate", "writer", "limit", "plain"

#: Tollgate of another checkout, such as one of the commit before: it is asked as Tollgate is.
BEFORE = "before"

#: Whose the data set is, and where its meters are.
ORG = WORKSPACE = "benchmark"

#: The last day of usage; queries ask for the thirty days that end there.
TODAY = datetime.now(UTC).date()

METERS_A_CUSTOMER = 2

#: For so many meters there is one that has credit grants besides.
METERS_A_GRANTED = 20

#: A meter's names, as they stand in a body; `%(meter)d` is filled in by the load generator.
NAMES = f'"workspaceId":"{WORKSPACE}","externalMeterId":"meter-%(meter)d"'
GRANTED_NAMES = NAMES.replace("meter-", "granted-")

_AMOUNT = '"amount":"1","usageName":"tokens"'
EVENT = f'{{{NAMES},"eventId":"%(event)s",{_AMOUNT}}}'
GRANTED_EVENT = f'{{{GRANTED_NAMES},"eventId":"%(event)s",{_AMOUNT}}}'

#: Thirty days of usage, as they stand in a body.
DAYS = f'"from":"{TODAY - timedelta(days=29)}","to":"{TODAY}"'

#: What Q2 and Q3 ask of a customer.
CUSTOMER_FIELDS = """
id email name externalId createdAt
billingMeters(first: 25) {
  nodes {
    id workspaceId externalMeterId totalCredits usedCredits availableCredits
    usage(from: $from, to: $to) { day totalBillingUsage billingUsageName }
  }
}
"""


@dataclass(frozen=True)
class Form:
    """How one contestant is asked, and what only a success says."""

    path: str
    expect: str
    head: str = ""
    tail: str = ""

    @classmethod
    def graphql(cls, query: str, expect: str, *, head: str = "", tail: str = "") -> "Form":
        """Return the form of an operation; `head` and `tail` stand around the items in its variables."""
        return cls("/graphql", expect, f'{{"query":"{" ".join(query.split())}","variables":{head}', f"{tail}}}")


@dataclass(frozen=True)
class Request:
    """One kind of request, in the form of each contestant that takes part."""

    forms: dict[str, Form]
    item: str = EVENT


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One line of the table."""

    name: str
    forms: dict[str, Form]
    clients: int
    item: str = EVENT
    items: int = 1
    # How many of the meters are asked for, at random; None: all. One in so many of them.
    meters: int | None = None
    one_in: int = 1
    # What a client sends after each answer, about the same meters and events: the two are measured as one.
    then: Request | None = None
    # A query, whose answers the contestants must give alike; what a write answers depends on those before it.
    is_query: bool = False

    @property
    def requests(self) -> list[Request]:
        """What a client sends, one after the other."""
        first = Request(self.forms, self.item)
        return [first] if self.then is None else [first, self.then]


def asked_as(contestant: str) -> str:
    """Return the contestant in whose form this one is asked."""
    return TOLLGATE if contestant == BEFORE else contestant
