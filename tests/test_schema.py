"""The schema as clients see it: the export, the contract that was agreed, descriptions, and what a change means."""

import dataclasses
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from graphql import (
    REMOVE,
    ConstDirectiveNode,
    GraphQLEnumType,
    GraphQLInputObjectType,
    GraphQLInterfaceType,
    GraphQLNamedType,
    GraphQLObjectType,
    GraphQLSchema,
    GraphQLSyntaxError,
    GraphQLUnionType,
    Node,
    OverlappingFieldsCanBeMergedRule,
    Visitor,
    build_ast_schema,
    build_schema,
    find_schema_changes,
    get_named_type,
    get_nullable_type,
    is_introspection_type,
    is_list_type,
    is_specified_scalar_type,
    lexicographic_sort_schema,
    parse,
    print_schema,
    validate,
    visit,
)
from strawberry.types import get_object_definition

from resolvers import errors as domain
from schema import errors as refusals
from schema.customers import Customer
from schema.engine.compatibility import Change, changes_between
from schema.enums import ErrorCode
from schema.meters.billing_meters import BillingMeter
from schema.meters.ledger import LedgerEntry
from schema.root import schema
from storage.customers import CustomerRow
from storage.meters.billing_meters import BillingMeterRow
from storage.meters.ledger import LedgerEntryRow

ROOT = Path(__file__).parent.parent
EXPORT = (ROOT / "schema" / "schema.graphql").read_text(encoding="utf-8")
CONTRACT = (ROOT / "tests" / "data" / "contract.graphql").read_text(encoding="utf-8")


def bare(definitions: str) -> GraphQLSchema:
    """Build a schema from its definitions without descriptions, and without where scalars are specified."""

    class Bare(Visitor):
        def enter(self, node: Node, *_: object) -> Any:
            is_described = getattr(node, "description", None) is not None
            return replace(node, description=None) if is_described else None  # type: ignore[call-arg]  # As it has one.

        def enter_directive(self, node: ConstDirectiveNode, *_: object) -> Any:
            return REMOVE if node.name.value == "specifiedBy" else None

    return lexicographic_sort_schema(build_ast_schema(visit(parse(definitions), Bare())))


def our_types(built: GraphQLSchema) -> Iterator[GraphQLNamedType]:
    for type_ in built.type_map.values():
        if not is_introspection_type(type_) and not is_specified_scalar_type(type_):
            yield type_


def descriptions(built: GraphQLSchema) -> Iterator[tuple[str, str | None]]:
    """Return everything that a client can read a description of, by its coordinates, and the description."""
    for type_ in our_types(built):
        yield type_.name, type_.description
        if isinstance(type_, GraphQLObjectType | GraphQLInterfaceType):
            for name, field in type_.fields.items():
                yield f"{type_.name}.{name}", field.description
                for argument, definition in field.args.items():
                    yield f"{type_.name}.{name}({argument}:)", definition.description
        elif isinstance(type_, GraphQLInputObjectType):
            for name, input_field in type_.fields.items():
                yield f"{type_.name}.{name}", input_field.description
        elif isinstance(type_, GraphQLEnumType):
            for name, value in type_.values.items():
                yield f"{type_.name}.{name}", value.description


#: The mutation that takes and answers a list.
BATCH = "recordUsageBatch"


def leaves(refusal: type[domain.Refusal]) -> Iterator[type[domain.Refusal]]:
    below = refusal.__subclasses__()
    for each in below:
        yield from leaves(each)
    if not below:
        yield refusal


def with_other_text(now: str, then: str) -> str:
    """Return the export as if an older release had had `then` where it has `now`."""
    assert EXPORT.count(now) == 1
    return EXPORT.replace(now, then)


def without(type_name: str, member: str) -> str:
    """Return the export as if an older release had not had this field or value yet."""
    built = build_schema(EXPORT)
    type_: Any = built.type_map[type_name]
    del (type_.values if isinstance(type_, GraphQLEnumType) else type_.fields)[member]
    return print_schema(built)


def without_argument(type_name: str, field: str, argument: str) -> str:
    """Return the export as if an older release had not had this argument yet."""
    built = build_schema(EXPORT)
    type_: Any = built.type_map[type_name]
    del type_.fields[field].args[argument]
    return print_schema(built)


