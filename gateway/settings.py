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
from urllib.parse import urlencode

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from resolvers.bounds import Bounds
from resolvers.webhooks.signing import read_key

PREFIX = "TOLLGATE_"

#: A token that can be guessed shows what the gateway does.
_SHORTEST_TOKEN = 16

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}

_MAX_PORT = 65_535

#: A number has no more digits, leading zeros among them.
_MAX_DIGITS = 20

#: The longest that the URL of a database may let connecting take.
_MAX_CONNECT_SECONDS = 3_600

#: How a URL is written whose password could be taken for something else.
_ENCODED = "in a user and a password, write @ as %40, : as %3A, / as %2F and % as %25"

#: The modes of TLS, which libpq and the driver share.
_TLS_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

#: The kinds of servers that the driver can look for among several.
_SESSION_ATTRIBUTES = ("any", "primary", "standby", "prefer-standby", "read-write", "read-only")

_PARAMETER = re.compile("[a-z_]{1,40}", re.ASCII)

#: What Kubernetes sets for each Service of a namespace, `tollgate` and `tollgate-…` among them, in every container.
_OF_SERVICE = re.compile(
    r"TOLLGATE_([A-Z0-9_]+_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)",
    re.ASCII,
)
_ADDRESS_OF_SERVICE = re.compile(r"(tcp|udp|sctp)://")

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
    """Return the URL as the drivers take it.

    Raises `ValueError`, whose message says what the URL must be. It quotes nothing of the text before the parameters,
    because any of that may be a part of the password.
    """
    text = text.strip()
    try:
        url = make_url(text)
    except ArgumentError:
        url = None
    except ValueError:
        raise ValueError(f"must name the port by a number from 1 to {_MAX_PORT}; {_ENCODED}") from None
    if url is None or url.drivername not in _DRIVERS:
        raise ValueError("must be a URL sqlite+aiosqlite:///FILE or postgresql+asyncpg://USER:PASSWORD@HOST/NAME")
    if "\0" in f"{url.username}{url.password}{url.host}{url.database}":
        raise ValueError("must not contain %00")
    url = url.set(drivername=_DRIVERS[url.drivername])
    if url.drivername == "sqlite+aiosqlite":
        return _sqlite_url(url)
    # What follows an @ of the password would be taken for the host.
    if text.count("@") > (url.username is not None):
        raise ValueError(f"has an @ that does not end the password; {_ENCODED}")
    return _postgresql_url(url)


def _sqlite_url(url: URL) -> str:
    if url.host or url.username or url.port:
        raise ValueError("must have three slashes before a relative path, and four before an absolute one")
    if url.query:
        raise ValueError(f"must have no parameters when it names an SQLite file, and has {_quoted(min(url.query))}")
    if url.database in {None, "", ":memory:"}:
        raise ValueError("must name a file: SQLite in memory would be one database a connection, and gone with it")
    return url.render_as_string(hide_password=False)


def _postgresql_url(url: URL) -> str:
    """Translate what libpq and hosting providers name otherwise than the driver, and refuse what it does not have."""
    _check_host(url)
    parameters: dict[str, str] = {}
    in_dsn: dict[str, str] = {}
    for name, value in url.query.items():
        if not isinstance(value, str):
            raise ValueError(f"has a parameter {_quoted(name)} more than once")  # noqa: TRY004  # It is the URL's fault.
        if name not in _PARAMETERS:
            raise ValueError(f"has a parameter {_quoted(name)}, which is not known; known are {', '.join(_PARAMETERS)}")
        drivers_name, rule, is_kept = _PARAMETERS[name]
        if not is_kept(value):
            raise ValueError(f"has a parameter {name}, which {rule}")
        if drivers_name is None:
            in_dsn[name] = value
        elif drivers_name:
            parameters[drivers_name] = value
    if parameters.get("timeout") == "0":  # To libpq, it is then not set.
        del parameters["timeout"]
    if in_dsn:
        parameters["dsn"] = f"postgresql:?{urlencode(in_dsn)}"
    return url.set(query=parameters).render_as_string(hide_password=False)


def _check_host(url: URL) -> None:
    if url.port is not None and not 1 <= url.port <= _MAX_PORT:
        raise ValueError(f"must name the port by a number from 1 to {_MAX_PORT}")
    try:
        (url.host or "").encode("idna")
    except UnicodeError:
        raise ValueError("must name a host, and a part of its name is empty or too long") from None


