"""M2: one usage event a request, each with an id of its own; on random meters, and all on one hot meter."""

from benchmarks.scenario import LIMIT, PLAIN, TOLLGATE, WRITER, Form, Scenario

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
_FORMS = {TOLLGATE: _GRAPHQL, WRITER: _PLAIN_JSON, LIMIT: _PLAIN_JSON, PLAIN: _GRAPHQL}

SCENARIOS = [
    Scenario(name="M2, 16 clients", forms=_FORMS, clients=16),
    Scenario(name="M2, 64 clients", forms=_FORMS, clients=64),
    Scenario(name="M2, 64 clients, one hot meter", forms=_FORMS, clients=64, meters=1),
]
