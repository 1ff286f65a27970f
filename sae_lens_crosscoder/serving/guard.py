"""Who may ask: the token of the address, and the Host header, which a page of another site cannot choose."""

import hmac
import ipaddress
from collections.abc import Iterable
from urllib.parse import parse_qs

from sae_lens_crosscoder.serving.errors import RequestError

Headers = Iterable[tuple[bytes, bytes]]
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def validate_access(headers: Headers, query: bytes, *, token: str, host: str) -> None:
    """Raise a RequestError unless a request names this server and has its token.

    Args:
        headers: names and values as they arrive.
        query: the part of the address after `?`.
        token: sent as `Authorization: Bearer TOKEN`, or as `?token=TOKEN`.
        host: the address that the server listens on.
    """
    values = [(name.lower(), value.decode("latin-1")) for name, value in headers]
    hosts = [value for name, value in values if name == b"host"]
    if len(hosts) != 1 or not is_known_host(hosts[0], host):
        shown = hosts[0] if len(hosts) == 1 else None
        raise RequestError(
            403, f"The Host header {shown!r:.80} does not name this server: use its own address.", "Host"
        )
    sent = [value for name, value in values if name == b"authorization"]
    given = sent[0].removeprefix("Bearer ") if sent else parse_qs(query.decode("latin-1")).get("token", [""])[0]
    if not hmac.compare_digest(given.encode("utf-8", "surrogatepass"), token.encode()):
        raise RequestError(401, "The token is missing or wrong: open the address that the server printed.", "token")


def is_known_host(header: str, host: str) -> bool:
    """True if a Host header names a server that listens on `host`.

    A site that points its own name at this machine (DNS rebinding) is known by that name. So only names of loopback
    pass where the server listens there; elsewhere its own name and every number pass, which no site can own.

    >>> is_known_host("127.0.0.1:8000", "127.0.0.1"), is_known_host("evil.example:8000", "127.0.0.1")
    (True, False)
    """
    name = header.strip().lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    if name in _LOOPBACK or name == host.lower():
        return True
    return not is_loopback(host) and _is_number(name)


def is_loopback(host: str) -> bool:
    """True if a server that listens there cannot be reached from other machines."""
    return host == "localhost" or (_is_number(host) and ipaddress.ip_address(host).is_loopback)


def _is_number(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