def _is_number(least: int, most: int) -> Callable[[str], bool]:
    # Python refuses to read thousands of digits.
    return lambda text: text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS and least <= int(text) <= most


#: The parameters of a PostgreSQL URL, by libpq's names: the driver's own name, None for what it takes in a URL of its
#: own form alone, or nothing; and, where there is one, the rule that the value keeps.
_PARAMETERS: dict[str, tuple[str | None, str | None, Callable[[str], bool]]] = {
    **{
        name: ("ssl", f"must be one of {', '.join(_TLS_MODES)}", _TLS_MODES.__contains__) for name in ("sslmode", "ssl")
    },
    "connect_timeout": (
        "timeout",
        f"must be whole seconds up to {_MAX_CONNECT_SECONDS}",
        _is_number(0, _MAX_CONNECT_SECONDS),
    ),
    "channel_binding": (
        "",
        "may be disable or prefer: the driver binds no channels. Take it out; sslmode=verify-full verifies the server",
        ("disable", "prefer").__contains__,
    ),
    **dict.fromkeys(
        ("sslrootcert", "sslcert", "sslkey", "sslcrl"), (None, "must name a file that is there", os.path.isfile)
    ),
    "port": ("port", f"must be a number from 1 to {_MAX_PORT}", _is_number(1, _MAX_PORT)),
    **dict.fromkeys(
        ("options", "sslnegotiation", "sslpassword", "ssl_min_protocol_version", "ssl_max_protocol_version"),
        (None, None, bool),
    ),
    "target_session_attrs": (
        "target_session_attrs",
        f"must be one of {', '.join(_SESSION_ATTRIBUTES)}",
        _SESSION_ATTRIBUTES.__contains__,
    ),
    **{name: (name, None, bool) for name in ("host", "passfile", "service", "servicefile", "krbsrvname", "gsslib")},
}


def _quoted(name: str) -> str:
    """Return the name of a parameter: of one that looks like none only that, because it may be a secret."""
    return repr(name) if _PARAMETER.fullmatch(name) else "that is no name"


