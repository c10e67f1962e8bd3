"""The settings: the sole reader of the environment.

Every setting is one variable `TOLLGATE_…`, described in `docs/settings.md`. An unknown or bad one is refused by its
name.
"""

import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from resolvers.bounds import Bounds

PREFIX = "TOLLGATE_"

#: Whoever can guess the token reads what the gateway does.
_SHORTEST_TOKEN = 16

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}

_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
}


#: An origin as browsers send it: a scheme, a host and, where it is not the scheme's own, a port.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?", re.ASCII)
_DEFAULT_PORTS = re.compile(r"http://.*:80|https://.*:443", re.ASCII)


class BadSetting(Exception):
    """A setting that is unknown, or whose value breaks its rule; the message begins with its name."""


def database_url(text: str) -> str:
    """Return the URL as the drivers take it. Raises `ValueError`, whose message tells what it must be."""
    try:
        url = make_url(text)
    except ArgumentError:
        url = None
    if url is None or url.drivername not in _DRIVERS:
        raise ValueError("must be a URL sqlite+aiosqlite:///FILE or postgresql+asyncpg://USER:PASSWORD@HOST/NAME")
    url = url.set(drivername=_DRIVERS[url.drivername])
    if "sslmode" in url.query:
        # As libpq and hosting providers name it; the driver's own name is shorter.
        url = url.difference_update_query(["sslmode"]).update_query_dict({"ssl": url.query["sslmode"]})
    if url.drivername == "sqlite+aiosqlite" and (url.database in {None, "", ":memory:"} or "uri" in url.query):
        raise ValueError("must name a file: SQLite in memory would be one database a connection, and gone with it")
    return url.render_as_string(hide_password=False)


