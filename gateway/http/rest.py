"""The REST operations that the domain is known by: the same keys, resolvers and rules as GraphQL's, in frozen shapes.

`openapi.json` beside this file describes them. An amount is a string of digits in and out, and a refill a JSON integer.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from datetime import date, timedelta
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import orjson
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.http.auth import authenticate
from gateway.http.messages import JSON, HTTPProblem, read_json
from resolvers.context import Context
from resolvers.customers.customers import NewCustomer, create_customer
from resolvers.errors import AlreadyExists, BillingError, Forbidden, InvalidInput, Unauthenticated, Unavailable
from resolvers.meters.create import create_billing_meter
from resolvers.meters.names import meter_name
from resolvers.meters.refill import refill_billing_meter
from resolvers.meters.settings import NewBillingMeter
from resolvers.reading.keys import UsageOfMeter
from resolvers.reading.usage import usage_days
from resolvers.values import MAX_AMOUNT, MAX_EXACT, day_of, parse_amount, parse_day
from schema.scalars import write_instant
from storage.customers import CustomerRow
from storage.engine.database import Outcome
from storage.meters.billing_meters import BillingMeterRow

if TYPE_CHECKING:
    from gateway.services import Services

#: What the rules name as the GraphQL API spells it, and these operations otherwise.
_SPELLED = {"externalId": "external_id", "idempotencyKey": "Idempotency-Key"}

#: A string of structured fields (RFC 9651): printable ASCII in double quotes, with a backslash before `"` and itself.
_QUOTED = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')
_ESCAPED = re.compile(r"\\(.)")

#: The fields of a body or a query string: the argument that each becomes, and how its value is read.
_Readers = dict[str, tuple[str, Callable[[Any], Any]]]


def problem_of(error: BillingError) -> HTTPProblem:
    """Return the status and the message by which an error is answered outside of GraphQL."""
    if isinstance(error, Unauthenticated):
        return HTTPProblem(401, error.message, code=error.code, headers={"www-authenticate": "Bearer"})
    if isinstance(error, Forbidden):
        return HTTPProblem(403, error.message, code=error.code)
    if isinstance(error, Unavailable):
        # What may have been written must not be repeated by a client that does so by itself.
        headers = {"retry-after": "1"} if error.outcome is Outcome.NOT_WRITTEN else None
        return HTTPProblem(503, error.message, code=error.code, headers=headers, outcome=error.outcome.value)
    message = error.message
    if isinstance(error, AlreadyExists):
        message += f" Its id is {error.existing_id}."
    if isinstance(error, InvalidInput):
        for name, spelled in _SPELLED.items():
            message = message.replace(name, spelled)
    return HTTPProblem(400, message, code=error.code)


class CustomerBilling(HTTPEndpoint):
    """One billing meter, by its names."""

    async def get(self, request: Request) -> Response:
        """Answer the meter of these names, or null."""
        context = await _context(request)
        names = _read(_query(request), _NAMES, required=_NAMES)
        meter_name(context.actor, **names)
        loaders = context.reading
        context.actor.require_workspace(names["workspace_id"])
        row = await loaders.billing_meter_by_names.load((names["workspace_id"], names["external_meter_id"]))
        return _answer({"billing": _billing(row) if row is not None else None})

    async def post(self, request: Request) -> Response:
        """Make a meter."""
        context = await _context(request)
        values = _read(await _body(request), _NAMES | _NEW_BILLING, required=_NAMES)
        key = _idempotency_key(request)
        outcome = await create_billing_meter(context, NewBillingMeter(**values), idempotency_key=key)
        return _answer({"billing": _billing(outcome.billing_meter)})


async def refill(request: Request) -> Response:
    """Add to a meter's total; without a refill, answer the meter unchanged."""
    context = await _context(request)
    values = {"refill": None} | _read(await _body(request), _NAMES | _REFILL, required=_NAMES)
    outcome = await refill_billing_meter(context, **values, idempotency_key=_idempotency_key(request))
    return _answer({"billing": _billing(outcome.billing_meter)})


async def usage(request: Request) -> Response:
    """Answer a meter's usage: of as many days as may be, 366, unless the query says which; none of an unknown meter."""
    context = await _context(request)
    wanted = _read(_query(request), _DAYS)
    most = context.bounds.range_days
    first, last = wanted.get("first"), wanted.get("last")
    if first is not None and last is not None:
        usage_days(first, last, today=date.min, most=most)  # Malformed comes before what the key may do.
    loaders = context.reading
    meter = await loaders.billing_meter_by_id.load(request.path_params["bid"])
    if meter is None:
        return _answer({"data": []})
    today = day_of(context.clock(), meter.timezone)
    if first is None and last is None:
        first = today - timedelta(days=most - 1)
    first, last = usage_days(first, last, today=today, most=most)
    rows = await loaders.usage_of_meter.load(UsageOfMeter(meter.id, first, last, None))
    return _answer(
        {
            "data": [
                {
                    "billingId": row.meter_id,
                    "day": row.day.isoformat(),
                    "totalBillingUsage": str(row.total_usage),
                    "billingUsageName": row.usage_name,
                }
                for row in rows
            ]
        }
    )


async def customers(request: Request) -> Response:
    """Make a customer."""
    context = await _context(request)
    values = _read(await _body(request), _CUSTOMER, required=("email",))
    outcome = await create_customer(context, NewCustomer(**values), idempotency_key=_idempotency_key(request))
    return _answer(_customer(outcome.customer), 201)


async def openapi(_request: Request) -> Response:
    """Answer the description of the operations."""
    return Response(_OPENAPI, media_type=JSON)


