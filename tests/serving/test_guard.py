"""Laws of access: only this server's own names and its token let a request in."""

import pytest

from sae_lens_crosscoder.serving.errors import RequestError
from sae_lens_crosscoder.serving.guard import is_known_host, is_loopback, validate_access

OWN = (b"host", b"127.0.0.1:8000")


def status(headers, query=b"", host="127.0.0.1"):
    try:
        validate_access(headers, query, token="secret", host=host)
    except RequestError as error:
        return error.status
    return 200


@pytest.mark.parametrize(
    ("headers", "query", "expected"),
    [
        ([OWN, (b"authorization", b"Bearer secret")], b"", 200),
        ([OWN], b"token=secret", 200),
        ([OWN], b"a=b&token=secret", 200),
        ([OWN], b"", 401),
        ([OWN], b"token=", 401),
        ([OWN], b"token=secre", 401),
        ([OWN], b"token=secrets", 401),
        ([OWN], b"token=Secret", 401),
        ([OWN], b"token=wrong&token=secret", 401),
        ([OWN], b"token=%ff%fe", 401),
        ([OWN, (b"authorization", b"Bearer wrong")], b"token=secret", 401),
        ([OWN, (b"authorization", b"\xff")], b"", 401),
        ([], b"token=secret", 403),
        ([OWN, OWN], b"token=secret", 403),
        ([(b"host", b"evil.example:8000")], b"token=secret", 403),
        ([(b"host", b"127.0.0.1.evil.example")], b"token=secret", 403),
        ([(b"host", b"")], b"token=secret", 403),
        ([(b"host", b"\xff\x00")], b"token=secret", 403),
        ([(b"host", b"evil.example")], b"", 403),
    ],
)
def test_only_the_token_at_the_servers_own_name_gets_in(headers, query, expected):
    assert status(headers, query) == expected


@pytest.mark.parametrize(
    ("header", "host", "known"),
    [
        ("localhost", "127.0.0.1", True),
        ("LOCALHOST:1", "127.0.0.1", True),
        ("[::1]:8000", "127.0.0.1", True),
        ("192.168.1.5:8000", "127.0.0.1", False),
        ("192.168.1.5:8000", "0.0.0.0", True),
        ("[fe80::1]:8000", "::", True),
        ("evil.example", "0.0.0.0", False),
        ("lab.example:8000", "lab.example", True),
        ("Lab.Example", "lab.example", True),
        ("evil.example", "lab.example", False),
    ],
)
def test_a_host_that_a_site_could_own_is_not_known(header, host, known):
    assert is_known_host(header, host) == known


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],
)
def test_loopback_is_known(host, local):
    assert is_loopback(host) == local
