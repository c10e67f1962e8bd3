"""M3: a batch of 1,000 usage events a request, on a hundred meters."""

from benchmarks.scenario import TOLLGATE, WRITER, Form, Scenario

MUTATION = """
mutation Batch($input: [RecordUsageInput!]!) {
  recordUsageBatch(input: $input) {
    __typename
    ... on RecordUsageSuccess { accepted refused replayed entry { id } }
    ... on UserError { code message }
  }
}
"""

SCENARIOS = [
    Scenario(
        name="M3, 2 clients",
        forms={
            TOLLGATE: Form.graphql(MUTATION, '"RecordUsageSuccess"', head='{"input":[', tail="]}"),
            WRITER: Form("/batch", '"accepted":"1"', "[", "]"),
        },
        clients=2,
        items=1_000,
        meters=100,
    ),
]
