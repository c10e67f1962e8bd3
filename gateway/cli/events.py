"""`tollgate events`: what receivers of events are built from."""

import sys

import orjson


def schema() -> None:
    """Write the JSON Schema of the bodies of events, as webhooks are sent and `Event.payload` has them."""
    from resolvers.rules.event_schema import event_schema  # It is for this command alone.

    sys.stdout.write(orjson.dumps(event_schema(), option=orjson.OPT_INDENT_2).decode() + "\n")
