"""What is hostile: documents that are short to send and long to prepare or to run, broken JSON, bad values."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from graphql import (
    GraphQLArgument,
    GraphQLInputField,
    GraphQLInputType,
    get_introspection_query,
    get_named_type,
    is_composite_type,
    is_enum_type,
    is_input_object_type,
    is_list_type,
    is_non_null_type,
)

from schema.root import schema

#: Most are refused; the small ones are within the limits, and cost no more than others.
DEEP = (10, 30, 60, 1_000, 20_000)
WIDE = (101, 300, 1_000, 5_000, 20_000)
CHAINS = (5, 10, 14, 30, 60, 99, 500)


def bombs() -> Iterator[str]:
    """Yield them all."""
    for levels in DEEP:
        yield from deep(levels)
    for count in WIDE:
        yield from wide(count)
    for count in CHAINS:
        yield from fragments(count)
    for width, levels in ((2, 5), (2, 12), (3, 7), (10, 2), (30, 3)):
        yield f'{{ node(id: "x") {{ ... on LedgerEntry {{ {same(width, levels)} }} }} }}'
    yield from costly()
    yield from introspecting()
    yield from long()


def deep(levels: int) -> Iterator[str]:
    """Yield what lies within each other."""
    around = "customer { billingMeters { nodes { "
    yield '{ node(id: "x") { ... on BillingMeter { ' + around * levels + "id" + " } } }" * levels + " } } }"
    yield "{ viewer " * levels + "{ orgId }" + " }" * levels
    yield "{ customers(filter: " + "{a: " * levels + "1" + "}" * levels + ") { nodes { id } } }"
    yield "{ nodes(ids: " + "[" * levels + "1" + "]" * levels + ") { id } }"
    yield "query ($a: " + "[" * levels + "Int" + "]" * levels + ") { viewer { orgId } }"
    yield "{ " + "... { " * levels + "viewer { orgId }" + " }" * levels + " }"
    yield "{" * levels
    yield "{ a" * levels


def wide(count: int) -> Iterator[str]:
    """Yield what stands beside each other."""
    each = range(count)
    yield f"{{ {meters(count, 'id')} }}"
    yield f"{{ {meters(count, 'usage { day } ledger { nodes { id } }')} }}"
    yield f"{{ {' '.join(f'a{n}: __typename' for n in each)} }}"
    yield "{ " + "viewer { orgId } " * count + "}"
    yield "{ viewer { " + "orgId " * count + "} }"
    yield "{ " + 'customer(id: "x") { id } ' * count + "}"
    yield "{ " + "... { viewer { orgId } } " * count + "}"
    yield "{ " + " ".join(f"unknown{n}" for n in each) + " }"
    yield "{ viewer " + "@skip(if: false) " * count + "{ orgId } }"
    yield "{ viewer { " + "orgId @include(if: true) " * count + "} }"
    yield "{ viewer " + " ".join(f"@unknown{n}" for n in each) + " { orgId } }"
    yield "{ viewer(" + " ".join(f"a{n}: 1" for n in each) + ") { orgId } }"
    yield "{ nodes(ids: [" + '"x" ' * count + "]) { id } }"
    yield "query (" + " ".join(f"$v{n}: ID" for n in each) + ") { viewer { orgId } }"
    yield " ".join(f"query Q{n} {{ viewer {{ orgId }} }}" for n in each)
    yield " ".join(f"fragment F{n} on Query {{ viewer {{ orgId }} }}" for n in each) + "{ ...F0 }"
    yield "{ " + " ".join(f"...F{n}" for n in each) + " }"
    yield f"mutation {{ {' '.join(f'a{n}: {REFILL}' for n in each)} }}"
    yield "#\n" * count + "{ viewer { orgId } }"


def fragments(count: int) -> Iterator[str]:
    """Yield what is written out from fragments to far more than its text."""
    yield "{ ...F0 }" + chain(count, lambda after: f"{after} {after}")
    yield "{ ...F0 }" + chain(count, lambda after: f"{after} {after}", last="")
    yield "{ ...F0 }" + chain(count, lambda after: f"... {{ {after} }} ... {{ {after} }}")
    yield "{ ...F0 }" + chain(count, lambda after: f"viewer {{ orgId }} {after}")
    yield "{ ...F0 }" + chain(count, lambda after: f"{after} @skip(if: false) {after} @include(if: true)")
    yield "{ ...F0 }" + chain(count, lambda after: f"a: viewer {{ orgId }} b: viewer {{ orgId }} {after} {after}")
    all_of_them = " ".join(f"...F{n}" for n in range(count))
    # Each spreads all, itself too.
    yield " ".join(
        [
            f"{{ {all_of_them} }}",
            *(f"fragment F{n} on Query {{ viewer {{ orgId }} {all_of_them} }}" for n in range(count)),
        ]
    )
    # Each operation uses each fragment's variable.
    yield " ".join(
        [
            *(f"query Q{n}($id: ID!) {{ {all_of_them} }}" for n in range(count)),
            *(f"fragment F{n} on Query {{ customer(id: $id) {{ id }} }}" for n in range(count)),
        ]
    )


def costly() -> Iterator[str]:
    """Yield what reads pages of pages."""
    for first in (100, 2**31 - 1):
        pages = f"customers(first: {first}) {{ nodes {{ billingMeters(first: 100) {{ nodes {{ "
        yield f"{{ {pages} ledger(first: 100) {{ nodes {{ id }} }} }} }} }} }} }}"
        yield f'{{ {pages} usage(from: "2025-03-17", to: "2026-03-16") {{ day }} }} }} }} }} }}'
    page = "customers(first: 100) { nodes { billingMeters { nodes { id } } } }"
    yield f"{{ {' '.join(f'a{n}: {page}' for n in range(90))} }}"


def introspecting() -> Iterator[str]:
    """Yield what asks the schema about itself, again and again."""
    yield f"{{ __schema {{ types {{ fields {{ {'type { fields { ' * 8} name {'} } ' * 8} }} }} }} }}"
    yield "{ __schema { types { fields { args { type { fields { args { type { name } } } } } } } } }"
    yield "{ __schema { types { possibleTypes { interfaces { possibleTypes { name } } } } } }"
    yield f"{{ {' '.join(f'a{n}: __schema {{ types {{ fields {{ name }} }} }}' for n in range(100))} }}"
    yield "{ __schema { types " * 50 + "{ name }" + " } }" * 50
    yield get_introspection_query().replace("ofType {", "ofType { kind " * 10, 1)


def long() -> Iterator[str]:
    """Yield what is one long token, or none at all."""
    yield '{ customer(id: "' + "x" * 900_000 + '") { id } }'
    yield '{ customer(id: """' + "\n x" * 250_000 + '""") { id } }'
    yield "," * 900_000 + "{ viewer { orgId } }"
    yield "{ " + "a" * 900_000 + " }"
    yield "{ customers(first: " + "9" * 900_000 + ") { nodes { id } } }"


REFILL = 'refillBillingMeter(input: {workspaceId: "w", externalMeterId: "rich", refill: "-1"}) { __typename }'


def meters(count: int, selection: str) -> str:
    """Return as many fields, of a meter each."""
    names = (f'workspaceId: "w", externalMeterId: "m{n}"' for n in range(count))
    return " ".join(f"a{n}: billingMeter({name}) {{ {selection} }}" for n, name in enumerate(names))


def chain(count: int, body: Callable[[str], str], last: str = "viewer { orgId }") -> str:
    """Return fragments each of which has the next one in its body."""
    texts = [f"fragment F{n} on Query {{ {body(f'...F{n + 1}')} }}" for n in range(count)]
    return " ".join([*texts, f"fragment F{count} on Query {{ {last} }}"])


def same(width: int, levels: int) -> str:
    """Return a selection of the same things again and again, which validation compares with each other."""
    return "id" if levels == 0 else " ".join([f"voids {{ {same(width, levels - 1)} }}"] * width)


_SCHEMA = schema._schema

VIEWER = b'{"query": "{ viewer { orgId } }"}'


def broken_json() -> Iterator[bytes]:
    """Yield what is no JSON, or none in UTF-8."""
    yield from (b"", b" ", b"{", b"}", b"[", b"]", b'"', b"'", b"query", b"{query}", b"{'query': 1}", b'{"query"}')
    yield from (b'{"query":}', b'{"query": "a",}', b'{"query": "a"}}', b'{"query": "a"} {}', b"{,}", b"[,]", b"[1,]")
    yield from (b"nul", b"NaN", b"Infinity", b"-", b"01", b"1.", b".5", b"1e", b"+1", b"0x10", b"1e999999", b"tru")
    yield from (b'"\\u12"', b'"\\x"', b'"\\ud800"', b'{"query": "\\udfff"}', b'"\xff"')
    yield from (b"\xff\xfe{\0}\0", b"\xef\xbb\xbf{}")
    yield from (b'{"query": "\x00"}', b'{"query": "\n"}', b'"\xed\xa0\x80"', b'"\xc0\xaf"', b'"\xf8\x88\x80\x80\x80"')
    yield from (b"[" * 100_000, b'{"a":' * 100_000, b"[" * 500_000 + b"]" * 500_000)
    yield b'{"a":' * 50_000 + b"1" + b"}" * 50_000
    yield from (b"// comment\n{}", b"/* */ {}", b"{} // comment", b"\0", b"\0" * 1_000, b"1" * 400_000 + b".")
    for cut in range(1, len(VIEWER), 3):
        yield VIEWER[:cut]


def other_json() -> Iterator[bytes]:
    """Yield JSON that is no GraphQL request."""
    values: tuple[Any, ...] = (
        None,
        True,
        0,
        -1,
        1.5,
        10**30,
        "",
        "query",
        [],
        {},
        [{}],
        [[]],
        {"query": None},
        {"id": 1},
        ["{}"],
    )
    for value in values:
        yield json.dumps(value).encode()
    for name in ("query", "variables", "operationName", "extensions", "documentId"):
        for value in (True, 0, -1, 1.5, 10**30, [], [1], "", {}, "x"):
            is_good = isinstance(value, {"query": str, "operationName": str, "documentId": str}.get(name, dict))
            if not is_good:
                yield json.dumps({"query": "{ viewer { orgId } }", name: value}).encode()
    yield json.dumps({"query": "{ viewer { orgId } }", "documentId": "x"}).encode()
    yield b"9" * 900_000
    yield b"[" + b"1," * 400_000 + b"1]"


#: What an argument of any type is given: of another type, empty, too long, out of range, of other scripts, no text.
BAD_VALUES: list[Any] = [
    *(None, True, 0, -1, 1, 1.5, 101, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64, 10**40, -(2**63), 1e300),
    *("", " ", "0", "-1", "+1", "1.0", "1e5", "0x1", "\u0661\u0662", "\uff11", "9" * 20, "9" * 5_000, "null", "NaN"),
    *("x" * 300, "x" * 20_000, "\0", "a\0b", "\ud800", "\udfff", "\u202e", "\ufeff", "b" * 43, "%", "_", "' OR 1=1 --"),
    *(
        "2026-02-30",
        "2026-W10-1",
        "\u0662\u0660\u0662\u0666-01-01",
        "2026-03-16T12:00:00",
        "Europe/Atlantis",
        "a@b",
        "@",
    ),
    *("9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", "../../etc/passwd"),
    *("cus_000000000000000000000000", "mtr_000000000000000000000000", "ent_000000000000000000000000_1"),
    *([], [None], [[]], [1], ["x"] * 2_000, {}, {"a": 1}, {"": None}, {"\0": "\0"}, [{}]),
]


def requests_with_bad_values(*, share: int) -> Iterator[bytes]:
    """Yield a request for each argument of each field, and for each field of its input, with each bad value.

    With a `share` of 4, a place has every fourth of the values, and the next place the others in turn.
    All others are well-formed, and name a meter and a customer that do not exist: nothing of theirs can change.
    """
    for kind, root in (("query", _SCHEMA.query_type), ("mutation", _SCHEMA.mutation_type)):
        assert root is not None
        for name, definition in root.fields.items():
            selection = " { __typename }" if is_composite_type(get_named_type(definition.type)) else ""
            declared = ", ".join(f"${argument}: {given.type}" for argument, given in definition.args.items())
            passed = ", ".join(f"{argument}: ${argument}" for argument in definition.args)
            if not declared:
                continue
            document = f"{kind} ({declared}) {{ {name}({passed}){selection} }}"
            usual = {argument: usual_value(argument, given) for argument, given in definition.args.items()}
            for number, place in enumerate(places(usual)):
                for each, value in enumerate(BAD_VALUES):
                    if each % share != number % share:
                        continue
                    variables = replaced(usual, place, value)
                    yield json.dumps({"query": document, "variables": variables}).encode()
                    # Each literal is a document of its own, which takes longer: every place has some of the values.
                    if each // share % 5 == number % 5 and "\\ud" not in json.dumps(value):
                        literals = ", ".join(f"{argument}: {literal(given)}" for argument, given in variables.items())
                        yield json.dumps({"query": f"{kind} {{ {name}({literals}){selection} }}"}).encode()


def usual_value(name: str, given: GraphQLArgument | GraphQLInputField) -> Any:
    """Return a well-formed value of an argument."""
    return of_type(name, given.type)


def of_type(name: str, type_: GraphQLInputType) -> Any:
    if is_non_null_type(type_):
        return of_type(name, type_.of_type)
    if is_list_type(type_):
        return [of_type(name, type_.of_type)]
    if is_input_object_type(type_):
        # What may not stand together, or would do without the rest, is left out.
        return {each: usual_value(each, field) for each, field in type_.fields.items() if each != "removeSpendCap"}
    if is_enum_type(type_):
        return next(iter(type_.values))
    by_name = {"first": 1, "last": None, "after": None, "before": None, "email": "ada@example.com", "timezone": "UTC"}
    by_type = {"Int": 3_600, "Boolean": False, "BigInt": "1", "JSON": {}, "Date": "2026-03-16"}
    by_type |= {"DateTime": "2026-03-16T12:00:00Z", "ID": "cus_000000000000000000000000", "String": "nobody"}
    return by_name[name] if name in by_name else by_type[str(type_)]


def places(usual: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield where a value stands, of all that stand anywhere."""
    inside = usual.items() if isinstance(usual, dict) else enumerate(usual) if isinstance(usual, list) else ()
    for name, value in inside:
        yield (*path, name)
        yield from places(value, path=(*path, name))


def replaced(usual: Any, place: tuple[str | int, ...], value: Any) -> Any:
    """Return the values with another one at a place."""
    if not place:
        return value
    copy = usual.copy()
    copy[place[0]] = replaced(usual[place[0]], place[1:], value)
    return copy


def literal(value: Any, name: str = "") -> str:
    """Return the value as a literal."""
    if isinstance(value, dict):
        # What is no name is none of a field's either.
        return "{" + ", ".join(f"{each or 'empty'}: {literal(inner, each)}" for each, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(literal(inner, name) for inner in value) + "]"
    # An enum's value is written without quotes.
    return "REJECT" if (name, value) == ("policy", "REJECT") else json.dumps(value)
