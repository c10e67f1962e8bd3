"""Documents: parsed and validated once, then run as often as they are asked for."""

from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from typing import Any, TypeAlias

from graphql import (
    DocumentNode,
    GraphQLError,
    GraphQLSchema,
    GraphQLSyntaxError,
    OperationDefinitionNode,
    ValidationContext,
    ValidationRule,
    get_operation_ast,
    parse,
    specified_rules,
    validate,
)
from graphql.validation import ASTValidationRule
from graphql.validation.validate import ValidationAbortedError

from resolvers.observation import current
from schema.engine import faults
from schema.engine.limits.document import Limits, check_document, exceeded
from schema.engine.limits.sizes import Sizes
from schema.engine.malformed import MalformedLiterals
from schema.engine.operations import LimitedOperation, Operation

#: How many of the documents that requests bring along are kept, and how much memory they take, in bytes: as estimated
#: from the length of each, the operations of it that were run, and their plans.
MAX_KEPT_DOCUMENTS = 256
MAX_KEPT_BYTES = 64 * 1024 * 1024
_DOCUMENT_WEIGHT, _WEIGHT_OF_A_CHARACTER = 30_000, 170
_OPERATION_WEIGHT = 25_000
_PLAN_WEIGHT, _PLAN_WEIGHT_OF_A_CHARACTER = 15_000, 220
_ERRORS_WEIGHT = 30_000

#: The longest document that is kept, in characters: parsed, it takes a hundred times its text.
LONGEST_KEPT = 16 * 1024

#: The longest document, in characters, that is prepared and compiled in the event loop; longer ones are in a thread.
MAX_IN_LOOP = 1_000

#: The maximum number of errors of one document, and of the characters of their messages, which may repeat literals.
MAX_ERRORS = 20
MAX_ERRORS_LENGTH = 5_000

#: How the parser's error begins when a document has too many tokens or comments.
_TOO_LONG = "Document contains more than"


class Document:
    """A document that is valid in the schema.

    A trusted one is sure to be asked for again, so its answers are compiled when it is made, or, where variables decide
    what is selected, when it is first run with their values.
    """

    def __init__(
        self,
        node: DocumentNode,
        schema: GraphQLSchema,
        sizes: Sizes,
        limits: Limits,
        *,
        text: str,
        is_trusted: bool,
        on_growth: Callable[[], None],
    ) -> None:
        self.digest = digest_of(text)
        """What it is called in logs: see `digest_of`."""
        self._length = len(text)
        self._node = node
        self._schema = schema
        self._sizes = sizes
        self._limits = limits
        self._is_trusted = is_trusted
        self._on_growth = on_growth
        self._operations: dict[str | None, LimitedOperation] = {}
        if is_trusted:
            for name in (None, *self.operation_names()):
                self.operation(name)

    def operation(self, name: str | None) -> LimitedOperation | None:
        """Return the operation of this name, or the only one; None where that is not exactly one."""
        if name not in self._operations:
            node = get_operation_ast(self._node, name)
            if node is None:
                return None
            own = node.name.value if node.name is not None else None
            if own not in self._operations:
                operation = Operation(
                    self._schema,
                    self._node,
                    node,
                    plans_at_once=self._is_trusted,
                    on_new_plan=self._on_growth,
                )
                self._operations[own] = LimitedOperation(
                    operation, self._schema, self._sizes, self._limits, is_long=self._length > MAX_IN_LOOP
                )
                self._on_growth()
            # The only one is asked for with its name and without.
            self._operations[name] = self._operations[own]
        return self._operations[name]

    @property
    def weight(self) -> int:
        """The memory that it takes, in bytes, as estimated."""
        operations = {id(each): each for each in self._operations.values()}.values()
        plans = sum(operation.plan_count for operation in operations)
        return (
            _DOCUMENT_WEIGHT
            + _WEIGHT_OF_A_CHARACTER * self._length
            + _OPERATION_WEIGHT * len(operations)
            + (_PLAN_WEIGHT + _PLAN_WEIGHT_OF_A_CHARACTER * self._length) * plans
        )

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


#: A document, or the errors that say what is wrong with it.
Prepared: TypeAlias = Document | list[dict[str, Any]]


class KeptDocuments:
    """The documents that were asked for lately, and what is wrong with those that are not valid."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, Limits], Prepared] = OrderedDict()

    def get(self, text: str, limits: Limits) -> Prepared | None:
        """Return what is kept of this text."""
        key = text, limits
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, text: str, limits: Limits, prepared: Prepared) -> None:
        """Keep it, and give up what was not asked for longest."""
        self._kept[text, limits] = prepared
        self.trim()

    def trim(self) -> None:
        """Give up what was not asked for longest, until the rest is within its limits."""
        weight = self.weight
        while self._kept and (weight > MAX_KEPT_BYTES or len(self._kept) > MAX_KEPT_DOCUMENTS):
            (text, _), prepared = self._kept.popitem(last=False)
            weight -= _weight_of(text, prepared)

    @property
    def weight(self) -> int:
        """The memory that all of them take, in bytes, as estimated."""
        return sum(_weight_of(text, prepared) for (text, _), prepared in self._kept.items())


def _weight_of(text: str, prepared: Prepared) -> int:
    # A text has up to four bytes a character.
    return 4 * len(text) + (prepared.weight if isinstance(prepared, Document) else _ERRORS_WEIGHT)


def parsed(text: str, schema: GraphQLSchema, limits: Limits) -> DocumentNode | list[dict[str, Any]]:
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
    errors = validate(schema, node, _RULES, max_errors=MAX_ERRORS, hide_suggestions=True)
    current.get().ended("validate")
    return [faults.of_document(error, node) for error in errors] if errors else node