#: Every list that is none of edges, and what bounds it: a list that grows without a bound is a connection.
BOUNDED_LISTS = {
    "AlertConnection.nodes": "the page",
    "AutoRefillRequestConnection.nodes": "the page",
    "BillingMeter.alerts": "25 of the meter and 25 of its workspace",
    "BillingMeter.burnDown": "the live grants of a meter, and the base",
    "BillingMeter.usage": "366 days and 10,000 rows",
    "BillingMeterConnection.nodes": "the page",
    "CreditGrantConnection.nodes": "the page",
    "CustomerConnection.nodes": "the page",
    "EventConnection.nodes": "the page",
    "HoldConnection.nodes": "the page",
    "InvalidInput.field": "the depth of an input",
    "LedgerEntry.draws": "the live grants of a meter, and the base",
    "LedgerEntryConnection.nodes": "the page",
    "Mutation.recordUsageBatch": "as many as were sent, 1,000",
    "Query.nodes": "as many as were asked for, 100",
    "Query.usage": "366 days and 10,000 rows",
    "Viewer.scopes": "the values of the enum",
    "Viewer.workspaceIds": "what the key was made with",
    "WebhookDelivery.attempts": "the newest 50",
    "WebhookDeliveryConnection.nodes": "the page",
    "WebhookEndpoint.types": "the values of the enum",
    "WebhookEndpoint.workspaceIds": "100",
    "WebhookEndpointConnection.nodes": "the page",
}


#: What an older release had, and how severe the change since then is.
CHANGES: dict[str, tuple[str, str]] = {
    # What is gone, or asked for anew, breaks clients.
    "a field is gone": (with_other_text("type Viewer {", "type Viewer { gone: String"), "breaking"),
    "a value is gone": (with_other_text("enum OverLimitPolicy {", "enum OverLimitPolicy { GONE"), "breaking"),
    "a type is gone": (f"{EXPORT} type Gone {{ id: ID! }}", "breaking"),
    "an input field is gone": (
        with_other_text("input RecordUsageInput {", "input RecordUsageInput { gone: ID"),
        "breaking",
    ),
    "an argument is gone": (with_other_text("  viewer: Viewer!", "  viewer(gone: Int): Viewer!"), "breaking"),
    "a member of a union is gone": (
        with_other_text("| ExceedsVoidable", "| ExceedsVoidable | UsageDay"),
        "breaking",
    ),
    "a field became nullable": (
        with_other_text("  disabledReason: String\n", "  disabledReason: String!\n"),
        "breaking",
    ),
    "a field has another type": (with_other_text("  viewer: Viewer!", "  viewer: Customer!"), "breaking"),
    "an input field became required": (
        with_other_text('  amount: BigInt!\n\n  """What was', '  amount: BigInt\n\n  """What was'),
        "breaking",
    ),
    "a required input field is new": (without("RecordUsageInput", "eventId"), "breaking"),
    # What clients may not have reckoned with is dangerous.
    "a value is new": (without("OverLimitPolicy", "PARTIAL"), "dangerous"),
    "a member of a union is new": (
        with_other_text("| IdempotencyConflict | ExceedsVoidable", "| IdempotencyConflict"),
        "dangerous",
    ),
    "a default is another": (
        with_other_text("priority: Int! = 50", "priority: Int! = 51"),
        "dangerous",
    ),
    "an optional input field is new": (without("RecordUsageInput", "occurredAt"), "dangerous"),
    "an optional argument is new": (without_argument("Query", "billingMeters", "filter"), "dangerous"),
    # What nobody has asked for yet is safe.
    "a field is new": (without("Query", "viewer"), "safe"),
    "a description is another": (with_other_text('"""An accepted debit."""', '"""A debit."""'), "safe"),
}


def whole_document(of: GraphQLSchema) -> str:
    """Return a document that selects every field of every member of every mutation's union, and what is below."""

    def selection(type_: GraphQLObjectType | GraphQLInterfaceType, levels: int) -> str:
        fields = {name: get_named_type(field.type) for name, field in type_.fields.items()}
        below = {
            name: selection(named, levels - 1) if levels else "__typename"
            for name, named in fields.items()
            if isinstance(named, GraphQLObjectType | GraphQLInterfaceType)
        }
        return " ".join(f"{name} {{ {below[name]} }}" if name in below else name for name in fields)

    mutation = of.mutation_type
    assert mutation is not None
    fields = []
    for name, field in mutation.fields.items():
        union = get_named_type(field.type)
        members = union.types if isinstance(union, GraphQLUnionType) else ()
        assert members, name
        fields.append(
            f"{name} {{ {' '.join(f'... on {member.name} {{ {selection(member, 2)} }}' for member in members)} }}"
        )
    return f"mutation {{ {' '.join(fields)} }}"


def merging_errors(of: GraphQLSchema, document: str) -> list[str]:
    """Return what of a document can not be merged."""
    return [error.message for error in validate(of, parse(document), [OverlappingFieldsCanBeMergedRule])]


