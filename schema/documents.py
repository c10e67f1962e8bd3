"""Documents: parsed and validated once, then run as often as they are asked for."""

from dataclasses import dataclass
from functools import lru_cache

from graphql import DocumentNode, GraphQLError, parse, validate

from schema.root import schema

#: How many of the documents that requests bring along are kept.
KEPT_DOCUMENTS = 256

#: The longest document that is kept, in characters: parsed, it takes a hundred times its text.
LONGEST_KEPT = 16 * 1024

#: How many errors of one document are told.
MOST_ERRORS = 20


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """A document that is valid in the schema, ready to be run."""

    node: DocumentNode


def document_of(text: str) -> Document | list[GraphQLError]:
    """Return the document, or what is wrong with it. One that was asked for lately is not parsed again."""
    return _kept(text) if len(text) <= LONGEST_KEPT else prepare(text)


def prepare(text: str) -> Document | list[GraphQLError]:
    """Parse and validate a document, and return it, or what is wrong with it."""
    try:
        node = parse(text)
    except GraphQLError as error:
        return [error]
    # Strawberry has no other name for the schema of graphql-core.
    return validate(schema._schema, node, max_errors=MOST_ERRORS) or Document(node)  # noqa: SLF001


_kept = lru_cache(maxsize=KEPT_DOCUMENTS)(prepare)
