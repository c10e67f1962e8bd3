"""The executor answers what graphql-core answers, and ordinary queries do take the compiled way."""

import asyncio
import dataclasses
import gc
import itertools
import sys
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from enum import Enum
from inspect import isawaitable
from types import FrameType, SimpleNamespace
from typing import Annotated, Any, ClassVar, NamedTuple

import pytest
import strawberry
from graphql import (
    ExecutionResult,
    GraphQLField,
    GraphQLSchema,
    OperationDefinitionNode,
    OperationType,
    Undefined,
    build_schema,
    execute,
    get_named_type,
    get_variable_values,
    is_abstract_type,
    is_leaf_type,
    parse,
    validate,
)
from graphql.execution.values import VariableValues
from graphql.pyutils import print_path_list
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from strawberry.schema.config import StrawberryConfig

from resolvers.actor import Scope
from schema.engine.execution.batching import VALUES_A_STEP
from schema.engine.execution.executor import CompilingExecutor, Executor
from schema.engine.execution.plans import MAX_PLANS, Plan
from schema.engine.execution.resolving import DIRECT, Resolver, batched, resolve_directly
from schema.engine.operations import Operation
from schema.engine.variables import Variables
from schema.scalars import SCALARS, BigInt
from storage.engine.columns import Columns
from tests.conftest import Gateway
from tests.steps import make_customer, make_meter, meter_of, must


@strawberry.enum
class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@strawberry.interface
class Named:
    name: str


@strawberry.type
class Leaf:
    text: str | None
    number: int
    amount: BigInt | None
    ratio: float
    is_set: bool | None
    colour: Colour
    day: date | None
    at: datetime


@strawberry.type
class Fruit(Named):
    leaf: Leaf | None
    leaves: list[Leaf]


class DayRow(NamedTuple):
    """The columns of `Day`."""

    text: str | None
    amount: int
    day: date | None
    colour: Colour
    is_set: bool


@strawberry.type
class Day:
    text: str | None
    amount: BigInt
    day: date | None
    colour: Colour
    is_set: bool


async def _days(_context: object, branches: Sequence["Branch"]) -> list[list[Day]]:
    """Return the days of each branch, as records of the same attributes."""
    return _rows_of(branches)  # type: ignore[return-value]


def _rows_of(branches: Sequence["Branch"]) -> list[Sequence[Any]]:
    """Return the days of each branch: stretches of the same lists, lists of its own, or records."""
    if branches[0].days_are == "records":
        return [branch.rows for branch in branches]
    if branches[0].days_are == "apart":
        return [Columns(DayRow, columns_of(branch.rows)) for branch in branches]
    columns = columns_of([row for branch in branches for row in branch.rows])
    ends = itertools.accumulate(len(branch.rows) for branch in branches)
    return [
        Columns(DayRow, columns, slice(end - len(branch.rows), end)) for branch, end in zip(branches, ends, strict=True)
    ]


def columns_of(rows: Sequence[DayRow]) -> list[list[Any]]:
    return [[row[place] for row in rows] for place in range(len(DayRow._fields))]


async def _kin(_context: object, branches: Sequence["Branch"], times: int = 1) -> list["Branch | None"]:
    if times > 1:
        raise ValueError("too often")
    return [branch if times else None for branch in branches]


async def _fruits(
    _context: object,
    branches: Sequence["Branch"],
    least: Annotated[int | None, strawberry.argument(name="from")] = None,
) -> list[list[Fruit]]:
    return [[branch.fruit] * (least or 2) for branch in branches]  # type: ignore[list-item]  # Some are wrong.


@strawberry.type
class Branch(Named):
    colours: list[Colour | None] | None
    matrix: list[list[int]]
    fruit: Fruit | None
    things: list[Annotated[Fruit | Leaf, strawberry.union("Thing")] | None]
    named: Named | None
    rows: strawberry.Private[list[Any]] = dataclasses.field(default_factory=list)
    days_are: strawberry.Private[str] = "together"

    days: list[Day] = batched(_days)
    kin: "Branch | None" = batched(_kin)
    fruits: list[Fruit] = batched(_fruits)

    @strawberry.field
    async def resolved(self, info: strawberry.Info[Any, None], times: int = 1) -> "Branch | None":  # noqa: ARG002
        if times > 1:
            raise ValueError("too often")
        return self if times else None


@strawberry.type
class Query:
    @strawberry.field
    def branch(self, info: strawberry.Info[Any, None]) -> Branch:
        return info.context  # type: ignore[no-any-return]

    @strawberry.field(metadata=DIRECT)
    async def branches(self, info: strawberry.Info[Any, None]) -> list[Branch | None]:
        return [info.context, info.context]

    @strawberry.field(metadata=DIRECT)
    async def alone(self, info: strawberry.Info[Any, None], times: int = 1) -> Branch | None:
        if times > 1:
            raise ValueError("too often")
        return info.context if times else None


