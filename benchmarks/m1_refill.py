"""M1: one refill."""

from benchmarks.scenario import LIMIT, NAMES, PLAIN, TOLLGATE, Form, Scenario

MUTATION = """
mutation Refill($input: RefillBillingMeterInput!) {
  refillBillingMeter(input: $input) {
    __typename
    ... on RefillBillingMeterSuccess { billingMeter { id totalCredits } entry { id } }
    ... on UserError { code message }
  }
}
"""

_GRAPHQL = Form.graphql(MUTATION, '"RefillBillingMeterSuccess"', head='{"input":', tail="}")

SCENARIOS = [
    Scenario(
        name="M1, 16 clients",
        forms={TOLLGATE: _GRAPHQL, LIMIT: Form("/refill", '"totalCredits":"'), PLAIN: _GRAPHQL},
        clients=16,
        item=f'{{{NAMES},"refill":"5"}}',
    ),
]
