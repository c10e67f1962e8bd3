"""Q1: one meter by its names, with its scalar fields."""

from benchmarks.scenario import LIMIT, NAMES, PLAIN, TOLLGATE, Form, Scenario

QUERY = """
query Meter($workspaceId: String!, $externalMeterId: String!) {
  billingMeter(workspaceId: $workspaceId, externalMeterId: $externalMeterId) {
    id workspaceId externalMeterId timezone totalCredits usedCredits allowOverages spendCap availableCredits
    createdAt updatedAt
  }
}
"""

_EXPECT = '"usedCredits":"'
_GRAPHQL = Form.graphql(QUERY, _EXPECT)

SCENARIOS = [
    Scenario(
        name="Q1, 16 clients",
        forms={TOLLGATE: _GRAPHQL, LIMIT: Form("/meter", _EXPECT), PLAIN: _GRAPHQL},
        clients=16,
        item=f"{{{NAMES}}}",
        is_query=True,
    ),
]
