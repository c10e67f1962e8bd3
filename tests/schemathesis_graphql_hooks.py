"""What schemathesis, in a process of its own, is given for GraphQL: how scalars are written, and a meter's names.

Most literals are good ones; the others must be refused cleanly.
"""

import os
from datetime import UTC, datetime
from typing import Any

import schemathesis
from graphql import ArgumentNode, ObjectFieldNode, StringValueNode, Visitor, visit
from hypothesis import strategies as st
from schemathesis.graphql import nodes, scalar

METER_ID, WORKSPACE_ID, EXTERNAL_METER_ID = os.environ["TOLLGATE_TEST_METER"].split()
NAMES = {"billingId": METER_ID, "workspaceId": WORKSPACE_ID, "externalMeterId": EXTERNAL_METER_ID}
KEYS = {"idempotencyKey", "eventId", "holdId", "reason"}

amounts = st.integers(1, 100) | st.integers(-1, 2**63) | st.sampled_from([0, 1, 2**63 - 1])
days = st.dates().map(str) | st.sampled_from(["2026-02-30", "2026-W10-1", ""])
# Most are out of the window in which an event may lie, so now is one of them.
moments = (st.datetimes() | st.just(datetime.now(UTC).replace(tzinfo=None))).map(lambda at: f"{at.isoformat()}Z")

scalar("BigInt", amounts.map(nodes.Int) | amounts.map(str).map(nodes.String))
scalar("Date", days.map(nodes.String))
scalar("DateTime", (moments | days).map(nodes.String))
scalar("JSON", st.text().map(nodes.String) | st.booleans().map(nodes.Boolean) | st.just(nodes.Object(fields=[])))


#: The codes of the errors that a caller is at fault for.
FAULTS = {"BAD_USER_INPUT", "GRAPHQL_PARSE_FAILED", "GRAPHQL_VALIDATION_FAILED", "LIMIT_EXCEEDED"}


class _Named(Visitor):
    """Lets a request name the meter that there is, and mostly give keys and reasons in plain text."""

    def enter(self, node: object, *_: object) -> object:
        if isinstance(node, ArgumentNode | ObjectFieldNode) and isinstance(node.value, StringValueNode):
            name = NAMES.get(node.name.value)
            if node.name.value in KEYS:
                name = "".join(filter(str.isalnum, node.value.value)) or None
            if name is not None and node.value.value:
                return type(node)(name=node.name, value=StringValueNode(value=name))
        return None


@schemathesis.hook
def map_body(_context: Any, body: Any) -> Any:
    """Let what names a meter at all name the one that there is."""
    return visit(body, _Named())


@schemathesis.check
def is_reported_as_the_callers_fault(_context: Any, response: Any, _case: Any) -> None:
    """Hold each error against what a caller can be at fault for."""
    assert response.status_code == 200, response.status_code
    codes = {error["extensions"]["code"] for error in response.json().get("errors", ())}
    assert codes <= FAULTS, codes