def direct(schema: strawberry.Schema) -> GraphQLSchema:
    """Return graphql-core's schema, with the resolvers called as the engine calls them."""
    resolve_directly(schema)
    return schema._schema


STRAWBERRY = direct(strawberry.Schema(Query, types=[Fruit], config=StrawberryConfig(scalar_map=SCALARS)))


class Refusal(Exception):
    """What a mutation's union has a member for."""


@strawberry.type
class Refused:
    message: str


class Handler:
    exception_type = Refusal
    error_type = Refused

    def handle(self, exception: Refusal, **_: object) -> Refused:
        return Refused(message=str(exception))


class Planted:
    """A mutation's context: what its resolver comes to, and how often it was executed."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.executed = 0
        self.is_begun = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    async def execute(self) -> Any:
        self.executed += 1
        self.is_begun.set()
        await self.may_go_on.wait()
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


@strawberry.type
class Mutation:
    @strawberry.mutation(metadata=DIRECT)
    async def change(self, info: strawberry.Info[Planted, None], times: int = 1) -> Branch | None:  # noqa: ARG002
        return await info.context.execute()  # type: ignore[no-any-return]

    @strawberry.mutation(metadata=DIRECT)
    async def attempt(
        self,
        info: strawberry.Info[Planted, None],
        times: int = 1,  # noqa: ARG002
    ) -> Annotated[Branch | Fruit | Refused, strawberry.union("Attempt")] | None:
        return await info.context.execute()  # type: ignore[no-any-return]

    @strawberry.mutation(metadata=DIRECT)
    async def number(self, info: strawberry.Info[Planted, None], times: int = 1) -> int:  # noqa: ARG002
        return await info.context.execute()  # type: ignore[no-any-return]


MUTATING = direct(
    strawberry.Schema(
        Query,
        Mutation,
        types=[Fruit],
        config=StrawberryConfig(scalar_map=SCALARS),
        exception_handlers=[Handler()],
    )
)


async def _items(calls: list[tuple[str, int]], parents: Sequence["Item"]) -> list[list["Item"]]:
    calls.append(("items", len(parents)))
    return [[Item(depth=parent.depth + 1)] * 3 for parent in parents]


async def _twins(calls: list[tuple[str, int]], parents: Sequence["Item"]) -> list["Item"]:
    calls.append(("twin", len(parents)))
    return list(parents)


@strawberry.type
class Item:
    depth: int

    items: list["Item"] = batched(_items)
    twin: "Item" = batched(_twins)


@strawberry.type
class ItemQuery:
    @strawberry.field(metadata=DIRECT)
    async def items(self, info: strawberry.Info[Any, None]) -> list[Item]:  # noqa: ARG002  # An edge is given the context.
        return [Item(depth=0), Item(depth=0)]


ITEMS = direct(strawberry.Schema(ItemQuery))

#: The same kinds of fields without Strawberry: read from dicts and objects, some of whose values are methods.
PLAIN = build_schema("""
    enum Colour { RED BLUE }
    type Leaf { text: String number: Int! ratio: Float isSet: Boolean! colour: Colour id: ID }
    type Fruit { name: String! leaf: Leaf leaves: [Leaf!]! }
    type Branch { name: String fruit: Fruit! fruits: [Fruit] matrix: [[Int!]] sized(by: Int = 2): Int }
    type Query { branch: Branch! branches: [Branch!] }
""")


class Later:
    """What can be awaited, also more than once."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __await__(self) -> Generator[Any, None, Any]:
        yield from ()
        return self.value


