"""`tollgate webhooks listen`: for development, what a gateway sends, printed as it comes."""

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.console import err, fail, out, print_json
from gateway.cli.options import AsJson

_CREATE = """mutation ($input: CreateWebhookEndpointInput!) { createWebhookEndpoint(input: $input) {
  ... on CreateWebhookEndpointSuccess { endpoint { id } secret } ... on UserError { message } } }"""

_DELETE = """mutation ($input: DeleteWebhookEndpointInput!) { deleteWebhookEndpoint(input: $input) {
  ... on UserError { message } } }"""


def listen(
    gateway: Annotated[str, typer.Option(help="Where the gateway is.", metavar="URL")] = "http://127.0.0.1:8000",
    key_file: Annotated[
        Path, typer.Option(help="A file with a key that has webhooks:write and billing:read.", metavar="FILE")
    ] = Path("tollgate-demo.key"),
    type_: Annotated[
        list[str] | None,
        typer.Option("--type", help="What to print: ALERT_TRIGGERED. May be repeated; all by default."),
    ] = None,
    workspace: Annotated[
        list[str] | None, typer.Option(help="Whose events. May be repeated; of all workspaces by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print what a gateway on this machine sends, until it is interrupted.

    It makes a webhook endpoint at an address of this machine, checks each signature, and removes the endpoint at the
    end. The gateway needs TOLLGATE_WEBHOOK_PRIVATE_ADDRESSES=on.
    """
    try:
        key = key_file.read_text("ascii").strip()
    except (OSError, UnicodeError) as error:
        fail(f"{key_file} cannot be read: {getattr(error, 'strerror', None) or 'it has no key'}", code=2)
    wanted: dict[str, Any] = {"types": [each.upper().replace(".", "_") for each in type_ or ()]}
    if workspace:
        wanted["workspaceIds"] = workspace
    wanted["description"] = "tollgate webhooks listen"
    asyncio.run(_listen(gateway.rstrip("/"), key, wanted, _printer(as_json=as_json)))


#: Takes the id of what came, whether it is signed as it must be, and its body.
_Print = Callable[[str, bool, Any], None]


def _printer(*, as_json: bool) -> _Print:
    def show(event_id: str, is_signed: bool, body: Any) -> None:
        if as_json:
            print_json({"id": event_id, "isSigned": is_signed, "body": body})
            return
        word = "signed" if is_signed else "NOT SIGNED AS IT MUST BE"
        event_type = body.get("type") if isinstance(body, dict) else None
        out.print(f"{event_type} {event_id} ({word})", highlight=False, markup=False)
        out.print_json(data=body)

    return show


async def _listen(gateway: str, key: str, wanted: dict[str, Any], show: _Print) -> None:
    from aiohttp import ClientError, ClientSession, web
    from standardwebhooks import Webhook, WebhookVerificationError

    secrets: list[str] = []

    async def receive(request: web.Request) -> web.Response:
        text = await request.text()
        try:
            body = Webhook(secrets[0]).verify(text, dict(request.headers))
            is_signed = True
        except (WebhookVerificationError, ValueError, IndexError):
            body, is_signed = text, False
        show(request.headers.get("webhook-id", ""), is_signed, body)
        return web.Response(status=204 if is_signed else 401)

    async def call(session: ClientSession, query: str, values: dict[str, Any]) -> dict[str, Any]:
        """Return what the mutation answers. Ends the command where the gateway does not answer, or refuses it."""
        try:
            async with session.post(
                f"{gateway}/graphql",
                json={"query": query, "variables": {"input": values}},
                headers={"Authorization": f"Bearer {key}"},
            ) as response:
                answer = await response.json(content_type=None)
        except (ClientError, OSError, ValueError):
            fail(f"The gateway at {gateway} does not answer.")
        if errors := answer.get("errors"):
            fail(f"The gateway refuses it: {errors[0]['message']}")
        (field,) = answer["data"].values()
        if "message" in field:
            hint = " Set TOLLGATE_WEBHOOK_PRIVATE_ADDRESSES=on for it." if field["message"].startswith("url ") else ""
            fail(f"The gateway refuses it: {field['message']}{hint}")
        result: dict[str, Any] = field
        return result

    application = web.Application()
    application.router.add_post("/", receive)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        async with ClientSession() as session:
            made = await call(session, _CREATE, wanted | {"url": f"http://127.0.0.1:{port}/"})
            secrets.append(made["secret"])
            endpoint_id = made["endpoint"]["id"]
            try:
                err.print(f"Listening as {endpoint_id}. Interrupt it to end.", highlight=False)
                await _interrupted()
            finally:
                await call(session, _DELETE, {"id": endpoint_id})
                err.print("The endpoint is removed.")
    finally:
        await runner.cleanup()


async def _interrupted() -> None:
    """Wait until the process is asked to end."""
    loop, is_asked = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, is_asked.set)
    await is_asked.wait()