class TestExport:
    def test_the_committed_export_is_what_the_code_makes(self) -> None:
        assert schema.as_str() + "\n" == EXPORT

    @pytest.mark.slow
    def test_it_is_the_contract_that_was_agreed(self) -> None:
        agreed, exported = bare(CONTRACT), bare(EXPORT)
        assert find_schema_changes(agreed, exported) == []
        assert find_schema_changes(exported, agreed) == []
        # The comparison above looks at what matters to clients; this one at everything.
        assert print_schema(exported) == print_schema(agreed)

    def test_everything_has_a_description(self) -> None:
        found = dict(descriptions(build_schema(EXPORT)))
        # All kinds are looked at.
        assert {
            "Query.usage(from:)",
            "RecordUsageInput.amount",
            "ErrorCode.INVALID_INPUT",
            "UserError.code",
            "RecordUsageResult",
            "BigInt",
        } <= set(found)
        assert [coordinate for coordinate, description in found.items() if not (description or "").strip()] == []

    def test_every_description_is_ours_and_is_made_of_sentences(self) -> None:
        found = {coordinate: description or "" for coordinate, description in descriptions(build_schema(EXPORT))}
        # Strawberry describes the scalars it brings along, in words of its own.
        assert [
            coordinate
            for coordinate, description in found.items()
            if "isoformat" in description or "ECMA-404" in description
        ] == []
        assert [coordinate for coordinate, description in found.items() if not description.endswith(".")] == []

    def test_every_list_is_of_edges_or_has_a_bound_of_its_own(self) -> None:
        lists = {
            f"{type_.name}.{name}"
            for type_ in our_types(build_schema(EXPORT))
            if isinstance(type_, GraphQLObjectType)
            for name, field in type_.fields.items()
            if is_list_type(get_nullable_type(field.type)) and name != "edges"
        }
        assert lists == set(BOUNDED_LISTS)

    def test_no_field_repeats_the_name_of_its_type_but_one_that_is_the_callers(self) -> None:
        repeating = {
            f"{name}.{field}"
            for name, type_ in build_schema(EXPORT).type_map.items()
            for field in getattr(type_, "fields", {})
            if field.lower().startswith(name.lower())
        }
        assert repeating == {"Hold.holdId"}


class TestMutations:
    def mutations(self) -> dict[str, Any]:
        mutation = build_schema(EXPORT).mutation_type
        assert mutation is not None
        return {name: field for name, field in mutation.fields.items() if name != BATCH}

    def test_a_batch_answers_a_list_of_what_one_event_answers(self) -> None:
        mutation = build_schema(EXPORT).mutation_type
        assert mutation is not None
        field = mutation.fields[BATCH]
        assert str(field.type) == "[RecordUsageResult!]"
        assert {name: str(each.type) for name, each in field.args.items()} == {"input": "[RecordUsageInput!]!"}

    def test_every_field_is_nullable_and_answers_a_union(self) -> None:
        """So that one field's fault never hides what another has committed."""
        for name, field in self.mutations().items():
            assert isinstance(field.type, GraphQLUnionType), name
            assert field.type.name == f"{name[0].upper()}{name[1:]}Result"

    @pytest.mark.slow
    def test_one_document_selects_every_field_of_every_member_without_an_alias(self) -> None:
        document = whole_document(schema._schema)
        assert merging_errors(schema._schema, document) == []
        # It would be seen if a field had the name of another member's, and another type.
        other = build_schema(EXPORT.replace("  firstEntry: LedgerEntry\n", "  available: LedgerEntry\n"))
        errors = merging_errors(other, whole_document(other))
        assert errors
        assert all(error.startswith("Fields 'available' conflict because they return") for error in errors)
        # Or where one may be null and the other may not.
        other = build_schema(EXPORT.replace("  firstEntry: LedgerEntry\n", "  billingMeter: BillingMeter\n"))
        assert merging_errors(other, whole_document(other))

    def test_every_union_is_one_success_and_refusals(self) -> None:
        for name, field in self.mutations().items():
            success, *refused = field.type.types
            assert success.name == f"{name[0].upper()}{name[1:]}Success"
            assert [interface.name for interface in success.interfaces] == []
            assert refused
            for refusal in refused:
                assert [interface.name for interface in refusal.interfaces] == ["UserError"], refusal.name
                assert {"code", "message"} <= set(refusal.fields)

    def test_every_argument_is_one_required_input(self) -> None:
        for name, field in self.mutations().items():
            assert {argument: str(each.type) for argument, each in field.args.items()} == {
                "input": f"{name[0].upper()}{name[1:]}Input!"
            }


