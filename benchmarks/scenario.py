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

#: A meter's names, as they stand in a body; `%(meter)d` is filled in by the load generator.
NAMES = f'"workspaceId":"{WORKSPACE}","externalMeterId":"meter-%(meter)d"'

EVENT = f'{{{NAMES},"eventId":"%(event)s","amount":"1","usageName":"tokens"}}'

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


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One line of the table."""

    name: str
    forms: dict[str, Form]
    clients: int
    item: str = EVENT
    items: int = 1
    # How many of the meters are asked for, at random; None: all.
    meters: int | None = None
    # A query, whose answers the contestants must give alike; what a write answers depends on those before it.
    is_query: bool = False


def asked_as(contestant: str) -> str:
    """Return the contestant in whose form this one is asked."""
    return TOLLGATE if contestant == BEFORE else contestant
