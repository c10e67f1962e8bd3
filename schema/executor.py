"""The executor: graphql-core's, with the plain parts of an answer compiled.

Most of an answer is plain data: fields without a resolver, read from a record, checked and written down. graphql-core
walks through them generically, which costs some microseconds a leaf. Here such a subtree is compiled, once for an
operation and the values of its `@skip` and `@include`, into Python functions that go straight from the record to the
answer's dict. Which fields are selected is decided by graphql-core's own `collect_subfields`.

**Any surprise bails out**: a null where none may be, a class that is not expected, an awaitable, an exception. Then the
subtree is done again by graphql-core itself, so that errors, their paths and how far nulls spread are its own. Doing it
again changes nothing, because there is no resolver in it. Fields with a resolver or arguments, and what `@defer` and
middleware touch, always go to graphql-core; the plain fields beside them are still compiled.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from typing import Any, TypeAlias

from graphql import (
    DirectiveNode,
    DocumentNode,
    FragmentDefinitionNode,
    GraphQLBoolean,
    GraphQLEnumType,
    GraphQLField,
    GraphQLFloat,
    GraphQLID,
    GraphQLInt,
    GraphQLObjectType,
    GraphQLOutputType,
    GraphQLString,
    Undefined,
    VariableNode,
    Visitor,
    default_field_resolver,
    is_abstract_type,
    is_leaf_type,
    is_list_type,
    is_non_null_type,
    is_object_type,
    visit,
)
from graphql.execution.collect_fields import CollectedFields, FieldDetailsList, GroupedFieldSet
from graphql.execution.incremental import IncrementalExecutor
from graphql.pyutils import Path, is_awaitable
from graphql.type import GraphQLAbstractType, GraphQLLeafType, GraphQLResolveInfo
from strawberry.schema.schema import StrawberryGraphQLCoreExecutionContext
from strawberry.types.base import StrawberryObjectDefinition
from strawberry.types.field import StrawberryField

#: How many plans one operation may have: as many as values of its `@skip` and `@include` come together.
MOST_PLANS = 8

#: How many functions one subtree may become.
MOST_FUNCTIONS = 200

Completer: TypeAlias = Callable[[Any], Any]


class Bail(Exception):
    """The value is not what the compiled function is for."""


class NotPlain(Exception):
    """The subtree has a part that only graphql-core can execute."""


class Plan:
    """What the executions of an operation share that select the same fields."""

    def __init__(self) -> None:
        self.root: GroupedFieldSet | None = None
        #: graphql-core's memo. It also keeps the lists of fields alive, so that their identities can be keys.
        self.sub_fields: dict[tuple[GraphQLObjectType, int], tuple[FieldDetailsList, CollectedFields]] = {}
        self.completers: dict[tuple[int, int], Completer | None] = {}
        #: Of an object's fields: the function of the plain ones, if there are any, and the others.
        self.fields: dict[int, tuple[Completer | None, GroupedFieldSet]] = {}


class Plans:
    """The plans of one operation of a document; `at_once`, or else from the second time on that it is executed."""

    def __init__(self, document: DocumentNode, *, at_once: bool = False) -> None:
        self._document = document
        self._is_wanted = at_once
        self._seen: _Seen | None = None
        self._plans: dict[tuple[Any, ...], Plan] = {}

    def of(self, variables: dict[str, Any]) -> Plan | None:
        """Return the plan for these coerced values of the variables; None where graphql-core is to do it all."""
        if not self._is_wanted:
            # What is asked only once is answered sooner than it is compiled.
            self._is_wanted = True
            return None
        if self._seen is None:
            self._seen = _Seen()
            visit(self._document, self._seen)
        if not self._seen.is_plannable:
            return None
        key = tuple([variables.get(name) for name in sorted(self._seen.variables)])
        plan = self._plans.get(key)
        if plan is None and len(self._plans) < MOST_PLANS:
            plan = self._plans[key] = Plan()
        return plan


class _Seen(Visitor):
    """What of a document decides which fields are selected."""

    def __init__(self) -> None:
        super().__init__()
        self.variables: set[str] = set()
        self.is_plannable = True

    def enter_directive(self, node: DirectiveNode, *_: object) -> None:
        if node.name.value in {"skip", "include"}:
            self.variables |= {
                argument.value.name.value
                for argument in node.arguments or ()
                if isinstance(argument.value, VariableNode)
            }
        else:
            self.is_plannable = False

    def enter_fragment_definition(self, node: FragmentDefinitionNode, *_: object) -> None:
        if node.variable_definitions:
            self.is_plannable = False


class CompilingExecutor(IncrementalExecutor):
    """graphql-core's executor with compiled plain subtrees; without `plans` it is graphql-core's own."""

    def __init__(self, *args: Any, plans: Plans | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.plan: Plan | None = None
        is_usual = self.middleware_manager is None and self.abort_signal is None
        if plans is not None and is_usual and self.field_resolver is default_field_resolver:
            self.plan = plans.of(self.variable_values.coerced)
        if self.plan is not None:
            self._relevant_sub_fields = self.plan.sub_fields

    def execute_root_grouped_field_set(
        self,
        root_type: GraphQLObjectType,
        root_value: Any,
        grouped_field_set: GroupedFieldSet,
        serially: bool,  # noqa: FBT001  # The signature is graphql-core's.
        position_context: Any,
    ) -> Any:
        """Execute the root's fields: those of the plan, which are the same ones and whose identity is known."""
        if self.plan is not None:
            self.plan.root = grouped_field_set = self.plan.root or grouped_field_set
        return super().execute_root_grouped_field_set(
            root_type, root_value, grouped_field_set, serially, position_context
        )

    def execute_fields(
        self,
        parent_type: GraphQLObjectType,
        source_value: Any,
        path: Path | None,
        grouped_field_set: GroupedFieldSet,
        position_context: Any,
    ) -> Any:
        """Execute an object's fields: the plain ones by their function, and then the others."""
        if self.plan is None:
            return super().execute_fields(parent_type, source_value, path, grouped_field_set, position_context)
        fields = self.plan.fields.get(id(grouped_field_set))
        if fields is None:
            fields = self.plan.fields[id(grouped_field_set)] = self._compile_fields(parent_type, grouped_field_set)
        plain, others = fields
        if plain is None:
            return super().execute_fields(parent_type, source_value, path, grouped_field_set, position_context)
        try:
            results = plain(source_value)
        except Exception:  # noqa: BLE001  # graphql-core will meet it again, and tell it.
            return super().execute_fields(parent_type, source_value, path, grouped_field_set, position_context)
        if not others:
            return results
        # Their places in the answer are kept by nulls.
        rest = super().execute_fields(parent_type, source_value, path, others, position_context)
        if not self.is_awaitable(rest):
            return results | rest

        async def all_results() -> dict[str, Any]:
            results.update(await rest)
            return results  # type: ignore[no-any-return]

        return all_results()

    def complete_value(
        self,
        return_type: GraphQLOutputType,
        field_details_list: FieldDetailsList,
        info: GraphQLResolveInfo[Any],
        path: Path,
        result: Any,
        position_context: Any,
    ) -> Any:
        """Complete the value of a field by its function, where all below it is plain."""
        if self.plan is not None and result is not None:
            key = (id(return_type), id(field_details_list))
            try:
                complete = self.plan.completers[key]
            except KeyError:
                complete = self.plan.completers[key] = self._compile_value(return_type, field_details_list)
            if complete is not None:
                try:
                    return complete(result)
                except Exception:  # noqa: BLE001, S110  # graphql-core will meet it again, and tell it.
                    pass
        return super().complete_value(return_type, field_details_list, info, path, result, position_context)

    def _compile_fields(
        self, parent_type: GraphQLObjectType, grouped_field_set: GroupedFieldSet
    ) -> tuple[Completer | None, GroupedFieldSet]:
        compiler = _Compiler(self)
        others: GroupedFieldSet = {}
        try:
            function = compiler.object(parent_type, grouped_field_set, others)
        except NotPlain:
            return None, grouped_field_set
        return (compiler.finish(function) if len(others) < len(grouped_field_set) else None), others

    def _compile_value(self, return_type: GraphQLOutputType, field_details_list: FieldDetailsList) -> Completer | None:
        compiler = _Compiler(self)
        try:
            return compiler.finish(compiler.value(return_type, field_details_list))
        except (NotPlain, RecursionError):
            return None