def _whole_number(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return int(text)

    return read


def _not_empty(text: str) -> str:
    if not text:
        raise ValueError("must not be empty")
    return text


def _one_of(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return text

    return read


def _origins(text: str) -> tuple[str, ...]:
    """Return the origins; one that no browser sends is refused, because it would silently allow nobody."""
    if text == "none":
        return ()
    origins = tuple(origin.strip() for origin in text.split(","))
    for origin in origins:
        if _ORIGIN.fullmatch(origin) is None or _DEFAULT_PORTS.fullmatch(origin) is not None:
            raise ValueError(
                "must be none, or origins with commas between them, each as a browser sends it: scheme://host or "
                f"scheme://host:port, in lower case, without a path, a * or the scheme's own port; {origin!r} is not"
            )
    return origins


def _file_or_none(text: str) -> str | None:
    return None if text == "none" else _not_empty(text)


def _token_or_none(text: str) -> str | None:
    if text == "none":
        return None
    if len(text) < _SHORTEST_TOKEN or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(f"must be none, or at least {_SHORTEST_TOKEN} characters of ASCII without a space")
    return text


def _setting(default: Any, read: Callable[[str], Any], *, is_secret: bool = False) -> Any:
    return field(default=default, metadata={"read": read}, repr=not is_secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What can be set. The name of a setting is that of its field, in capitals and after `TOLLGATE_`."""

    database_url: str = _setting("sqlite+aiosqlite:///./tollgate.db", database_url, is_secret=True)
    host: str = _setting("127.0.0.1", _not_empty)
    port: int = _setting(8000, _whole_number(1, 65_535))
    workers: int = _setting(1, _whole_number(1, 64))
    pool_size: int = _setting(8, _whole_number(2, 1_000))
    wait_seconds: int = _setting(10, _whole_number(1, 300))
    drain_seconds: int = _setting(0, _whole_number(0, 300))
    max_body_bytes: int = _setting(1_048_576, _whole_number(1_024, 104_857_600))
    max_tokens: int = _setting(5_000, _whole_number(100, 1_000_000))
    max_depth: int = _setting(20, _whole_number(3, 50))
    max_fields: int = _setting(1_000, _whole_number(10, 100_000))
    max_aliases: int = _setting(100, _whole_number(0, 10_000))
    max_directives: int = _setting(100, _whole_number(0, 10_000))
    max_fragments: int = _setting(100, _whole_number(0, 10_000))
    max_list_items: int = _setting(1_000, _whole_number(1, 100_000))
    max_cost: int = _setting(100_000, _whole_number(1, 100_000_000))
    # What the API promises its clients, the next six, may be lowered and not raised: no client is to rely on more.
    max_page_rows: int = _setting(100, _whole_number(1, 100))
    max_nodes: int = _setting(100, _whole_number(1, 100))
    max_batch_events: int = _setting(1_000, _whole_number(1, 1_000))
    max_range_days: int = _setting(366, _whole_number(30, 366))
    max_usage_names: int = _setting(100, _whole_number(1, 100))
    max_usage_days: int = _setting(10_000, _whole_number(366, 10_000))
    max_request_usage_days: int = _setting(200_000, _whole_number(10_000, 1_000_000))
    max_request_entries: int = _setting(20_000, _whole_number(101, 1_000_000))
    max_waiting_events: int = _setting(20_000, _whole_number(1_000, 1_000_000))
    introspection: str = _setting("all", _one_of("all", "keys", "sandbox", "none"))
    max_in_flight: int = _setting(256, _whole_number(1, 100_000))
    request_seconds: int = _setting(30, _whole_number(1, 3_600))
    max_connections: int = _setting(4_000, _whole_number(1, 100_000))
    max_head_bytes: int = _setting(32_768, _whole_number(1_024, 1_048_576))
    max_headers: int = _setting(100, _whole_number(10, 10_000))
    head_seconds: int = _setting(10, _whole_number(1, 3_600))
    body_seconds: int = _setting(20, _whole_number(1, 3_600))
    answer_seconds: int = _setting(30, _whole_number(1, 3_600))
    keep_alive_seconds: int = _setting(75, _whole_number(1, 3_600))
    graphiql: str = _setting("auto", _one_of("auto", "on", "off"))
    demo: str = _setting("off", _one_of("on", "off"))
    cors_origins: tuple[str, ...] = _setting((), _origins)
    documents: str | None = _setting(None, _file_or_none)
    trusted_only: str = _setting("off", _one_of("on", "off"))
    demo_key_file: str = _setting("tollgate-demo.key", _not_empty)
    log_level: str = _setting("info", _one_of("debug", "info", "warning", "error"))
    log_format: str = _setting("auto", _one_of("auto", "json", "text"))
    metrics_token: str | None = _setting(None, _token_or_none, is_secret=True)
    metrics_folder: str | None = _setting(None, _file_or_none)
    tracing: str = _setting("off", _one_of("on", "off"))

    @property
    def bounds(self) -> Bounds:
        """What of these the rooms below are told: how much one request may ask for."""
        return Bounds(**{each.name: getattr(self, f"max_{each.name}") for each in fields(Bounds)})

    @property
    def is_traced(self) -> bool:
        """Whether requests are told to a collector of OpenTelemetry."""
        return self.tracing == "on"

    @property
    def is_trusted_only(self) -> bool:
        """Whether only the documents of the manifest are run."""
        return self.trusted_only == "on"

    @classmethod
    def read(cls, environment: Mapping[str, str] | None = None) -> "Settings":
        """Return the settings that the environment makes, the process's own by default. Raises `BadSetting`."""
        environment = os.environ if environment is None else environment
        readers = {variable_of(each.name): each for each in fields(cls)}
        values = {}
        for variable, text in environment.items():
            if not variable.startswith(PREFIX):
                continue
            if variable not in readers:
                close = difflib.get_close_matches(variable, readers, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise BadSetting(f"{variable} is not a setting{hint}")
            try:
                values[readers[variable].name] = readers[variable].metadata["read"](text)
            except ValueError as error:
                raise BadSetting(f"{variable} {error}") from None
        return cls(**values)

    @property
    def is_loopback(self) -> bool:
        """Whether it listens to this machine alone."""
        return self.host in _LOOPBACK

    @property
    def is_demo(self) -> bool:
        """Whether the demo organization is served."""
        return self.demo == "on"

    @property
    def has_graphiql(self) -> bool:
        """Whether GraphiQL is served: unless it is said, where only this machine can see it."""
        return self.graphiql == "on" or (self.graphiql == "auto" and self.is_loopback)


def variable_of(name: str) -> str:
    """Return the environment's name of a setting."""
    return PREFIX + name.upper()
