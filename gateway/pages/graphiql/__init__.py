"""GraphiQL, the explorer: the page `/` and its files, which `make graphiql` builds from `source/` into `assets/`.

The page asks no origin but the gateway's, and its policy lets it run nothing but these files. It is served without a
key: what it shows, it asks of `/graphql` with the key that its user enters.
"""

import gzip
import hashlib
import mimetypes
import re
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.demo import read_key

if TYPE_CHECKING:
    from gateway.services import Services

ASSETS = Path(__file__).with_name("assets")

#: What browsers let the page do. Its editor, Monaco, makes style sheets as it goes and has images in its own.
POLICY = (
    "default-src 'none'; script-src 'self'; worker-src 'self'; connect-src 'self'; font-src 'self'; "
    "img-src 'self' data:; style-src 'self' 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-resource-policy": "same-origin",
}

#: What a proxy adds to a request that it passes on, for itself or for its sender.
_OF_PROXIES = re.compile(r"x-forwarded-.+|forwarded|via|x-real-ip", re.ASCII)

_LOOPBACK_HOST = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\])(?::[0-9]+)?", re.ASCII | re.IGNORECASE)


def routes() -> list[Route]:
    """Return the routes of the page. Its files are read once, packed as they are kept."""
    page = (ASSETS / "index.html").read_bytes()
    packed = {file.name.removesuffix(".gz"): file.read_bytes() for file in ASSETS.glob("*.gz")}

    async def index(request: Request) -> Response:
        # It names the files of this release, so a browser asks each time whether it is still the same.
        etag = f'"{hashlib.sha256(page).hexdigest()[:16]}"'
        return _found(request, page, etag=etag, media_type="text/html", cache="no-cache")

    async def asset(request: Request) -> Response:
        name = request.path_params["name"]
        body = packed.get(name)
        if body is None:
            raise HTTPException(404)
        headers = {"vary": "accept-encoding"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["content-encoding"] = "gzip"
        else:
            body = gzip.decompress(body)
        return _found(
            request,
            body,
            # The name has a digest of the content. Packed or not, it is the same file: the tag is a weak one.
            etag=f'W/"{name}"',
            media_type=mimetypes.guess_type(name)[0] or "application/octet-stream",
            cache="public, max-age=31536000, immutable",
            headers=headers,
        )

    return [Route("/", index), Route("/graphiql/config.json", config_json), Route("/graphiql/{name}", asset)]


async def config_json(request: Request) -> Response:
    """Answer the demo's key to the page that the demo itself serves, and null to everybody else."""
    services: Services = request.app.state.services
    settings = services.settings
    key = read_key(settings) if settings.is_demo and _is_our_page(request) else None
    return JSONResponse({"demoKey": key or None}, headers=_HEADERS | {"cache-control": "no-store"})


def _is_our_page(request: Request) -> bool:
    """Return whether a browser on this machine asks for the page that it got from here.

    A page of another site can make a browser ask too: directly, which the browser says in its headers, or under a
    name of its own that leads to loopback, which the name shows. And a proxy on this machine asks for others, wherever
    they are, which it says in a header of its own, or by a version of HTTP that no browser speaks.
    """
    headers = request.headers
    return (
        request.client is not None
        and request.client.host in {"127.0.0.1", "::1"}
        and _LOOPBACK_HOST.fullmatch(headers.get("host", "")) is not None
        and "origin" not in headers
        and request.scope["http_version"] != "1.0"
        and not any(map(_OF_PROXIES.fullmatch, headers.keys()))
        and headers.get("sec-fetch-site", "same-origin") == "same-origin"
    )


def _found(
    request: Request, body: bytes, *, etag: str, media_type: str, cache: str, headers: dict[str, str] | None = None
) -> Response:
    known = [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]
    headers = _HEADERS | {"cache-control": cache, "etag": etag} | (headers or {})
    if etag in known:
        return Response(None, 304, headers)
    return Response(body, 200, headers, media_type)
