"""Where webhooks may be sent: the rules of a URL when an endpoint is made, and of an address when it is connected to.

A name is resolved when it is connected to, and not before, as what it answers may change. Then all of its addresses
must be allowed, and the connection goes to one of those that were looked at.
"""

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from resolvers.errors import InvalidInput

#: The maximum number of characters of a URL.
MAX_URL = 2_048

_MAX_HOST = 253
_MAX_PORT = 65_535

_URL = re.compile(
    r"(?P<scheme>[a-z]+)://(?P<host>\[[0-9a-f:.]+\]|[a-z0-9_-]+(?:\.[a-z0-9_-]+)*)(?::(?P<port>[1-9][0-9]{0,4}))?"
    r"(?:/[!$-;=?-\[\]_a-z~]*)?(?:\?[!$-;=?-\[\]_a-z~/]*)?",
    re.ASCII | re.IGNORECASE,
)

#: What a last label looks like that programs take for a part of an IPv4 address, by whichever of its spellings.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII | re.IGNORECASE)


def _networks(*texts: str) -> tuple[IPv4Network, ...]:
    return tuple(map(IPv4Network, texts))


#: The IPv4 addresses of a machine's own and of private networks.
_PRIVATE_IPV4 = _networks("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")

#: Those that are nobody's on the internet, by IANA's registry: also where private ones are allowed. 169.254 is where
#: clouds give credentials to whatever asks.
_SPECIAL_IPV4 = _networks(
    *("0.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15"),
    *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
)

_LOOPBACK_IPV6, _UNIQUE_LOCAL = IPv6Address("::1"), IPv6Network("fc00::/7")

#: All addresses of IPv6 on the internet, and those among them that are nobody's.
_GLOBAL_IPV6 = IPv6Network("2000::/3")
_SPECIAL_IPV6 = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "3fff::/20")))

#: Where an IPv6 address ends in one of IPv4 that it stands for: mapped, compatible, and translated by NAT64.
_ENDS_IN_IPV4 = tuple(map(IPv6Network, ("::ffff:0:0/96", "::/96", "64:ff9b::/96")))

_TEREDO = IPv6Network("2001::/32")

#: What the last half of an address begins with whose end is one of IPv4: ISATAP.
_ISATAP = frozenset((0x0000_5EFE, 0x0200_5EFE))


def is_allowed(address: str, *, allows_private: bool) -> bool:
    """Whether a webhook may be sent to the address, which is written as `ipaddress` does."""
    if "%" in address:  # It is of one network interface, and so link-local.
        return False
    parsed = ip_address(address)
    if isinstance(parsed, IPv6Address):
        return _is_allowed_ipv6(parsed, allows_private=allows_private)
    return _is_allowed_ipv4(parsed, allows_private=allows_private)


def _is_allowed_ipv4(address: IPv4Address, *, allows_private: bool) -> bool:
    if any(address in network for network in _SPECIAL_IPV4):
        return False
    return allows_private or not any(address in network for network in _PRIVATE_IPV4)


def _is_allowed_ipv6(address: IPv6Address, *, allows_private: bool) -> bool:
    if address == _LOOPBACK_IPV6 or address in _UNIQUE_LOCAL:
        return allows_private
    within = _ipv4_within(address)
    if not all(_is_allowed_ipv4(each, allows_private=allows_private) for each in within):
        return False
    if within and address not in _GLOBAL_IPV6:
        return True
    if address in _TEREDO:
        return True
    return address in _GLOBAL_IPV6 and not any(address in network for network in _SPECIAL_IPV6)


def _ipv4_within(address: IPv6Address) -> Sequence[IPv4Address]:
    """Return the addresses of IPv4 that what is sent to the address goes to, or is passed on by."""
    last = IPv4Address(int(address) & 0xFFFF_FFFF)
    if any(address in network for network in _ENDS_IN_IPV4):
        return [last]
    if address.sixtofour is not None:
        return [address.sixtofour]
    if address.teredo is not None:
        return address.teredo
    return [last] if (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP else []


def check_url(url: str, *, allows_private: bool) -> None:
    """Hold the URL of an endpoint against its rules. Raises `InvalidInput`.

    It is `https:`, has a host name or an allowed address in its usual spelling, and neither credentials nor a fragment.
    Where private addresses are allowed, so is `http:`.
    """
    if len(url) > MAX_URL:
        raise InvalidInput("url", f"must have at most {MAX_URL} characters; it has {len(url)}.")
    match = _URL.fullmatch(url)
    if match is None:
        raise InvalidInput(
            "url",
            "must be https://HOST/PATH of ASCII characters, as a browser would send it: without credentials, a "
            "fragment, spaces or backslashes; a host name of other characters is written as xn--….",
        )
    scheme, host, port = match["scheme"].lower(), match["host"].lower(), match["port"]
    if scheme != "https" and not (allows_private and scheme == "http"):
        raise InvalidInput("url", "must begin with https://.")
    if port is not None and int(port) > _MAX_PORT:
        raise InvalidInput("url", f"must name the port by a number from 1 to {_MAX_PORT}.")
    _check_host(host, allows_private=allows_private)


def _check_host(host: str, *, allows_private: bool) -> None:
    is_ipv6 = host.startswith("[")
    if not is_ipv6 and _NUMBER.fullmatch(host.rpartition(".")[2]) is None:
        _check_name(host, allows_private=allows_private)
        return
    try:
        address = str(IPv6Address(host[1:-1]) if is_ipv6 else IPv4Address(host))
    except ValueError:
        raise InvalidInput("url", "must have an IP address in its usual spelling, such as 192.0.2.1.") from None
    if not is_allowed(address, allows_private=allows_private):
        raise InvalidInput("url", f"must have a public address; {address} is none.")


def _check_name(name: str, *, allows_private: bool) -> None:
    if len(name) > _MAX_HOST or max(map(len, name.split("."))) > 63:  # noqa: PLR2004  # DNS's own limit of a label.
        raise InvalidInput("url", "must have a host name that DNS may have: a part of it is too long.")
    if name.rpartition(".")[2] == "localhost" and not allows_private:
        raise InvalidInput("url", "must have a public address; localhost is none.")
