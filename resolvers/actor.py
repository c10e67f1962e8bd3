"""Who asks, and what they may do."""

from dataclasses import dataclass

from resolvers.errors import Forbidden
from storage.tables import Environment, Word


class Scope(Word):
    """What a key allows."""

    BILLING_READ = "billing:read"
    BILLING_WRITE = "billing:write"
    USAGE_WRITE = "usage:write"
    USAGE_CORRECT = "usage:correct"


@dataclass(frozen=True, slots=True)
class Actor:
    """The holder of a key, or an operator at the command line.

    `key_id` is what the ledger records as the author. `workspace_ids` None: all of them.
    """

    key_id: str
    org_id: str
    environment: Environment
    scopes: frozenset[Scope]
    workspace_ids: tuple[str, ...] | None = None

    def require(self, scope: Scope) -> None:
        """Raise `Forbidden` unless the actor has the scope."""
        if scope not in self.scopes:
            raise Forbidden(f"The key lacks the scope {scope}.")

    def require_workspace(self, workspace_id: str) -> None:
        """Raise `Forbidden` unless the actor may work in the workspace."""
        if not self.may_enter(workspace_id):
            raise Forbidden(f"The key is limited to other workspaces than {workspace_id!r}.")

    def may_enter(self, workspace_id: str) -> bool:
        """Whether the actor may work in the workspace."""
        return self.workspace_ids is None or workspace_id in self.workspace_ids
