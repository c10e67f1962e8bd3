"""A loader: it gathers the keys that a request's fields ask for into one statement."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Loader(Generic[K, V]):
    """Loads the values of keys by a function that takes many of them.

    The function returns a value or an exception for each key, in their order. It differs from the usual data loader in
    a caller may have many keys, and waits once for all of them. Where one caller at a time is all there is, it need not
    gather: then a caller's keys are fetched at once.
    """

    def __init__(self, fetch: Callable[[list[K]], Awaitable[Sequence[V | Exception]]], *, gathers: bool = True) -> None:
        self._fetch = fetch
        self._gathers = gathers
        self._groups: dict[K, _Group[K, V]] = {}
        self._gathering: _Group[K, V] | None = None

    async def load(self, key: K) -> V:
        """Return the key's value, or raise its exception."""
        (value,) = await self.load_many((key,))
        return value

    async def load_many(self, keys: Sequence[K]) -> list[V]:
        """Return the values of the keys, in their order, or raise the first exception among them."""
        missing = [key for key in dict.fromkeys(keys) if key not in self._groups]
        if missing:
            if self._gathering is None or self._gathering.is_sent:
                self._gathering = _Group()
            self._gathering.keys += missing
            self._groups.update(dict.fromkeys(missing, self._gathering))
        asked = [self._groups[key] for key in keys]
        for group in dict.fromkeys(asked):
            await group.load(self._fetch, gathers=self._gathers)
        values = [group.values[key] for group, key in zip(asked, keys, strict=True)]
        for value in values:
            if isinstance(value, Exception):
                raise value
        return values  # type: ignore[return-value]  # No exception is among them.

    def clear(self) -> None:
        """Forget what was loaded."""
        self._groups = {}
        self._gathering = None


class _Group(Generic[K, V]):
    """Keys whose values are fetched together: by the first caller who waits for them, while the others wait for it."""

    def __init__(self) -> None:
        self.keys: list[K] = []
        self.is_sent = False
        self.values: dict[K, V | Exception] = {}
        self._is_loaded = False
        self._is_loading = False
        self._waiters: list[asyncio.Future[None]] = []

    async def load(self, fetch: Callable[[list[K]], Awaitable[Sequence[V | Exception]]], *, gathers: bool) -> None:
        """Return when the values are there, whichever caller fetches them."""
        while not self._is_loaded:
            if self._is_loading:
                waiter = asyncio.get_running_loop().create_future()
                self._waiters.append(waiter)
                await waiter
                continue
            self._is_loading = True
            try:
                if gathers:
                    # Whatever else of the request is ready to run may add keys: what runs now, and what that starts.
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                await self._load(fetch)
            finally:
                # Where this caller was cancelled, the next one fetches.
                self._is_loading = False
                for waiter in self._waiters:
                    if not waiter.done():
                        waiter.set_result(None)
                self._waiters.clear()

    async def _load(self, fetch: Callable[[list[K]], Awaitable[Sequence[V | Exception]]]) -> None:
        self.is_sent = True
        try:
            self.values = dict(zip(self.keys, await fetch(self.keys), strict=True))
        except Exception as error:  # noqa: BLE001  # Each field that asked for a key raises it.
            self.values = dict.fromkeys(self.keys, error)
        self._is_loaded = True
