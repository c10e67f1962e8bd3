"""Who asks, and what they may do."""

from dataclasses import dataclass

from resolvers.errors import Forbidden
from storage.engine.types import Word
from storage.tenants import Environment


class Scope(Word):
    """What a key allows."""

    BILLING_READ = "billing:read"
    BILLING_WRITE = "billing:write"
    USAGE_WRITE = "usage:write"
    USAGE_CORRECT = "usage:correct"
    WEBHOOKS_WRITE = "webhooks:write"


#: Whom the ledger names as the author where an operator wrote at the command line, without a key.
DEMO = "tollgate-demo"
IMPORT = "tollgate-import"
OPERATORS = frozenset({DEMO, IMPORT})


@dataclass(frozen=True, slots=True)
class Actor:
    """The holder of a key or of a customer's session, or an operator at the command line.

    `key_id` is what the ledger records as the author. `workspace_ids` None: all of them. `customer_id` None: it asks
    for the organization; else it is that customer's session, which sees the customer and what is billed to it.
    """

    key_id: str
    org_id: str
    environment: Environment
    scopes: frozenset[Scope]
    workspace_ids: tuple[str, ...] | None = None
    customer_id: str | None = None

    def require(self, scope: Scope) -> None:
        """Raise `Forbidden` unless the actor has the scope."""
        if scope not in self.scopes:
            raise Forbidden(f"The key lacks the scope {scope}.")

    def may_read_entry_of(self, key_id: str) -> bool:
        """Whether the actor may read an entry, in an answer, that the key of this id has recorded.

        It may read those that it has recorded itself; any other needs `billing:read`.
        """
        return key_id == self.key_id or Scope.BILLING_READ in self.scopes

    def require_workspace(self, workspace_id: str) -> None:
        """Raise `Forbidden` unless the actor may work in the workspace."""
        if not self.may_enter(workspace_id):
            raise Forbidden(f"The key is limited to other workspaces than {workspace_id!r}.")

    def may_enter(self, workspace_id: str) -> bool:
        """Whether the actor may work in the workspace."""
        return self.workspace_ids is None or workspace_id in self.workspace_ids

    def require_organization(self) -> None:
        """Raise `Forbidden` for a customer's session, which may not look for customers."""
        if self.customer_id is not None:
            raise Forbidden("A customer's session may not do this.")

    def may_see_customer(self, customer_id: str | None) -> bool:
        """Whether the actor may see the customer, and meters that are billed to it."""
        return self.customer_id is None or self.customer_id == customer_id
