"""Documents: parsed and validated once, then run as often as they are asked for."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from hashlib import sha256
from inspect import isawaitable
from typing import Any, ParamSpec, TypeAlias, TypeVar

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
from resolvers.errors import Forbidden, LimitExceeded
from resolvers.observation import current
from schema.engine import faults
from schema.engine.cost import Cost, Size
from schema.engine.executor import ROOT, Executor, Mutation, Plan, Plans
from schema.engine.limits import DEFAULT, NOT_INTROSPECTED, Limits, check_document, exceeded
from schema.engine.malformed import MalformedLiterals
from schema.engine.resolving import Outcome
from schema.engine.room import SMALL_WEIGHT, Room
from schema.engine.variables import Variables
from schema.root import schema

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

#: An answer of more values than this is compiled before it is first asked for.
LARGE_VALUES = 2_000

#: The maximum number of errors of one document, and of the characters of their messages, which may repeat literals.
MAX_ERRORS = 20
MAX_ERRORS_LENGTH = 5_000

#: How the parser's error begins when a document has too many tokens or comments.
_TOO_LONG = "Document contains more than"

P = ParamSpec("P")
R = TypeVar("R")

_SCHEMA = schema._schema  # noqa: SLF001  # Strawberry has no other name for the schema of graphql-core.


class Runnable:
    """One operation of a valid document, with what all its runs have in common."""

    def __init__(
        self,
        document: DocumentNode,
        node: OperationDefinitionNode,
        limits: Limits,
        *,
        is_trusted: bool,
        is_long: bool,
        on_new_plan: Callable[[], None],
    ) -> None:
        self._node = node
        self._limits = limits
        self._is_long = is_long
        self._fragments = {
            definition.name.value: definition
            for definition in document.definitions
            if isinstance(definition, FragmentDefinitionNode)
        }
        self._variables = Variables(_SCHEMA, node)
        self._plans = Plans(document, at_once=is_trusted, on_new=on_new_plan)
        self._cost = Cost(_SCHEMA, self._fragments, node, limits.bounds)
        if self._plans.are_known:
            self._plans.keep({}, self._compiled(VariableValues({}, {})))

    @property
    def plan_count(self) -> int:
        """How many plans it keeps."""
        return len(self._plans)

    @property
    def name(self) -> str | None:
        """The operation's name, if it has one."""
        return self._node.name.value if self._node.name is not None else None

    @property
    def kind(self) -> OperationType:
        """Whether it is a query or a mutation."""
        return self._node.operation

    async def run(
        self, context: Context, variables: dict[str, Any], room: Room
    ) -> ExecutionResult | list[GraphQLError]:
        """Run it and return what it came to, or what is wrong with the variables, or which limit they pass.

        What is large is run when there is room for it, which it keeps.

        The steps are those of graphql-core's `execute`. The result's extensions tell the cost.
        """
        if self._cost.introspects and not self._limits.may_introspect(context.actor):
            return [GraphQLError(NOT_INTROSPECTED, extensions={"code": Forbidden.code})]
        values = self._variables.read(variables)
        if isinstance(values, list):
            return values
        size, limits = self._cost.of(values.coerced, context.clock), self._limits
        current.get().cost = size.rows
        too_much = _passed(size, limits)
        if too_much is not None:
            return [too_much]
        told = {
            "cost": {
                "rows": size.rows,
                "most": limits.cost,
                "values": size.values,
                "mostValues": limits.answer_values,
                "bytes": size.bytes,
                "mostBytes": limits.answer_bytes,
            }
        }
        if size.weight > SMALL_WEIGHT:
            await room.take(size.weight)
        grows = partial(_Growth, size, limits, room, partial(self._cost.of_usage_day, values.coerced))
        context.admit_days = grows().admit_days if self._cost.has_usage else None
        plan = await self._plan(values, size)
        whole = plan.whole if plan is not None else None
        # What a mutation comes to: graphql-core must not execute it again.
        outcome = Outcome() if isinstance(whole, Mutation) else None
        root: Any = outcome or ROOT
        if whole is not None:
            context.has_one_reader = whole.is_chain
            try:
                return ExecutionResult(await whole.answer(root, context, values), None, told)
            except Exception as error:  # noqa: BLE001  # graphql-core meets it again, a mutation's by its outcome, and tells it.
                context.begin_again(error.with_traceback(None))
                context.admit_days = grows().admit_days
        result = self._executor(context, values, plan, outcome, has_edges=whole is None).execute_operation()
        if isawaitable(result):
            result = await result
        assert isinstance(result, ExecutionResult)  # noqa: S101  # The schema has neither @defer nor @stream.
        result.extensions = told
        return result

    async def _plan(self, values: VariableValues, size: Size) -> Plan | None:
        """Return the plan for these values, made now where it is wanted or the answer is large."""
        plans, coerced = self._plans, values.coerced
        plan = plans.known(coerced)
        if plan is not None:
            return plan
        is_wanted = plans.is_wanted(coerced)
        if not (is_wanted or size.values > LARGE_VALUES) or not plans.is_plannable:
            return None
        plan = await in_thread(self._compiled, values) if self._is_long else self._compiled(values)
        if is_wanted or not plans:
            plans.keep(coerced, plan)
        return plan

    def _compiled(self, values: VariableValues) -> Plan:
        plan = Plan()
        self._executor(None, values, plan, has_edges=True).compile()
        return plan

    def _executor(
        self,
        context: Context | None,
        values: VariableValues,
        plan: Plan | None,
        outcome: Outcome | None = None,
        *,
        has_edges: bool,
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
            plan=plan,
            has_edges=has_edges,
        )


