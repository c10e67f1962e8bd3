"""Names resolved to addresses that webhooks may be sent to."""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

from resolvers.webhooks.addresses import is_allowed

#: How many names are resolved at once. A name whose server does not answer takes one for up to half a minute.
NAMES_AT_ONCE = 32


class AddressRefused(OSError):
    """One of the addresses of a name is not allowed."""


class CheckedNames(AbstractResolver):
    """Resolves a name when it is connected to; the connection then goes to one of the addresses that were checked."""

    def __init__(self, *, allows_private: bool) -> None:
        self._allows_private = allows_private
        self._threads = ThreadPoolExecutor(NAMES_AT_ONCE, "webhook-names")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of the name. Raises `AddressRefused` where any of them is not allowed, and `OSError`."""
        look_up = partial(socket.getaddrinfo, host, port, family=family, type=socket.SOCK_STREAM)
        found: list[Any] = await asyncio.get_running_loop().run_in_executor(self._threads, look_up)
        addresses = {str(sockaddr[0]): kind for kind, _, _, _, sockaddr in found}
        if not all(is_allowed(address, allows_private=self._allows_private) for address in addresses):
            raise AddressRefused
        return [
            ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=socket.AI_NUMERICHOST)
            for address, kind in addresses.items()
        ]

    async def close(self) -> None:
        """End the threads, once they have done what they are about."""
        self._threads.shutdown(wait=False, cancel_futures=True)
