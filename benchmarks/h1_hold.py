"""H1: credits are held, and less is committed than was held: two requests, which are measured as one."""

from benchmarks.scenario import LIMIT, NAMES, TOLLGATE, WRITER, Form, Request, Scenario

HOLD = """
mutation Hold($input: HoldCreditsInput!) {
  holdCredits(input: $input) {
    __typename
    ... on HoldCreditsSuccess { replayed hold { id amount } billingMeter { id heldCredits availableCredits } }
    ... on UserError { code message }
  }
}
"""

COMMIT = """
mutation Commit($input: CommitHoldInput!) {
  commitHold(input: $input) {
    __typename
    ... on CommitHoldSuccess {
      accepted replayed entry { id } billingMeter { id usedCredits heldCredits availableCredits }
    }
    ... on UserError { code message }
  }
}
"""

_HELD, _COMMITTED = Form("/hold", '"hold":{"amount":"2"}'), Form("/commit", '"accepted":"1"')

SCENARIOS = [
    Scenario(
        name="H1, 16 clients",
        forms={
            TOLLGATE: Form.graphql(HOLD, '"HoldCreditsSuccess"', head='{"input":', tail="}"),
            WRITER: _HELD,
            LIMIT: _HELD,
        },
        clients=16,
        item=f'{{{NAMES},"holdId":"%(event)s","amount":"2"}}',
        then=Request(
            forms={
                TOLLGATE: Form.graphql(COMMIT, '"CommitHoldSuccess"', head='{"input":', tail="}"),
                WRITER: _COMMITTED,
                LIMIT: _COMMITTED,
            },
            item=f'{{{NAMES},"holdId":"%(event)s","amount":"1","usageName":"tokens"}}',
        ),
    ),
]
