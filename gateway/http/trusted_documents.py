"""Trusted documents: those of a manifest, which requests name by their ids.

The manifest is a JSON object, from the id of each document to its text: what the client preset of `@graphql-codegen`
writes with `persistedDocuments`.
"""

from pathlib import Path
from typing import Any

from gateway.settings import Settings
from resolvers.values import parse_json
from schema.engine.documents import Document
from schema.engine.faults import shortened
from schema.engine.limits.document import Limits
from schema.root import engine


class BadManifest(Exception):
    """A manifest that cannot be served; the message names the file, and by its id each document that is at fault."""


class DocumentRefused(Exception):
    """A request for a document that is not run here; the message and the code are for the client."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


class TrustedDocuments:
    """The documents of the settings' manifest, each parsed and validated once. Raises `BadManifest`.

    They are held to the same `limits` as those that requests bring.
    """

    def __init__(self, settings: Settings) -> None:
        self.limits = limits_of(settings)
        self._is_only = settings.is_trusted_only
        self._documents = None if settings.documents is None else _read(settings.documents, self.limits)

    @property
    def operation_names(self) -> list[str]:
        """The names of all operations in them."""
        return [name for document in (self._documents or {}).values() for name in document.operation_names()]

    def asked_for(self, request: dict[str, Any]) -> Document | str:
        """Return the document that the fields of a request name, or the text that they bring. Raises `DocumentRefused`.

        The fields have a `query`, a `documentId`, or what `persisted_id` finds.
        """
        documents = self._documents or {}
        if request.get("query") is not None:
            if self._is_only:
                raise DocumentRefused(
                    "Only trusted documents are run here: name one by documentId.", code="BAD_USER_INPUT"
                )
            text: str = request["query"]
            return text
        document_id: str | None = request.get("documentId")
        if document_id is not None:
            found = documents.get(document_id)
            if found is None:
                message = shortened(f"There is no trusted document {document_id!r}.")
                raise DocumentRefused(message, code="PERSISTED_QUERY_NOT_FOUND")
            return found
        # The clients that name a document so know the two messages below.
        if self._documents is None:
            raise DocumentRefused("PersistedQueryNotSupported", code="PERSISTED_QUERY_NOT_SUPPORTED")
        named = persisted_id(request) or ""
        # A manifest names its hashes `sha256:`; a field that is called so need not.
        found = documents.get(named) or documents.get(f"sha256:{named}")
        if found is None:
            raise DocumentRefused("PersistedQueryNotFound", code="PERSISTED_QUERY_NOT_FOUND")
        return found


def limits_of(settings: Settings) -> Limits:
    """Return the limits of one request's document."""
    return Limits(
        tokens=settings.max_tokens,
        depth=settings.max_depth,
        fields=settings.max_fields,
        aliases=settings.max_aliases,
        directives=settings.max_directives,
        fragments=settings.max_fragments,
        list_items=settings.max_list_items,
        cost=settings.max_cost,
        answer_values=settings.max_answer_values,
        answer_bytes=settings.max_answer_bytes,
        introspection=settings.introspection,
        bounds=settings.bounds,
    )


def persisted_id(request: dict[str, Any]) -> str | None:
    """Return the id that the clients of Apollo and urql name a document by."""
    persisted = (request.get("extensions") or {}).get("persistedQuery")
    named = persisted.get("sha256Hash") if isinstance(persisted, dict) else None
    return named if isinstance(named, str) else None


def _read(file: str, limits: Limits) -> dict[str, Document]:
    try:
        manifest = parse_json(Path(file).read_bytes())
    except OSError as error:
        raise BadManifest(f"{file} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise BadManifest(f"{file} must be JSON in UTF-8: {error}") from None
    if not isinstance(manifest, dict):
        raise BadManifest(f"{file} must be a JSON object, from the id of each document to its text.")
    documents, problems = {}, []
    for document_id, text in manifest.items():
        prepared = engine.prepare(text, limits, is_trusted=True) if isinstance(text, str) else None
        if prepared is None:
            problems.append(f"{document_id}: The document must be a string.")
        elif isinstance(prepared, Document):
            documents[document_id] = prepared
        else:
            problems += [f"{document_id}: {error['message']}" for error in prepared]
    if problems:
        raise BadManifest("\n".join([f"{file} has documents that cannot be run.", *problems]))
    return documents
