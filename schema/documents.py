"""Documents: parsed and validated once, then run as often as they are asked for."""

from functools import lru_cache
from hashlib import sha256
from inspect import isawaitable
from typing import Any

from graphql import (
    DocumentNode,
    ExecutionResult,
    FragmentDefinitionNode,
    GraphQLError,
    GraphQLSyntaxError,
    OperationDefinitionNode,
    OperationType,
    ValidationContext,
    ValidationRule,
    default_field_resolver,
    default_type_resolver,
    get_operation_ast,
    parse,
    specified_rules,
    validate,
)
from graphql.execution.collect_fields import FragmentDetails
from graphql.execution.values import VariableValues
from graphql.validation import ASTValidationRule
from graphql.validation.validate import ValidationAbortedError
from strawberry.execution import optimized_is_awaitable

from resolvers.context import Context
from resolvers.errors import Forbidden
from resolvers.observation import current
from schema import faults
from schema.executor import ROOT, Executor, Mutation, Plans
from schema.limits import DEFAULT, NOT_INTROSPECTED, Cost, Limits, check_document, exceeded
from schema.malformed import MalformedLiterals
from schema.resolving import Outcome
from schema.root import schema
from schema.variables import Variables

#: How many of the documents that requests bring along are kept.
KEPT_DOCUMENTS = 256

#: The longest document that is kept, in characters: parsed, it takes a hundred times its text.
LONGEST_KEPT = 16 * 1024

#: The maximum number of errors of one document, and of the characters of their messages, which may repeat literals.
MAX_ERRORS = 20
MAX_ERRORS_LENGTH = 5_000

#: How the parser's error begins when a document has too many tokens or comments.
_TOO_LONG = "Document contains more than"

_SCHEMA = schema._schema  # noqa: SLF001  # Strawberry has no other name for the schema of graphql-core.


class Runnable:
    """One operation of a valid document, with what all its runs have in common."""

    def __init__(
        self, document: DocumentNode, node: OperationDefinitionNode, limits: Limits, *, is_trusted: bool
    ) -> None:
        self._node = node
        self._limits = limits
        self._fragments = {
            definition.name.value: definition
            for definition in document.definitions
            if isinstance(definition, FragmentDefinitionNode)
        }
        self._variables = Variables(_SCHEMA, node)
        self._plans = Plans(document, at_once=is_trusted)
        self._cost = Cost(_SCHEMA, self._fragments, node, limits.bounds)
        if self._plans.are_known:
            self._executor(None, VariableValues({}, {}), has_edges=True).compile()

    @property
    def name(self) -> str | None:
        """The operation's name, if it has one."""
        return self._node.name.value if self._node.name is not None else None

    @property
    def kind(self) -> OperationType:
        """Whether it is a query or a mutation."""
        return self._node.operation

    async def run(self, context: Context, variables: dict[str, Any]) -> ExecutionResult | list[GraphQLError]:
        """Run it and return what it came to, or what is wrong with the variables, or which limit they pass.

        The steps are those of graphql-core's `execute`. The result's extensions tell the cost.
        """
        if self._cost.introspects and not self._limits.may_introspect(context.actor):
            return [GraphQLError(NOT_INTROSPECTED, extensions={"code": Forbidden.code})]
        values = self._variables.read(variables)
        if isinstance(values, list):
            return values
        cost, most = self._cost.of(values.coerced, context.clock), self._limits.cost
        current.get().cost = cost
        if cost > most:
            return [
                exceeded(
                    f"The operation may read {cost} rows, and at most {most} may be read at once: "
                    "ask for smaller pages or fewer days."
                )
            ]
        told = {"cost": {"rows": cost, "most": most}}
        whole = self._plans.whole(values.coerced)
        # What a mutation comes to: graphql-core must not execute it again.
        outcome = Outcome() if isinstance(whole, Mutation) else None
        root: Any = outcome or ROOT
        if whole is not None:
            context.has_one_reader = whole.is_chain
            try:
                return ExecutionResult(await whole.answer(root, context, values), None, told)
            except Exception as error:  # noqa: BLE001  # graphql-core meets it again, a mutation's by its outcome, and tells it.
                context.begin_again(error.with_traceback(None))
        result = self._executor(context, values, outcome, has_edges=whole is None).execute_operation()
        if isawaitable(result):
            result = await result
        assert isinstance(result, ExecutionResult)  # noqa: S101  # The schema has neither @defer nor @stream.
        result.extensions = told
        return result

    def _executor(
        self, context: Context | None, values: VariableValues, outcome: Outcome | None = None, *, has_edges: bool
    ) -> Executor:
        return Executor(
            _SCHEMA,
            self._fragments,
            {name: FragmentDetails(fragment) for name, fragment in self._fragments.items()},
            outcome,
            context,
            self._node,
            values,
            default_field_resolver,
            default_type_resolver,
            default_field_resolver,
            is_awaitable=optimized_is_awaitable,
            hide_suggestions=True,
            plans=self._plans,
            has_edges=has_edges,
        )