def _passed(size: Size, limits: Limits) -> GraphQLError | None:
    """Return which limit an operation of this size passes, if any."""
    if size.rows > limits.cost:
        return exceeded(
            f"The operation may read {size.rows} rows, and at most {limits.cost} may be read at once: "
            "ask for smaller pages or fewer days."
        )
    for what, count, most in (
        ("values", size.values, limits.answer_values),
        ("bytes", size.bytes, limits.answer_bytes),
    ):
        if count > most:
            return exceeded(
                f"The answer may have {count} {what}, and at most {most} may be returned at once: "
                "ask for fewer fields, smaller pages, fewer days, or the usage names that are needed."
            )
    return None


class _Growth:
    """What an answer comes to beyond what was foreseen: the usage days of names that were not asked for."""

    def __init__(self, size: Size, limits: Limits, room: Room, of_day: Callable[..., Size]) -> None:
        self._size = size
        self._limits = limits
        self._room = room
        self._of_day = of_day
        self._lock = asyncio.Lock()

    async def admit_days(self, count: int, name_length: int) -> None:
        """See `Context.admit_days`."""
        day, size = self._of_day(name_length=name_length), self._size
        grown = Size(size.rows, size.values + count * day.values, size.bytes + count * day.bytes)
        too_much = _passed(grown, self._limits)
        if too_much is not None:
            raise LimitExceeded(too_much.message)
        self._size = grown
        if grown.weight > SMALL_WEIGHT:
            # Waiting with what it has could have two of them wait for each other.
            async with self._lock:
                self._room.leave()
                await self._room.take(self._size.weight)


class Document:
    """A document that is valid in the schema.

    A trusted one is sure to be asked for again, so its answers are compiled when it is made, or, where variables decide
    what is selected, when it is first run with their values.
    """

    def __init__(self, node: DocumentNode, limits: Limits, *, text: str, is_trusted: bool = False) -> None:
        self.digest = digest_of(text)
        """What it is called in logs: see `digest_of`."""
        self._length = len(text)
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
                self._operations[own] = Runnable(
                    self._node,
                    node,
                    self._limits,
                    is_trusted=self._is_trusted,
                    is_long=self._length > MAX_IN_LOOP,
                    on_new_plan=_kept.trim,
                )
                _kept.trim()
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


async def document_of(text: str, limits: Limits = DEFAULT) -> Prepared:
    """Return the document, or what is wrong with it. One that was asked for lately is not parsed again."""
    found = _kept.get(text, limits)
    if found is None:
        found = prepare(text, limits) if len(text) <= MAX_IN_LOOP else await in_thread(prepare, text, limits)
        if len(text) <= LONGEST_KEPT:
            _kept.put(text, limits, found)
    return found


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


_kept = KeptDocuments()

#: Long documents are prepared one after another, while the event loop goes on.
_PREPARING = ThreadPoolExecutor(max_workers=1, thread_name_prefix="documents")


async def in_thread(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Return what the function returns, after it has run in the thread that long documents are prepared in."""
    run = partial(copy_context().run, work, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_PREPARING, run)


def prepare(text: str, limits: Limits = DEFAULT, *, is_trusted: bool = False) -> Prepared:
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
    return Document(node, limits, text=text, is_trusted=is_trusted)
