"""Q3: one customer by the caller's name of it, its meters, and thirty days of usage of each."""

from benchmarks.scenario import CUSTOMER_FIELDS, DAYS, LIMIT, PLAIN, TOLLGATE, Form, Scenario

QUERY = f"""
query Customer($externalId: String!, $from: Date!, $to: Date!) {{
  customerByExternalId(externalId: $externalId) {{ {CUSTOMER_FIELDS} }}
}}
"""

_EXPECT = '"customerByExternalId":{"id":"'
_GRAPHQL = Form.graphql(QUERY, _EXPECT)

SCENARIOS = [
    Scenario(
        name="Q3, 16 clients",
        forms={TOLLGATE: _GRAPHQL, LIMIT: Form("/customer", _EXPECT), PLAIN: _GRAPHQL},
        clients=16,
        item=f'{{"externalId":"customer-%(customer)d",{DAYS}}}',
        is_query=True,
    ),
]
