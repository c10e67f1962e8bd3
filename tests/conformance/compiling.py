"""A plugin of pytest: graphql-core's own tests, with our executor in the place of its own.

Every operation is compiled at its first execution, so that the tests, which execute each one once, meet what is
compiled.
"""

import importlib
from typing import Any

from graphql import DocumentNode, GraphQLSchema

from schema.engine.execution.executor import CompilingExecutor
from schema.engine.execution.plans import Plan, Plans


class CompilingAtOnce(CompilingExecutor):
    """The executor that `graphql.execute` uses while the tests run."""

    @classmethod
    def build(cls, schema: GraphQLSchema, document: DocumentNode, *arguments: Any, **options: Any) -> Any:
        """Build an executor that compiles what is plain, where variables alone decide what is selected."""
        plan = Plan() if Plans(document).is_plannable else None
        return super().build(schema, document, *arguments, plan=plan, **options)


# The package exports a function of the module's name.
module: Any = importlib.import_module("graphql.execution.execute")
module.IncrementalExecutor = CompilingAtOnce
