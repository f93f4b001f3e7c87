"""Addresses of the net: e-mail, links that hold a password or a key, IP and MAC addresses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_address

Place = tuple[int, int, str]  # start, end, kind

_LOCAL = re.compile(r"[\w.+%'\\-]{1,64}+")  # of an e-mail address, read backwards; with Markdown's backslashes
_HOST = re.compile(r"[\w-]{1,63}+(?:\.[\w-]{1,63}+){1,8}+")
_URL = re.compile(r"(?<![a-z0-9])[a-z][a-z0-9+.-]{1,15}://[^\s/@:]{1,100}+:[^\s/@]{1,200}+@[^\s<>\"']{1,200}", re.I)
_QUERY = re.compile(
    r"[?&](?:[a-z_-]{0,20}(?:token|key|secret|password|passwd|signature|sig|auth))=([^\s&#\"'<>]{4,500})", re.I
)
_MAC = re.compile(r"(?<![0-9A-Fa-f:.-])[0-9A-Fa-f]{2}(?:[:-][0-9A-Fa-f]{2}){5}(?![0-9A-Fa-f:-])")
_IP = re.compile(
    r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])|(?<![\w.-])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)"
)


def network_addresses(text: str) -> Iterator[Place]:
    """`email`, `url` with a password, `key` in a link, `mac` and `ip`."""
    yield from _emails(text)
    for match in _URL.finditer(text):
        yield *match.span(), "url"
    for match in _QUERY.finditer(text):
        yield *match.span(1), "key"
    for match in _MAC.finditer(text):
        yield *match.span(), "mac"
    for match in _IP.finditer(text):
        if sum(map(str.isalnum, match[0])) >= 4 and _is_ip(match[0]):
            yield *match.span(), "ip"


def _emails(text: str) -> Iterator[Place]:
    """Also in a Markdown link, `[a\\_b@c.org](mailto:a_b@c.org)`: two of them."""
    at = text.find("@")
    floor = 0
    while at >= 0:
        local = _LOCAL.match(text[max(floor, at - 64) : at][::-1])
        host = _HOST.match(text, at + 1)
        if local and host:
            start, end = at - len(local[0].rstrip(".'%\\-+")), host.end()
            name = host[0].rpartition(".")[2]
            if start < at and len(name) >= 2 and not name.isdecimal():
                yield start, end, "email"
                floor = end
        at = text.find("@", at + 1)


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