class Executor(CompilingExecutor, StrawberryGraphQLCoreExecutionContext):
    """The same for Strawberry's resolvers."""


class _Compiler:
    """Writes the functions of one subtree. Each takes a value and returns what the answer says of it.

    A function bails out of a null: whoever calls it for a nullable type has looked before.
    """

    def __init__(self, executor: CompilingExecutor) -> None:
        self._executor = executor
        self._lines: list[str] = []
        self._functions = 0
        self._names: dict[str, Any] = {
            "Bail": Bail,
            "Undefined": Undefined,
            "SAFE": _SAFE,
            "check": _check,
            "isfinite": math.isfinite,
            "read": _read,
        }

    def finish(self, function: str) -> Completer:
        """Return the function of this name, and with it all that were written."""
        # What is compiled is made of names that the schema gives and of literals; nothing of a request is in it but
        # aliases, which are quoted.
        exec("\n".join(self._lines), self._names)  # noqa: S102
        return self._names[function]  # type: ignore[no-any-return]

    def value(self, type_: GraphQLOutputType, fields: FieldDetailsList) -> str:
        """Write the function of a value of this type and return its name. Raises `NotPlain`."""
        if is_non_null_type(type_) and is_object_type(type_.of_type):
            return self._object_with_subfields(type_.of_type, fields)
        return self._function(self._conversion(type_, fields, "o"))

    def object(
        self, type_: GraphQLObjectType, grouped_field_set: GroupedFieldSet, others: GroupedFieldSet | None = None
    ) -> str:
        """Write the function of an object with these fields and return its name.

        A field that is not plain is put into `others` and null in what the function returns. Raises `NotPlain` where
        there are no `others`.
        """
        lines = self._class_check(type_)
        items = []
        for place, (name, fields) in enumerate(grouped_field_set.items()):
            try:
                conversion = self._field(type_, fields, f"v{place}")
            except (NotPlain, RecursionError):
                if others is None:
                    raise NotPlain from None
                others[name] = fields
                conversion = [f"v{place} = None"]
            if conversion:
                lines += conversion
                items.append(f"{name!r}: v{place}")
        return self._function([*lines, f"o = {{{', '.join(items)}}}"])

    def _field(self, parent_type: GraphQLObjectType, fields: FieldDetailsList, name: str) -> list[str]:
        """Return the lines that read a field of the object `o` and convert it; none for one that does not exist."""
        node = fields[0].node
        if node.name.value == "__typename":
            return [f"{name} = {parent_type.name!r}"]
        definition = self._executor.schema.get_field(parent_type, node.name.value)
        if definition is None:
            return []
        if definition.args or node.arguments:
            raise NotPlain
        reading = _reading(definition, node.name.value)
        return [f"{name} = {reading}", *self._conversion(definition.type, fields, name)]

    def _conversion(self, type_: GraphQLOutputType, fields: FieldDetailsList, name: str) -> list[str]:
        """Return the lines that make of a value what the answer says of it."""
        if is_non_null_type(type_):
            return self._given(type_.of_type, fields, name)
        return [f"if {name} is not None:", *[f"    {line}" for line in self._given(type_, fields, name)]]

    def _given(self, type_: GraphQLOutputType, fields: FieldDetailsList, name: str) -> list[str]:
        if is_leaf_type(type_):
            return self._leaf(type_, name)
        if is_list_type(type_):
            item = self.value(type_.of_type, fields)
            return [
                f"if type({name}) is not list and type({name}) is not tuple: raise Bail",
                f"{name} = [{item}(item) for item in {name}]",
            ]
        if is_abstract_type(type_):
            return [f"{name} = {self._by_class(type_, fields)}[type({name})]({name})"]
        assert is_object_type(type_)  # noqa: S101  # There is no other output type.
        return [f"{name} = {self._object_with_subfields(type_, fields)}({name})"]

    def _leaf(self, type_: GraphQLLeafType, name: str) -> list[str]:
        if type_ in _CHECKS:
            return [f"if not ({_CHECKS[type_].format(name)}): raise Bail"]
        members = getattr(type_, "wrapped_cls", None)
        if isinstance(type_, GraphQLEnumType) and members is not None:
            # Strawberry's enums go through all members to find a name.
            names = {value.value: each for each, value in reversed(type_.values.items())}
            shown = {member: names[member.value] for member in members if member.value in names}
            return [
                f"if type({name}) is not {self._constant(members)}: raise Bail",
                f"{name} = {self._constant(shown)}[{name}]",
            ]
        return [
            f"if type({name}) not in SAFE: raise Bail",
            f"{name} = {self._constant(type_.coerce_output_value)}({name})",
            f"if {name} is None or {name} is Undefined: raise Bail",
        ]

    def _by_class(self, type_: GraphQLAbstractType, fields: FieldDetailsList) -> str:
        """Write the functions of the types that an abstract one can be, by the class of the value."""
        functions = []
        for possible in self._executor.schema.get_possible_types(type_):
            origin = _origin(possible)
            if origin is None or not _is_strawberrys(type_):
                raise NotPlain
            functions.append(f"{self._constant(origin)}: {self._object_with_subfields(possible, fields)}")
        name = self._constant(None)
        self._lines.append(f"{name} = {{{', '.join(functions)}}}")
        return name

    def _object_with_subfields(self, type_: GraphQLObjectType, fields: FieldDetailsList) -> str:
        return self.object(type_, self._executor.collect_subfields(type_, fields).grouped_field_set)

    def _class_check(self, type_: GraphQLObjectType) -> list[str]:
        origin = _origin(type_)
        if origin is not None and type_.is_type_of is not None:
            return [f"if type(o) is not {self._constant(origin)}: raise Bail"]
        if type_.is_type_of is not None:
            raise NotPlain
        # Records of any class will do for a type of Strawberry's that implements no interface.
        return ["if o is None: raise Bail"] if origin is not None else ["check(o)"]

    def _function(self, lines: Sequence[str]) -> str:
        self._functions += 1
        if self._functions > MOST_FUNCTIONS:
            raise NotPlain
        name = f"complete_{self._functions}"
        self._lines += [f"def {name}(o):", *[f"    {line}" for line in lines], "    return o"]
        return name

    def _constant(self, value: Any) -> str:
        name = f"constant_{len(self._names)}"
        self._names[name] = value
        return name