def _whole_number(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not _is_number(least, most)(text):
            raise ValueError(f"must be a whole number from {least} to {most}")
        return int(text)

    return read


def _one_of(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return text

    return read


def _host(text: str) -> str:
    """Return the address; one of IPv6 may be in brackets, as in a URL."""
    return text[1:-1] if text.startswith("[") and text.endswith("]") else text


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
    return None if text == "none" else text


def _token_or_none(text: str) -> str | None:
    if text == "none":
        return None
    if len(text) < _SHORTEST_TOKEN or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(f"must be none, or at least {_SHORTEST_TOKEN} characters of ASCII without a space")
    return text


def _key_or_none(text: str) -> bytes | None:
    return None if text == "none" else read_key(text)


def _setting(default: Any, read: Callable[[str], Any], *, is_secret: bool = False) -> Any:
    return field(default=default, metadata={"read": read}, repr=not is_secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What can be set. The name of a setting is that of its field, in capitals and after `TOLLGATE_`."""

    database_url: str = _setting("sqlite+aiosqlite:///./tollgate.db", database_url, is_secret=True)
    host: str = _setting("127.0.0.1", _host)
    port: int = _setting(8000, _whole_number(1, _MAX_PORT))
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
    max_answer_values: int = _setting(1_000_000, _whole_number(1_000, 1_000_000_000))
    max_answer_bytes: int = _setting(83_886_080, _whole_number(100_000, 1_073_741_824))
    # What the API promises its clients, the next six, may be lowered and not raised: no client is to rely on more.
    max_page_rows: int = _setting(100, _whole_number(1, 100))
    max_nodes: int = _setting(100, _whole_number(1, 100))
    max_batch_events: int = _setting(1_000, _whole_number(1, 1_000))
    max_range_days: int = _setting(366, _whole_number(30, 366))
    max_usage_names: int = _setting(100, _whole_number(1, 100))
    max_usage_days: int = _setting(10_000, _whole_number(366, 10_000))
    max_request_usage_days: int = _setting(200_000, _whole_number(10_000, 1_000_000))
    max_request_entries: int = _setting(20_000, _whole_number(101, 1_000_000))
    max_live_grants: int = _setting(1_000, _whole_number(1, 1_000))
    max_open_holds: int = _setting(1_000, _whole_number(1, 100_000))
    max_waiting_events: int = _setting(20_000, _whole_number(1_000, 1_000_000))
    introspection: str = _setting("all", _one_of("all", "keys", "sandbox", "none"))
    max_in_flight: int = _setting(256, _whole_number(1, 100_000))
    request_seconds: int = _setting(30, _whole_number(1, 3_600))
    max_connections: int = _setting(4_000, _whole_number(1, 100_000))
    max_head_bytes: int = _setting(32_768, _whole_number(1_024, 1_048_576))
    max_headers: int = _setting(100, _whole_number(10, 10_000))
    head_seconds: int = _setting(10, _whole_number(1, 3_600))
    body_seconds: int = _setting(20, _whole_number(1, 3_600))
    max_unread_bytes: int = _setting(134_217_728, _whole_number(1_048_576, 17_179_869_184))
    answer_seconds: int = _setting(30, _whole_number(1, 3_600))
    keep_alive_seconds: int = _setting(75, _whole_number(1, 3_600))
    graphiql: str = _setting("auto", _one_of("auto", "on", "off"))
    demo: str = _setting("off", _one_of("on", "off"))
    cors_origins: tuple[str, ...] = _setting((), _origins)
    documents: str | None = _setting(None, _file_or_none)
    trusted_only: str = _setting("off", _one_of("on", "off"))
    demo_key_file: str = _setting("tollgate-demo.key", str)
    log_level: str = _setting("info", _one_of("debug", "info", "warning", "error"))
    log_format: str = _setting("auto", _one_of("auto", "json", "text"))
    metrics_token: str | None = _setting(None, _token_or_none, is_secret=True)
    metrics_folder: str | None = _setting(None, _file_or_none)
    tracing: str = _setting("off", _one_of("on", "off"))
    secrets_key: bytes | None = _setting(None, _key_or_none, is_secret=True)
    webhook_private_addresses: str = _setting("off", _one_of("on", "off"))

    @property
    def bounds(self) -> Bounds:
        """What of these the rooms below need: how much one request may ask for."""
        return Bounds(**{each.name: getattr(self, f"max_{each.name}") for each in fields(Bounds)})

    @property
    def is_traced(self) -> bool:
        """Whether requests are reported to a collector of OpenTelemetry."""
        return self.tracing == "on"

    @property
    def has_private_webhooks(self) -> bool:
        """Whether webhooks may be sent to addresses of this machine and of private networks, and without TLS."""
        return self.webhook_private_addresses == "on"

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
            if not variable.startswith(PREFIX) or _is_of_service(variable, text):
                continue
            if variable not in readers:
                # The beginning, which all have, makes nothing alike.
                near = difflib.get_close_matches(variable.removeprefix(PREFIX).upper(), _names_of(cls), n=1, cutoff=0.7)
                hint = f"; did you mean {PREFIX}{near[0]}?" if near else ""
                raise BadSetting(f"{variable} is not a setting{hint}")
            if not text:  # Is not set: so do compose files and shells leave out what has no value.
                continue
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


def _names_of(settings: type[Settings]) -> list[str]:
    return [each.name.upper() for each in fields(settings)]


def _is_of_service(variable: str, text: str) -> bool:
    """Whether Kubernetes, or a link of Docker, has set the variable, for a service that is named like this program."""
    return _OF_SERVICE.fullmatch(variable) is not None or (
        variable.endswith("_PORT") and _ADDRESS_OF_SERVICE.match(text) is not None
    )


def passed_over(environment: Mapping[str, str] | None = None) -> str | None:
    """Return a warning of what of the environment looks like a setting and is not read as one, if there is any."""
    environment = os.environ if environment is None else environment
    ours = {variable: text for variable, text in environment.items() if variable.startswith(PREFIX)}
    warnings = []
    if of_service := sorted(variable for variable, text in ours.items() if _is_of_service(variable, text)):
        warnings.append(
            f"{', '.join(of_service)} {'are' if len(of_service) > 1 else 'is'} not read as a setting: a Service named "
            "tollgate sets such variables. Name it otherwise, or set enableServiceLinks: false in the pod."
        )
    if ours.get(variable_of("database_url")) == "":
        warnings.append(f"{variable_of('database_url')} is empty: the default is used, {Settings().database_url}.")
    return " ".join(warnings) or None


def variable_of(name: str) -> str:
    """Return the environment's name of a setting."""
    return PREFIX + name.upper()