class TestRefusals:
    def test_the_table_shows_every_refusal_of_the_domain(self) -> None:
        assert set(refusals._TABLE) == set(leaves(domain.Refusal))

    def test_each_is_shown_by_the_type_of_its_name_and_under_its_own_code(self) -> None:
        shown = {refusal.__name__: shown_by.__name__ for refusal, (shown_by, _) in refusals._TABLE.items()}
        assert shown == {name: name for name in shown}
        codes = [ErrorCode(refusal.code) for refusal in refusals._TABLE]
        assert len(set(codes)) == len(codes)

    def test_each_is_a_member_of_a_mutation_s_union(self) -> None:
        mutation = build_schema(EXPORT).mutation_type
        assert mutation is not None
        unions = [field.type for name, field in mutation.fields.items() if name != BATCH]
        members = {member.name for union in unions for member in union.types}
        assert {refusal.__name__ for refusal in refusals._TABLE} == {
            member for member in members if not member.endswith("Success")
        }


class TestChanges:
    @pytest.mark.slow
    def test_nothing_changed_since_the_export(self) -> None:
        assert changes_between(EXPORT, schema.as_str()) == []

    @pytest.mark.slow
    @pytest.mark.parametrize(("older", "severity"), CHANGES.values(), ids=CHANGES)
    def test_each_change_is_as_severe_as_it_is_for_clients(self, older: str, severity: str) -> None:
        assert [change.severity for change in changes_between(older, schema.as_str())] == [severity]

    @pytest.mark.slow
    def test_breaking_changes_come_first_and_each_is_reported_in_words(self) -> None:
        built = build_schema(EXPORT)
        query: Any = built.type_map["Query"]
        policy: Any = built.type_map["OverLimitPolicy"]
        del query.fields["viewer"]
        del policy.values["PARTIAL"]
        older = print_schema(built).replace("type Viewer {", "type Viewer { gone: String")
        assert changes_between(older, schema.as_str()) == [
            Change("breaking", "Field Viewer.gone was removed."),
            Change("dangerous", "Enum value OverLimitPolicy.PARTIAL was added."),
            Change("safe", "Field Query.viewer was added."),
        ]

    @pytest.mark.slow
    def test_what_is_deprecated_is_safe_and_reported_with_its_reason(self) -> None:
        deprecated = (
            with_other_text(
                "  disabledReason: String\n", '  disabledReason: String @deprecated(reason: "All of it.")\n'
            )
            .replace("  FORCE\n", '  FORCE @deprecated(reason: "Use PARTIAL.")\n')
            .replace("    after: String\n", '    after: String @deprecated(reason: "Use before.")\n', 1)
            .replace("  reason: String!\n\n", '  reason: String @deprecated(reason: "Nobody reads it.")\n\n')
        )
        assert changes_between(EXPORT.replace("  reason: String!\n\n", "  reason: String\n\n"), deprecated) == [
            Change("safe", "AutoRefill.requests(after:) was deprecated: Use before."),
            Change("safe", "OverLimitPolicy.FORCE was deprecated: Use PARTIAL."),
            Change("safe", "VoidUsageInput.reason was deprecated: Nobody reads it."),
            Change("safe", "WebhookEndpoint.disabledReason was deprecated: All of it."),
        ]
        assert changes_between(deprecated, deprecated) == []
        reworded = deprecated.replace("Use PARTIAL.", "Use REJECT.")
        assert changes_between(deprecated, reworded) == [
            Change("safe", "OverLimitPolicy.FORCE was deprecated: Use REJECT.")
        ]

    @pytest.mark.slow
    def test_removing_what_was_deprecated_breaks_clients_all_the_same(self) -> None:
        older = with_other_text(
            "type Viewer {", 'type Viewer { gone: String @deprecated(reason: "Nobody asks for it.")'
        )
        assert changes_between(older, schema.as_str()) == [Change("breaking", "Field Viewer.gone was removed.")]

    @pytest.mark.parametrize("text", ["", "{", "type Query { a: Missing }", "type A { a: Int } type A { a: Int }"])
    def test_what_is_no_schema_is_refused(self, text: str) -> None:
        with pytest.raises((GraphQLSyntaxError, TypeError)):
            changes_between(text, schema.as_str())


@pytest.mark.parametrize(
    ("type_", "row_class"), [(BillingMeter, BillingMeterRow), (Customer, CustomerRow), (LedgerEntry, LedgerEntryRow)]
)
def test_each_field_without_a_resolver_is_an_attribute_of_the_record(type_: Any, row_class: Any) -> None:
    fields = get_object_definition(type_, strict=True).fields
    private = {field.name for field in dataclasses.fields(type_)} - {field.python_name for field in fields}
    assert {field.python_name for field in fields if field.is_basic_field} <= set(dir(row_class))
    assert private <= set(row_class._fields)