def or_wrong(right: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly what a field should be, and now and then what it should not be, or need not."""
    wrong = st.sampled_from(
        [
            *(None, "text", "7", "", 7, 2**40, 1.5, float("nan"), True, b"x", [], [None], {}, Colour.RED, object()),
            *(Undefined, ValueError("planted"), Later(3), Later("text"), date(2026, 1, 31), lambda *_: 7),
        ]
    )
    return st.integers(0, 5).flatmap(lambda number: wrong if number == 5 else right)


def objects(class_: Callable[..., Any], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """An object of the class, with something wrong in it now and then."""
    return or_wrong(st.builds(class_, **{name: or_wrong(values) for name, values in fields.items()}))


def small_lists(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(values, max_size=3)


COLOURS = st.sampled_from(Colour)
LEAVES = objects(
    Leaf,
    text=st.text(max_size=3) | st.none(),
    number=st.integers(-(2**31), 2**31 - 1),
    amount=st.integers(0, 2**63 - 1) | st.none(),
    ratio=st.floats(allow_nan=False, allow_infinity=False),
    is_set=st.booleans() | st.none(),
    colour=COLOURS,
    day=st.dates() | st.none(),
    at=st.datetimes(timezones=st.just(UTC)),
)
FRUITS = objects(Fruit, name=st.text(max_size=3), leaf=LEAVES | st.none(), leaves=small_lists(LEAVES))
DAYS = st.builds(
    DayRow,
    text=or_wrong(st.text(max_size=3) | st.none()),
    amount=or_wrong(st.integers(0, 2**63 - 1)),
    day=or_wrong(st.dates() | st.none()),
    colour=or_wrong(COLOURS),
    is_set=or_wrong(st.booleans()),
)
RIGHT_DAYS = st.builds(
    DayRow,
    text=st.text(max_size=3) | st.none(),
    amount=st.integers(0, 2**63 - 1),
    day=st.dates() | st.none(),
    colour=COLOURS,
    is_set=st.booleans(),
)


@st.composite
def branches(draw: st.DrawFn, /, **fields: st.SearchStrategy[Any]) -> Any:
    branch = draw(objects(Branch, **fields))
    if isinstance(branch, Branch):
        branch.rows = draw(small_lists(RIGHT_DAYS) | small_lists(DAYS))
        branch.days_are = draw(st.sampled_from(["together", "apart", "records"]))
    return branch


BRANCHES = branches(
    name=st.text(max_size=3),
    colours=small_lists(COLOURS | st.none()),
    matrix=small_lists(small_lists(st.integers(0, 9))),
    fruit=FRUITS | st.none(),
    things=small_lists(FRUITS | LEAVES | st.none()),
    named=FRUITS | st.none(),
)

OUTCOMES = st.one_of(
    *(BRANCHES, BRANCHES, FRUITS, st.integers(0, 9)),
    *(st.builds(each, st.text(max_size=3)) for each in (Refusal, ValueError)),
)


def records(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return objects(dict, **fields) | objects(SimpleNamespace, **fields)


PLAIN_LEAVES = records(
    text=st.text(max_size=3) | st.none(),
    number=st.integers(-9, 9),
    ratio=st.floats(allow_nan=False, allow_infinity=False) | st.integers(0, 9),
    isSet=st.booleans(),
    colour=st.sampled_from(["RED", "BLUE"]),
    id=st.text(max_size=3) | st.integers(0, 9),
)
PLAIN_FRUITS = records(name=st.text(max_size=3), leaf=PLAIN_LEAVES | st.none(), leaves=small_lists(PLAIN_LEAVES))
PLAIN_BRANCHES = records(
    name=st.just(lambda *_: "a method's") | st.text(max_size=3),
    fruit=PLAIN_FRUITS,
    fruits=small_lists(PLAIN_FRUITS | st.none()),
    matrix=small_lists(small_lists(st.integers(0, 9))),
    sized=st.just(lambda *_, by: by),
)


class Writer:
    """Writes valid operations with aliases, fragments within fragments, variables, and `@skip` and `@include`."""

    CONDITIONS = ("", "", "", "@skip(if: $yes)", "@include(if: $yes)", "@skip(if: $no)", "@include(if: false)")
    VARIABLES = ("$yes: Boolean! = true", "$no: Boolean! = false", "$number: Int! = 1")

    def __init__(self, draw: st.DrawFn, schema: GraphQLSchema, kind: OperationType) -> None:
        self.draw = draw
        self.schema = schema
        self.kind = kind
        self.fragments: list[str] = []
        self.aliases = itertools.count()

    def operation(self) -> str:
        root: Any = self.schema.get_root_type(self.kind)
        if self.kind is OperationType.MUTATION and self.draw(st.integers(0, 3)):  # Most are of one field.
            name = self.draw(st.sampled_from([*root.fields]))
            text = f"{{ {self.field(name, root.fields[name], 3)} }}"
        else:
            text = self.selection_set(root, 3)
        text += " ".join(self.fragments)
        used = [variable for variable in self.VARIABLES if variable.partition(":")[0] in text]
        declared = f"({', '.join(used)})" if used else ""
        return f"{self.kind.value} {declared} {text}"

    def selection_set(self, type_: Any, depth: int) -> str:
        parts = ["__typename"] if self.draw(st.booleans()) else []
        for name, field in getattr(type_, "fields", {}).items():
            counts = (0, 0, 1, 1, 2) if is_leaf_type(get_named_type(field.type)) else (0, 0, 1, 1)
            parts += [self.field(name, field, depth) for _ in range(self.draw(st.sampled_from(counts)))]
        parts += [self.fragment(type_, depth - 1) for _ in range(self.draw(st.sampled_from((0, 0, 1))) if depth else 0)]
        return f"{{ {' '.join(part for part in parts if part) or '__typename'} }}"

    def field(self, name: str, field: GraphQLField, depth: int) -> str:
        alias = f"a{next(self.aliases)}: " if self.draw(st.booleans()) else ""
        arguments = ""
        if field.args and alias:
            (argument,) = field.args
            arguments = f"({argument}: {self.draw(st.sampled_from(['$number', '0', '1', '2']))})"
        type_ = get_named_type(field.type)
        if is_leaf_type(type_):
            return f"{alias}{name}{arguments} {self.condition()}"
        return f"{alias}{name}{arguments} {self.condition()} {self.selection_set(type_, depth - 1)}" if depth else ""

    def fragment(self, type_: Any, depth: int) -> str:
        of = self.draw(st.sampled_from(self.schema.get_possible_types(type_))) if is_abstract_type(type_) else type_
        below = self.selection_set(of, depth)
        if self.draw(st.booleans()):
            return f"... on {of.name} {self.condition()} {below}"
        name = f"F{len(self.fragments)}"
        self.fragments.append(f"fragment {name} on {of.name} {below}")
        return f"...{name} {self.condition()}"

    def condition(self) -> str:
        return self.draw(st.sampled_from(self.CONDITIONS))


@st.composite
def documents(draw: st.DrawFn, schema: GraphQLSchema, kind: OperationType = OperationType.QUERY) -> str:
    return Writer(draw, schema, kind).operation()


def operation_of(schema: GraphQLSchema, text: str, *, at_once: bool = True) -> Operation:
    """Return the only operation of a document, compiled `at_once` or when it is executed again."""
    document = parse(text)
    (node,) = [node for node in document.definitions if isinstance(node, OperationDefinitionNode)]
    executor = CompilingExecutor if schema is PLAIN else Executor
    return Operation(schema, document, node, plans_at_once=at_once, executor=executor)


def plan_of(operation: Operation, values: VariableValues) -> Plan | None:
    """Return the plan for these values, a new one where it is wanted."""
    plans = operation.plans
    plan = plans.known(values.coerced)
    if plan is None and plans.is_wanted(values.coerced):
        plan = operation.compiled(values)
        plans.keep(values.coerced, plan)
    return plan


async def run(
    schema: GraphQLSchema, text: str, root: Any, operation: Operation | None, **variables: Any
) -> ExecutionResult:
    """Execute it as the engine does, or without an operation as graphql-core does."""
    value = None if schema is not PLAIN else {"branch": root, "branches": [root, root]}
    if operation is not None:
        values = operation.variables.read(variables)
        assert isinstance(values, VariableValues)
        return await operation.execute(value, root, values, plan_of(operation, values))
    result = execute(
        schema,
        parse(text),
        root_value=value,
        context_value=root,
        variable_values=variables,
        executor_class=CompilingExecutor if schema is PLAIN else Executor,
    )
    return await result if isawaitable(result) else result


def shown_by(result: ExecutionResult) -> tuple[Any, list[Any]]:
    """Return all that a client gets, with the order of the fields.

    Of what made a field above it null, it shows only that: whether graphql-core reports one such error or some of its
    siblings as well depends on which resolver was done first, and the specification leaves it open.
    """
    errors = []
    for error in result.errors or ():
        path = list(error.path or ())
        value: Any = result.data
        depth = next((depth for depth, name in enumerate(path) if (value := value and value[name]) is None), len(path))
        is_own = depth + 1 == len(path) and result.data is not None
        errors.append(repr(error.formatted if is_own else path[: depth + 1 if result.data is not None else 0]))
    return repr(result.data), sorted(set(errors))


def check_until_each_way_was_tried(check: Callable[[], None], ways: dict[str, int]) -> None:
    """Check, and again if need be: none of the ways is to be the only one, and how often each is tried is chance.

    Again with a seed: where Hypothesis finds `CI` set, it draws the same examples each time.
    """
    check()
    for number in range(25):
        if min(ways.values()) > 3:
            break
        seed(number)(check)()
    assert min(ways.values()) > 3, ways
    # What graphql-core has begun and not awaited is not to warn in the next test.
    with warnings.catch_warnings(action="ignore"):
        gc.collect()


@contextmanager
def leaves_of_graphql_core() -> Iterator[list[str]]:
    """Record each leaf that graphql-core itself completes."""
    leaves: list[str] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name == "complete_leaf_value":
            leaves.append(str(frame.f_locals["return_type"]))

    sys.setprofile(note)
    try:
        yield leaves
    finally:
        sys.setprofile(None)


@contextmanager
def calls_of(function: Any) -> Iterator[list[str]]:
    """Record the calls of a function of ours."""
    calls: list[str] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code is function.__code__:
            calls.append(frame.f_code.co_qualname)

    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(None)


@pytest.mark.slow
# graphql-core awaits not always what it has begun, when a sibling makes the field above null.
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("schema", "roots"), [(STRAWBERRY, BRANCHES), (PLAIN, PLAIN_BRANCHES)], ids=["types", "records"]
)
def test_whatever_is_asked_of_whatever_data_the_answer_is_graphql_cores(
    schema: GraphQLSchema, roots: st.SearchStrategy[Any], pytestconfig: pytest.Config
) -> None:
    max_examples = 240 if pytestconfig.getoption("fuzz") else 20
    ways = {"compiled": 0, "left": 0}

    @settings(max_examples=max_examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(text=documents(schema), root=roots)
    def check(text: str, root: Any) -> None:
        if validate(schema, parse(text)):
            return  # What is not valid is not executed: two fields under one name that differ.
        operation = operation_of(schema, text)
        for variables in ({}, {"yes": False}, {"yes": True}):
            if variables and "$yes" not in text:
                continue
            expected = shown_by(runner.run(run(schema, text, root, None, **variables)))
            with leaves_of_graphql_core() as leaves:
                answer = runner.run(run(schema, text, root, operation, **variables))
            assert shown_by(answer) == expected
            ways["left" if leaves else "compiled"] += 1

    with asyncio.Runner() as runner:
        check_until_each_way_was_tried(check, ways)


class TestMutations:
    """A mutation is executed once, whatever becomes of its answer."""

    @pytest.mark.slow
    # As above.
    @pytest.mark.filterwarnings(
        "ignore:coroutine .* was never awaited", "ignore::pytest.PytestUnraisableExceptionWarning"
    )
    def test_whatever_a_mutation_comes_to_it_is_executed_once_and_answered_as_graphql_core_does(
        self, pytestconfig: pytest.Config
    ) -> None:
        max_examples = 600 if pytestconfig.getoption("fuzz") else 40
        ways = {"compiled": 0, "replayed": 0, "left": 0}

        @settings(max_examples=max_examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(text=documents(MUTATING, OperationType.MUTATION), outcome=OUTCOMES)
        def check(text: str, outcome: Any) -> None:
            if validate(MUTATING, parse(text)):
                return  # As above.
            operation = operation_of(MUTATING, text)
            for variables in ({}, {"yes": False}, {"yes": True}):
                if variables and "$yes" not in text:
                    continue
                usual, compiled = Planted(outcome), Planted(outcome)
                expected = shown_by(runner.run(run(MUTATING, text, usual, None, **variables)))
                with calls_of(Resolver.__call__) as calls:
                    answer = runner.run(run(MUTATING, text, compiled, operation, **variables))
                assert shown_by(answer) == expected
                assert compiled.executed == usual.executed
                plan = operation.plans.known({"yes": True, "no": False, "number": 1} | variables)
                whole = plan.whole if plan is not None else None
                ways["left" if whole is None else "replayed" if calls else "compiled"] += 1

        with asyncio.Runner() as runner:
            check_until_each_way_was_tried(check, ways)

    async def test_a_value_that_is_no_answer_is_reported_and_the_mutation_is_not_repeated(self) -> None:
        text = "mutation ($n: Int!) { done: attempt(times: $n) { ... on Branch { name matrix } } }"
        branch = Branch(name="b", colours=[], matrix=None, fruit=None, things=[], named=None)  # type: ignore[arg-type]
        operation = operation_of(MUTATING, text)
        for _ in range(3):
            planted = Planted(branch)
            answer = await run(MUTATING, text, planted, operation, n=1)
            assert (answer.data, planted.executed) == ({"done": None}, 1)
            assert [error.path for error in answer.errors or ()] == [["done", "matrix"]]

    async def test_an_edge_below_it_that_fails_does_not_repeat_it(self) -> None:
        text = "mutation ($n: Int!) { change { name kin(times: $n) { name } } }"
        operation = operation_of(MUTATING, text)
        for times in (2, 1, 2):
            planted = Planted(Branch(name="b", colours=[], matrix=[], fruit=None, things=[], named=None))
            answer = await run(MUTATING, text, planted, operation, n=times)
            kin = {"name": "b"} if times == 1 else None
            assert (answer.data, planted.executed) == ({"change": {"name": "b", "kin": kin}}, 1)
            assert [error.message for error in answer.errors or ()] == ["too often"] * (times - 1)

    async def test_who_does_not_wait_for_it_ends_it_and_it_is_not_repeated(self) -> None:
        text = "mutation { attempt { __typename } }"
        operation = operation_of(MUTATING, text)
        for _ in range(3):
            planted = Planted(Refusal("no"))
            planted.may_go_on.clear()
            answering = asyncio.ensure_future(run(MUTATING, text, planted, operation))
            await planted.is_begun.wait()
            answering.cancel()
            with pytest.raises(asyncio.CancelledError):
                await answering
            assert planted.executed == 1
        planted = Planted(Refusal("no"))
        assert await run(MUTATING, text, planted, operation) == ({"attempt": {"__typename": "Refused"}}, None)

    async def test_of_several_mutations_each_is_executed(self) -> None:
        text = "mutation { a: number b: number }"
        operation = operation_of(MUTATING, text)
        for _ in range(3):
            planted = Planted(7)
            assert await run(MUTATING, text, planted, operation) == ({"a": 7, "b": 7}, None)
            assert planted.executed == 2


class TestEdges:
    """What leads from records to others is resolved for all of them at once."""

    async def test_each_level_is_one_call_for_all_of_its_records(self) -> None:
        calls: list[tuple[str, int]] = []
        text = "{ items { depth items { items { depth } twin { depth } } } more: items { twin { depth } } }"
        result = await run(ITEMS, text, calls, operation_of(ITEMS, text))
        leaf = {"depth": 2}
        inner = {"items": [leaf] * 3, "twin": {"depth": 1}}
        assert result == (
            {"items": [{"depth": 0, "items": [inner] * 3}] * 2, "more": [{"twin": {"depth": 0}}] * 2},
            None,
        )
        assert sorted(calls) == [("items", 2), ("items", 6), ("twin", 2), ("twin", 6)]

    @pytest.mark.parametrize("first", [0, 3])
    async def test_an_edge_of_which_one_record_fails_is_done_again_as_usual(self, first: int) -> None:
        text = "query ($n: Int!) { branches { name kin(times: $n) { name } } alone { name } }"
        root = Branch(name="b", colours=[], matrix=[], fruit=None, things=[], named=None)
        operation = operation_of(STRAWBERRY, text)
        for times in (first, 1):
            seen = shown_by(await run(STRAWBERRY, text, root, operation, n=times))
            assert seen == shown_by(await run(STRAWBERRY, text, root, None, n=times))
        answer = await run(STRAWBERRY, text, root, operation, n=1)
        assert answer == ({"branches": [{"name": "b", "kin": {"name": "b"}}] * 2, "alone": {"name": "b"}}, None)

    @pytest.mark.slow
    async def test_where_the_arguments_of_one_are_refused_none_is_begun(self) -> None:
        text = "query ($n: Int) { branches { a: kin(times: 1) { name } b: kin(times: $n) { name } } }"
        root = Branch(name="b", colours=[], matrix=[], fruit=None, things=[], named=None)
        operation = operation_of(STRAWBERRY, text)
        for _ in range(3):
            answer = await run(STRAWBERRY, text, root, operation, n=None)
            gc.collect()  # What was begun and is never awaited warns, and warnings are errors.
            assert answer.data is not None
            assert [error.path for error in answer.errors or ()] == [["branches", place, "b"] for place in (0, 1)]


class TestColumns:
    """What an edge leads to may be given by columns, which are written as a whole."""

    ROW = DayRow(text=None, amount=2**63 - 1, day=date(2026, 1, 31), colour=Colour.RED, is_set=True)
    WRITTEN: ClassVar[dict[str, Any]] = {
        "text": None,
        "amount": "9223372036854775807",
        "day": "2026-01-31",
        "colour": "RED",
        "isSet": True,
    }
    TEXT = "{ branches { days { text amount day colour isSet } } }"

    def branch(self, rows: list[Any], days_are: str) -> Branch:
        return Branch(name="b", colours=[], matrix=[], fruit=None, things=[], named=None, rows=rows, days_are=days_are)

    @pytest.mark.parametrize("days_are", ["together", "apart", "records"])
    @pytest.mark.parametrize("count", [0, 1, VALUES_A_STEP + 1])
    async def test_each_record_gets_its_own_stretch(self, days_are: str, count: int) -> None:
        root = self.branch([self.ROW._replace(amount=amount) for amount in range(count)], days_are)
        with leaves_of_graphql_core() as leaves:
            result = await run(STRAWBERRY, self.TEXT, root, operation_of(STRAWBERRY, self.TEXT))
        days = [self.WRITTEN | {"amount": str(amount)} for amount in range(count)]
        assert result == ({"branches": [{"days": days}, {"days": days}]}, None)
        assert leaves == []

    @pytest.mark.parametrize(
        "wrong",
        [
            {"amount": None},
            {"amount": "7"},
            {"day": "2026-01-31"},
            {"colour": "RED"},
            {"colour": None},
            {"is_set": None},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("days_are", ["together", "apart", "records"])
    async def test_a_wrong_value_is_reported_as_graphql_core_reports_it(
        self, days_are: str, wrong: dict[str, Any]
    ) -> None:
        root = self.branch([self.ROW, self.ROW._replace(**wrong)], days_are)
        seen = shown_by(await run(STRAWBERRY, self.TEXT, root, operation_of(STRAWBERRY, self.TEXT)))
        assert seen == shown_by(await run(STRAWBERRY, self.TEXT, root, None))


class TestPlans:
    """When an operation is compiled, and for which values of its variables."""

    async def test_an_operation_is_compiled_from_its_second_execution_on(self) -> None:
        text = "{ branch { name matrix fruit { name leaves { text colour } } } }"
        root = Branch(
            name="b", colours=[], matrix=[[1, 2]], fruit=Fruit(name="f", leaf=None, leaves=[]), things=[], named=None
        )
        operation = operation_of(STRAWBERRY, text, at_once=False)
        counts = []
        for _ in range(3):
            with leaves_of_graphql_core() as leaves:
                answer = await run(STRAWBERRY, text, root, operation)
            counts.append(len(leaves))
            assert answer == ({"branch": {"name": "b", "matrix": [[1, 2]], "fruit": {"name": "f", "leaves": []}}}, None)
        assert counts == [4, 0, 0]

    async def test_a_surprise_leaves_the_rest_of_the_list_compiled(self) -> None:
        text = "{ branch { fruit { leaves { number } } } }"
        now = datetime.now(UTC)
        leaves = [
            Leaf(text=None, number=number, amount=None, ratio=1.0, is_set=None, colour=Colour.RED, day=None, at=now)
            for number in range(50)
        ]
        leaves[7].number = "seven"  # type: ignore[assignment]  # It is what is not expected.
        fruit = Fruit(name="f", leaf=None, leaves=leaves)
        root = Branch(name="b", colours=[], matrix=[], fruit=fruit, things=[], named=None)
        operation = operation_of(STRAWBERRY, text)
        with leaves_of_graphql_core() as seen:
            answer = await run(STRAWBERRY, text, root, operation)
        assert seen == ["Int"]
        assert answer.errors is not None
        (error,) = answer.errors
        assert error.path == ["branch", "fruit", "leaves", 7, "number"]
        assert error.message == "Int cannot represent non-integer value: 'seven'"

    async def test_more_values_of_skip_than_plans_are_executed_all_the_same(self) -> None:
        names = [f"v{place}" for place in range(MAX_PLANS)]
        fields = " ".join(f"f{place}: name @skip(if: ${name})" for place, name in enumerate(names))
        text = f"query ({', '.join(f'${name}: Boolean!' for name in names)}) {{ branch {{ __typename {fields} }} }}"
        root = Branch(name="b", colours=[], matrix=[], fruit=None, things=[], named=None)
        operation = operation_of(STRAWBERRY, text)
        for skipped in range(MAX_PLANS + 3):
            variables = {name: place < skipped for place, name in enumerate(names)}
            answer = await run(STRAWBERRY, text, root, operation, **variables)
            expected = {f"f{place}": "b" for place in range(skipped, MAX_PLANS)}
            assert answer == ({"branch": {"__typename": "Branch"} | expected}, None)


async def test_a_list_of_which_nothing_is_selected_is_answered_each_time(gateway: Gateway) -> None:
    for number in range(2):
        await gateway.mutate("createCustomer", "", email=f"{number}@example.com")
    query = """query ($yes: Boolean!) {
      customers { edges { node @include(if: $yes) { email } } pageInfo { hasNextPage } }
      __schema { queryType { fields { name @include(if: $yes) } } }
    }"""
    for _ in range(4):
        data = await gateway.data(query, {"yes": False})
        assert data["customers"] == {"edges": [{}, {}], "pageInfo": {"hasNextPage": False}}
        assert set(map(str, data["__schema"]["queryType"]["fields"])) == {"{}"}
        data = await gateway.data(query, {"yes": True})
        assert [edge["node"]["email"] for edge in data["customers"]["edges"]] == ["1@example.com", "0@example.com"]


async def test_what_is_never_reached_is_no_fault_of_what_is(gateway: Gateway) -> None:
    """graphql-core meets the null only where there is a customer, and compiling looks further than it does."""
    query = "query ($x: Boolean = true) { viewer { environment customer { id @include(if: $x) } } }"
    for _ in range(4):
        data = await gateway.data(query, {"x": None})
        assert data == {"viewer": {"environment": "SANDBOX", "customer": None}}


#: What clients ask every day.
ORDINARY = (
    """query ($w: String!, $m: String!) { billingMeter(workspaceId: $w, externalMeterId: $m) {
      id usedCredits spendCap allowOverages createdAt customer { id email metadata environment } } }""",
    """query ($w: String!, $m: String!) { billingMeter(workspaceId: $w, externalMeterId: $m) {
      usage { day totalBillingUsage billingUsageName }
      ledger { nodes { id kind amount policy occurredAt metadata } pageInfo { hasNextPage endCursor } edges { cursor } }
    } }""",
    "{ billingMeters { nodes { id workspaceId totalCredits } } viewer { orgId environment scopes } }",
    """{ customers { edges { node { name billingMeters { nodes { ...M } } } } } }
    fragment M on BillingMeter { id availableCredits usage { day totalBillingUsage } }""",
)


async def test_ordinary_queries_are_compiled(gateway: Gateway) -> None:
    customer_id = await make_customer(gateway, "a@example.com", name="A")
    await make_meter(gateway, "m", totalCredits="100", customerId=customer_id)
    await must(gateway, "recordUsage", eventId="e", amount="7")
    for query in ORDINARY:
        variables = {"w": "w", "m": "m"} if "$w" in query else {}
        first = await gateway.data(query, variables)
        await gateway.data(query, variables)
        with leaves_of_graphql_core() as leaves:
            assert await gateway.data(query, variables) == first
        assert leaves == []


async def test_an_ordinary_mutation_is_compiled(gateway: Gateway) -> None:
    await make_meter(gateway, "m", totalCredits="10")
    selection = "... on RecordUsageSuccess { accepted entry { id day } billingMeter { usedCredits } }"
    answers, counts = [], []
    for event in ("a", "b", "c", "d"):
        with calls_of(CompilingExecutor.__init__) as executors:
            answers.append(
                await gateway.mutate(
                    "recordUsage", selection, workspaceId="w", externalMeterId="m", eventId=event, amount="4"
                )
            )
        counts.append(len(executors))
    # Compiled the second time, and from then on answered without graphql-core.
    assert counts == [1, 1, 0, 0]
    assert [answer.get("code") for answer in answers] == [None, None, "INSUFFICIENT_CREDITS", "INSUFFICIENT_CREDITS"]
    assert answers[1]["billingMeter"] == {"usedCredits": "8"}


async def test_a_mutation_whose_answer_may_not_be_read_is_executed_once(gateway: Gateway) -> None:
    await make_meter(gateway, "m", totalCredits="10")
    caller = await gateway.caller(Scope.BILLING_WRITE)
    text = """mutation ($input: RefillBillingMeterInput!) { refillBillingMeter(input: $input) {
      ... on RefillBillingMeterSuccess { billingMeter { totalCredits customer { id } } } } }"""
    for total in ("11", "12", "13", "14"):
        body = await caller.run(text, {"input": {"workspaceId": "w", "externalMeterId": "m", "refill": "1"}})
        returned = body["data"]["refillBillingMeter"]["billingMeter"]
        assert returned == {"totalCredits": total, "customer": None}
        (error,) = body["errors"]
        assert error["path"] == ["refillBillingMeter", "billingMeter", "customer"]
        assert error["extensions"] == {"code": "FORBIDDEN"}
        meter = await meter_of(gateway)
        assert (meter["totalCredits"], len(meter["ledger"])) == (total, int(total) - 9)


class TestVariables:
    """Their values are those that graphql-core reads, and so is the error of a bad one."""

    SCHEMA = build_schema("""
        enum Colour { RED BLUE }
        input Inner { text: String! = "t" colours: [Colour!] number: Int inner: Inner }
        input Outer { inner: Inner! list: [[Int]] id: ID flag: Boolean! = true ratio: Float }
        type Query { field(outer: Outer, inner: [Inner], id: ID, number: Int): Int }
    """)
    TEXT = (
        "query ($outer: Outer!, $inner: [Inner], $id: ID{}, $number: Int)"
        " {{ field(outer: $outer, inner: $inner, id: $id, number: $number) }}"
    )

    @pytest.mark.slow
    @settings(max_examples=300, deadline=None, database=None)
    @given(data=st.data())
    def test_they_are_read_as_graphql_core_reads_them(self, data: st.DataObject) -> None:
        right = {
            "text": st.text(max_size=2),
            "colours": st.lists(st.sampled_from(["RED", "BLUE"]), max_size=2),
            "number": st.integers(-5, 5) | st.none(),
            "list": st.lists(st.lists(st.integers(0, 5) | st.none(), max_size=2), max_size=2),
            "id": st.text(max_size=2) | st.integers(0, 5),
            "flag": st.booleans(),
            "ratio": st.floats(allow_nan=False) | st.integers(0, 5),
        }
        wrong = st.sampled_from([None, "x", 1, 2**40, True, [], {}, 1.5, [None], {"unknown": 1}, "RED"])

        def some(names: str, depth: int) -> dict[str, Any]:
            found = {}
            for name in names.split():
                strategy = st.deferred(lambda: st.just(some("text colours number inner", depth - 1)))
                values = right.get(name, strategy) if name in right or depth else st.none()
                if data.draw(st.integers(0, 3)):
                    found[name] = data.draw(wrong if data.draw(st.integers(0, 11)) == 0 else values)
            return found

        given_ = {"outer": {"inner": {}} | some("inner list id flag ratio", 2)}
        if data.draw(st.booleans()):
            given_ |= some("id number", 0) | {"inner": [some("text colours number inner", 1)]}
        (operation,) = parse(self.TEXT.format(data.draw(st.sampled_from(["", " = 7"])))).definitions
        assert isinstance(operation, OperationDefinitionNode)
        expected = get_variable_values(
            self.SCHEMA, operation.variable_definitions or (), given_, max_errors=20, hide_suggestions=True
        )
        found = Variables(self.SCHEMA, operation).read(given_)
        if isinstance(expected, list):
            assert isinstance(found, list)
            # All but the place in a list, which graphql-core names in the message alone.
            assert [error.formatted | {"extensions": {}} for error in found] == [
                error.formatted | {"extensions": {}} for error in expected
            ]
            for error in found:
                name, *path = (error.extensions or {}).get("path", [None])
                if name is not None:
                    assert error.message.startswith(f"Variable '${name}' has invalid value{print_path_list(path)}: ")
        else:
            assert isinstance(found, VariableValues)
            assert found.coerced == expected.coerced
            assert {name: source.value for name, source in found.sources.items()} == {
                name: source.value for name, source in expected.sources.items()
            }