class Document:
    """A document that is valid in the schema.

    A trusted one is sure to be asked for again, so its answers are compiled when it is made, or, where variables decide
    what is selected, when it is first run with their values.
    """

    def __init__(self, node: DocumentNode, limits: Limits, *, digest: str, is_trusted: bool = False) -> None:
        self.digest = digest
        """What it is called in logs: see `digest_of`."""
        self._node = node
        self._limits = limits
        self._is_trusted = is_trusted
        self._operations: dict[str | None, Runnable] = {}
        if is_trusted:
            for name in (None, *self.operation_names()):
                self.operation(name)

    def operation(self, name: str | None) -> Runnable | None:
        """Return the operation of this name, or the only one; None where that is not exactly one."""
        if name not in self._operations:
            node = get_operation_ast(self._node, name)
            if node is None:
                return None
            own = node.name.value if node.name is not None else None
            if own not in self._operations:
                self._operations[own] = Runnable(self._node, node, self._limits, is_trusted=self._is_trusted)
            # The only one is asked for with its name and without.
            self._operations[name] = self._operations[own]
        return self._operations[name]

    def operation_names(self) -> list[str]:
        """Return the names of its operations."""
        return [
            definition.name.value
            for definition in self._node.definitions
            if isinstance(definition, OperationDefinitionNode) and definition.name is not None
        ]


def digest_of(text: str) -> str:
    """Return the first 16 hexadecimal digits of the text's SHA-256, by which clients know their documents, too."""
    return sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


class _Errors(ValidationRule):
    """Reports each error once, however often it is repeated, and ends the validation where there are too many.

    It is the first of the rules, and what it puts into the context is what the others report to.
    """

    def __init__(self, context: ValidationContext) -> None:
        super().__init__(context)
        self._report = context.on_error
        self._seen: set[str] = set()
        self._length = 0
        context.on_error = self._report_once  # type: ignore[method-assign]  # graphql-core sets it just so.

    def _report_once(self, error: GraphQLError) -> None:
        # A scalar's error is of one argument, which its message does not name.
        if error.message in self._seen and not faults.is_of_scalar(error):
            return
        self._seen.add(error.message)
        self._report(error)
        self._length += min(len(error.message), faults.MAX_MESSAGE_LENGTH)
        if self._length > MAX_ERRORS_LENGTH:
            raise ValidationAbortedError("There may be more errors. Validation aborted.")


_RULES: list[type[ASTValidationRule]] = [_Errors, *specified_rules, MalformedLiterals]


def document_of(text: str, limits: Limits = DEFAULT) -> Document | list[dict[str, Any]]:
    """Return the document, or what is wrong with it. One that was asked for lately is not parsed again."""
    return _kept(text, limits) if len(text) <= LONGEST_KEPT else prepare(text, limits)


def prepare(text: str, limits: Limits = DEFAULT, *, is_trusted: bool = False) -> Document | list[dict[str, Any]]:
    """Parse, measure and validate a document, and return it, or the errors that say what is wrong with it."""
    try:
        node = parse(text, max_lexical_tokens=limits.tokens, max_comments=limits.tokens)
    except GraphQLSyntaxError as error:
        is_too_long = _TOO_LONG in error.message
        return [faults.of_document(exceeded(error.message.removeprefix("Syntax Error: ")) if is_too_long else error)]
    finally:
        current.get().ended("parse")
    too_much = check_document(node, limits)
    if too_much is not None:
        return [faults.of_document(too_much)]
    errors = validate(_SCHEMA, node, _RULES, max_errors=MAX_ERRORS, hide_suggestions=True)
    current.get().ended("validate")
    if errors:
        return [faults.of_document(error, node) for error in errors]
    return Document(node, limits, digest=digest_of(text), is_trusted=is_trusted)


_kept = lru_cache(maxsize=KEPT_DOCUMENTS)(prepare)
