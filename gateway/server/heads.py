"""What the head of a request must be beyond what the parser checks: RFC 9110 and RFC 9112."""

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import AddressValueError, IPv6Address

Headers = Sequence[tuple[bytes, bytes]]

#: Why a request is refused, as `gateway/telemetry/requests.py` names it, and the message.
Refusal = tuple[str, str]

#: A host's name has at most 255 characters, and a port 5 digits.
_MAX_HOST_BYTES = 261

#: `uri-host [":" port]` of RFC 3986: an IPv6 address in brackets, or a name or IPv4 address.
_HOST = re.compile(rb"(?:\[([0-9A-Fa-f:.]+)\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+)(?::[0-9]{0,5})?")

#: The target as proxies send it: the whole URL.
_ABSOLUTE = re.compile(rb"https?://([^/?#]+)(/[^?#]*)?(\?[^#]*)?", re.IGNORECASE)


def refusal_of(version: str, headers: Headers) -> Refusal | None:
    """Return why a request of this version with these headers is refused; None: it is not. Names are in lower case."""
    if version != "1.1" and not version.startswith("1."):
        return "VERSION_NOT_SUPPORTED", "The request line must end in HTTP/1.1: no other major version is served."
    found = dict(headers)
    host = found.get(b"host")
    if host is None:
        if version != "1.0":
            return "MALFORMED", "A request of HTTP/1.1 must have the header Host."
    elif len(found) < len(headers) and [name for name, _ in headers].count(b"host") > 1:
        return "MALFORMED", "The header Host must be sent once."
    elif host and not is_host(host):
        return "MALFORMED", "The header Host must be a host and, if need be, a colon and a port."
    return _refusal_of_codings(version, headers) if b"transfer-encoding" in found else None


def _refusal_of_codings(version: str, headers: Headers) -> Refusal | None:
    if version == "1.0":
        return "MALFORMED", "A request of HTTP/1.0 must not have the header Transfer-Encoding."
    values = b",".join([value for name, value in headers if name == b"transfer-encoding"])
    *others, last = [coding.strip(b" \t").lower() for coding in values.split(b",")]
    if last != b"chunked" or last in others:
        return "MALFORMED", "Transfer-Encoding must end in chunked, and have it once."
    if others:
        return "CODING_NOT_SUPPORTED", "Transfer-Encoding must be chunked alone."
    return None


def origin_form(method: bytes, target: bytes) -> bytes | None:
    """Return the path and query of a request's target; None: it is no target of this method."""
    if target.startswith(b"/"):
        return target if b"#" not in target else None
    if target == b"*":
        return target if method == b"OPTIONS" else None
    match = _ABSOLUTE.fullmatch(target)
    if match is None or not is_host(match[1]):
        return None
    return (match[2] or b"/") + (match[3] or b"")


def is_host(value: bytes) -> bool:
    """Return whether this is a host, with or without a port."""
    return len(value) <= _MAX_HOST_BYTES and _is_host(value)


@lru_cache(maxsize=256)
def _is_host(value: bytes) -> bool:
    match = _HOST.fullmatch(value)
    if match is None:
        return False
    if match[1] is not None:
        try:
            IPv6Address(match[1].decode())
        except AddressValueError:
            return False
    return True