_DEFINITION = "strawberry-definition"

#: What the values are that the answer says as they are.
_CHECKS = {
    GraphQLString: "type({0}) is str",
    GraphQLID: "type({0}) is str",
    GraphQLBoolean: "type({0}) is bool",
    GraphQLInt: "type({0}) is int and -2147483648 <= {0} <= 2147483647",
    GraphQLFloat: "type({0}) is float and isfinite({0})",
}

#: Classes whose values are neither null nor awaitable nor exceptions, so that a scalar may be asked about them.
_SAFE = frozenset((bool, int, float, str, bytes, dict, list, tuple, date, datetime))


def _reading(definition: GraphQLField, name: str) -> str:
    """Return the expression that reads a field without a resolver from the object `o`. Raises `NotPlain`."""
    if definition.resolve is None:
        return f"read(o, {name!r})"
    field = definition.extensions.get(_DEFINITION)
    if isinstance(field, StrawberryField) and field.is_basic_field and field.default_resolver is getattr:
        return f"o.{field.python_name}"
    raise NotPlain


def _origin(type_: GraphQLObjectType) -> type | None:
    """Return the class whose instances are of this type of Strawberry's and of no other."""
    definition = type_.extensions.get(_DEFINITION)
    if not isinstance(definition, StrawberryObjectDefinition):
        return None
    is_usual = definition.is_type_of is None and definition.concrete_of is None
    return definition.origin if is_usual else None


def _is_strawberrys(type_: GraphQLAbstractType) -> bool:
    """Whether Strawberry decides by the class which type a value is."""
    definition = type_.extensions.get(_DEFINITION)
    return definition is not None and getattr(definition, "resolve_type", None) is None


def _read(source: Any, name: str) -> Any:
    """Read a field as graphql-core does where there is no resolver."""
    value = source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)
    if callable(value):
        raise Bail
    return value


def _check(source: Any) -> None:
    if source is None or isinstance(source, Exception) or is_awaitable(source):
        raise Bail