def _billing(row: BillingMeterRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "totalCredits": str(row.total_credits),
        "usedCredits": str(row.used_credits),
        "allowOverages": row.allow_overages,
        "spendCap": str(row.spend_cap) if row.spend_cap is not None else None,
        "createdAt": write_instant(row.created_at),
        "updatedAt": write_instant(row.updated_at),
    }


def _customer(row: CustomerRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "org_id": row.org_id,
        "email": row.email,
        "name": row.name,
        "external_id": row.external_id,
        "metadata": row.metadata,
        "environment": row.environment,
        "created_at": write_instant(row.created_at),
        "updated_at": write_instant(row.updated_at),
    }


def _answer(body: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, media_type=JSON)


async def _context(request: Request) -> Context:
    """Return the context of the request's key, which is checked before anything else of the request is read."""
    services: Services = request.app.state.services
    actor = await authenticate(request.scope, services.api_keys)
    return services.context(actor)


async def _body(request: Request) -> dict[str, Any]:
    _read(_query(request), {})
    headers = request.headers
    if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
        message = "The body must be a JSON object; there is none."
        raise HTTPProblem(400, message)
    services: Services = request.app.state.services
    body = await read_json(request.scope, request.receive, max_bytes=services.settings.max_body_bytes)
    if not isinstance(body, dict):
        message = "The body must be a JSON object."
        raise HTTPProblem(400, message)
    return body


def _query(request: Request) -> dict[str, str]:
    parameters = request.query_params.multi_items()
    found = dict(parameters)
    if len(found) < len(parameters):
        [(name, _)] = Counter(name for name, _ in parameters).most_common(1)
        raise HTTPProblem(400, f"{name[:256]!r} must be given once.")
    return found


def _idempotency_key(request: Request) -> str | None:
    found = request.headers.getlist("idempotency-key")
    if len(found) > 1:
        message = "Idempotency-Key must be given once."
        raise HTTPProblem(400, message)
    if not found:
        return None
    try:
        # A header is bytes; Starlette reads them as Latin-1.
        key = found[0].encode("latin-1").decode()
    except UnicodeDecodeError:
        message = "Idempotency-Key must be in UTF-8."
        raise HTTPProblem(400, message) from None
    if not key.startswith('"'):
        return key
    # As the draft of the IETF for this header writes it: the same key as without the quotes.
    quoted = _QUOTED.fullmatch(key)
    if quoted is None:
        message = (
            "Idempotency-Key begins with a double quote, so it must end with one, and have between them printable "
            'ASCII, with a backslash before each " and each backslash.'
        )
        raise HTTPProblem(400, message)
    return _ESCAPED.sub(r"\1", quoted[1])


def _read(given: Mapping[str, Any], readers: _Readers, *, required: Collection[str] = ()) -> dict[str, Any]:
    """Return the arguments that the fields become. Raises `HTTPProblem`, which names the field and the rule."""
    for name in given:
        if name not in readers:
            known = f"known are {', '.join(readers)}" if readers else "nothing is"
            raise HTTPProblem(400, f"{name[:256]!r} is not known here; {known}.")
    values: dict[str, Any] = {}
    for name, (argument, read) in readers.items():
        if name not in given:
            if name in required:
                raise HTTPProblem(400, f"{name} is required.")
            continue
        try:
            values[argument] = read(given[name])
        except ValueError as error:
            raise HTTPProblem(400, f"{name} is refused: {error}") from None
    return values


def _a(kind: type, what: str) -> Callable[[object], Any]:
    """Return a reader that lets only values of this kind pass."""

    def read(value: object) -> Any:
        if not isinstance(value, kind):
            raise ValueError(f"It must be {what}.")  # noqa: TRY004  # As the domain's own readers do.
        return value

    return read


_text = _a(str, "a string")


def _or_null(read: Callable[[object], Any]) -> Callable[[object], Any]:
    return lambda value: None if value is None else read(value)


def _amount(value: object) -> int:
    try:
        return parse_amount(value if isinstance(value, str) else None)
    except ValueError:
        raise ValueError(f"An amount is a string of ASCII digits, from 0 to {MAX_AMOUNT}.") from None


def _refill_amount(value: object) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or not 0 <= value <= MAX_EXACT:
        raise ValueError(
            f"A refill is a JSON integer, from 1 to {MAX_EXACT}, as many clients round greater ones: "
            "GraphQL takes those as strings."
        )
    return value


_NAMES: _Readers = {"workspaceId": ("workspace_id", _text), "externalMeterId": ("external_meter_id", _text)}
_NEW_BILLING: _Readers = {
    "totalCredits": ("total_credits", _amount),
    "allowOverages": ("allow_overages", _a(bool, "true or false")),
    "spendCap": ("spend_cap", _amount),
}
_REFILL: _Readers = {"refill": ("refill", _refill_amount)}
_DAYS: _Readers = {"from": ("first", parse_day), "to": ("last", parse_day)}
_CUSTOMER: _Readers = {
    "email": ("email", _text),
    "name": ("name", _or_null(_text)),
    "external_id": ("external_id", _or_null(_text)),
    "metadata": ("metadata", _or_null(_a(dict, "an object"))),
}

_OPENAPI = files("gateway").joinpath("openapi.json").read_bytes()

ROUTES = [
    Route("/api/v1/customer-billing", CustomerBilling),
    Route("/api/v1/customer-billing/refill", refill, methods=["POST"]),
    Route("/api/v1/usage/{bid}", usage, methods=["GET"]),
    Route("/v1/customers", customers, methods=["POST"]),
    Route("/openapi.json", openapi, methods=["GET"]),
]
