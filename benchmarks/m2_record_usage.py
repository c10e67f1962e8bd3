"""M2: one usage event a request, each with an id of its own.

On random meters, all on one hot meter, and on meters with ten credit grants each, beside as many without.
"""

from benchmarks.scenario import GRANTED_EVENT, LIMIT, METERS_A_GRANTED, PLAIN, TOLLGATE, WRITER, Form, Scenario

MUTATION = """
mutation Record($input: RecordUsageInput!) {
  recordUsage(input: $input) {
    __typename
    ... on RecordUsageSuccess {
      accepted replayed entry { id } billingMeter { id totalCredits usedCredits availableCredits }
    }
    ... on UserError { code message }
  }
}
"""

_GRAPHQL = Form.graphql(MUTATION, '"RecordUsageSuccess"', head='{"input":', tail="}")
_PLAIN_JSON = Form("/record", '"accepted":"1"')
_WITHOUT_PLAIN = {TOLLGATE: _GRAPHQL, WRITER: _PLAIN_JSON, LIMIT: _PLAIN_JSON}
_FORMS = _WITHOUT_PLAIN | {PLAIN: _GRAPHQL}

#: The same on meters with and without grants, of which there are as many, so that the ratio is what the grants cost.
WITH_GRANTS, WITHOUT_GRANTS = "M2, 64 clients, meters with 10 grants", "M2, 64 clients, as many meters without grants"

SCENARIOS = [
    Scenario(name="M2, 16 clients", forms=_FORMS, clients=16),
    Scenario(name="M2, 64 clients", forms=_FORMS, clients=64),
    Scenario(name="M2, 64 clients, one hot meter", forms=_FORMS, clients=64, meters=1),
    Scenario(name=WITHOUT_GRANTS, forms=_WITHOUT_PLAIN, clients=64, one_in=METERS_A_GRANTED),
    Scenario(
        name=WITH_GRANTS,
        forms=_WITHOUT_PLAIN,
        clients=64,
        item=GRANTED_EVENT,
        one_in=METERS_A_GRANTED,
    ),
]
