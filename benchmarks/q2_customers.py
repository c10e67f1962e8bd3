"""Q2: the first 50 customers, their meters, and thirty days of usage of each: some 14,000 values."""

from benchmarks.scenario import CUSTOMER_FIELDS, DAYS, LIMIT, PLAIN, TOLLGATE, Form, Scenario

QUERY = f"""
query Customers($first: Int!, $from: Date!, $to: Date!) {{
  customers(first: $first) {{ nodes {{ {CUSTOMER_FIELDS} }} }}
}}
"""

_EXPECT = '"customers":{"nodes":[{'
_GRAPHQL = Form.graphql(QUERY, _EXPECT)

SCENARIOS = [
    Scenario(
        name="Q2, 4 clients",
        forms={TOLLGATE: _GRAPHQL, LIMIT: Form("/customers", _EXPECT), PLAIN: _GRAPHQL},
        clients=4,
        item=f'{{"first":50,{DAYS}}}',
        is_query=True,
    ),
]
