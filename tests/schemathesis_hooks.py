"""What schemathesis, in a process of its own, is given: the meter that a test has made. Most good requests name it."""

import os
from typing import Any

import schemathesis

METER_ID, WORKSPACE_ID, EXTERNAL_METER_ID = os.environ["TOLLGATE_TEST_METER"].split()
NAMES = {"workspaceId": WORKSPACE_ID, "externalMeterId": EXTERNAL_METER_ID}


@schemathesis.hook
def map_case(_context: Any, case: Any) -> Any:
    """Let a good request name the meter that there is; bad ones, and new meters' names, stay as they were drawn."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return case
    operation = case.operation.definition.raw["operationId"]
    if operation == "retrieveUsage":
        case.path_parameters["bid"] = METER_ID
    elif operation == "retrieveCustomerBilling":
        case.query.update(NAMES)
    elif operation == "refillCustomerBilling" and isinstance(case.body, dict):
        case.body.update(NAMES)
    return case
