"""What is reported of a request while it is answered: to logs, metrics and traces, whichever of them listen.

What learns something of the request writes it down here. Nothing is computed for it, and nothing is read by a rule.
"""

from contextvars import ContextVar
from time import perf_counter_ns


class Observation:
    """What became of one request.

    What nobody has learned of it stays as it stands here. None of it is a secret, or a value that the caller sent.
    """

    request_id = ""
    key_id: str | None = None
    is_session = False
    """Whether the key is the token of a customer's session."""
    operation: str | None = None
    """The name of the GraphQL operation, if it has one."""
    kind: str | None = None
    """`query` or `mutation`."""
    document: str | None = None
    """The beginning of the SHA-256 of the document's text, in hexadecimal digits."""
    outcome: str | None = None
    """The code of what went wrong, as the caller gets it."""
    cost: int | None = None
    """The rows that a GraphQL operation may read."""
    statements = 0
    """The SQL statements that were run for it, those of transactions aside."""
    steps: list[tuple[str, int, int]] | None = None
    """The steps that it took, each with its begin and its end on the clock `perf_counter_ns`; None: nobody asks."""
    step_began = 0
    sql_ns = 0
    """How long its statements took together; measured only where the steps are."""

    def ended(self, step: str) -> None:
        """Note that a step has ended, which began when the one before it did."""
        if self.steps is not None:
            now = perf_counter_ns()
            self.steps.append((step, self.step_began, now))
            self.step_began = now


#: The request that is being answered. What runs on behalf of none is noted in one that nobody looks at.
current: ContextVar[Observation] = ContextVar("observation", default=Observation())  # noqa: B039  # It is meant to be shared.
