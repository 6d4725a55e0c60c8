"""Who may ask: API keys, the Host and Origin headers, and who counts as one client."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from warmstart.errors import UsageError
from warmstart.serving.refusal import Refusal

# Whoever can reach the port may ask whether we live; so load balancers do.
PROBES = frozenset({"/livez", "/readyz"})

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")
_SHORTEST_KEY, _LONGEST_KEY = 16, 4096


@dataclass(frozen=True)
class Access:
    """Names under which the server is asked, and the SHA-256 of each API key; without keys everybody may ask."""

    hosts: frozenset[str]
    keys: tuple[bytes, ...] = ()

    def check_host(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Raises Refusal "host-malformed", "host-not-allowed", "origin-not-allowed": a page that a browser shows from
        elsewhere must not reach us, by a name that was bent to our address (DNS rebinding) or from its own origin."""
        given = [value for name, value in headers if name == b"host"]
        matched = _HOST.fullmatch(given[0].decode("latin-1")) if len(given) == 1 else None
        if matched is None:
            raise Refusal(400, "host-malformed", "the request needs one well-formed Host header")
        if not self._allows(matched["name"]):
            fix = "ask by an allowed name, or start the server with --allow-host NAME"
            raise Refusal(403, "host-not-allowed", "the server is not addressed by this name", fix=fix)
        for origin in (value.decode("latin-1") for name, value in headers if name == b"origin"):
            if not self._allows(_origin_host(origin)):
                raise Refusal(403, "origin-not-allowed", "pages of other sites may not ask this server")

    def identify(self, headers: Sequence[tuple[bytes, bytes]], address: str, path: str) -> str:
        """The client's name for fairness: its key's, or its address. Raises Refusal "key-missing", "key-wrong"."""
        if not self.keys or path in PROBES:
            return address
        given = _given_key(headers)
        if given is None:
            raise _unauthorized("key-missing", "an API key is needed")
        digest = hashlib.sha256(given).digest()
        # Every key is compared, each in constant time: neither the time nor its position says how near a guess was.
        matches = [hmac.compare_digest(digest, key) for key in self.keys]
        if not any(matches):
            raise _unauthorized("key-wrong", "this API key is not valid")
        return f"key {matches.index(True)}"

    def _allows(self, host: str) -> bool:
        return host.lower().strip("[]").rstrip(".") in self.hosts


def make_access(host: str, *, allowed_hosts: Iterable[str] = (), keys: Sequence[str] = ()) -> Access:
    """What is allowed of a server bound to `host`: that name, the machine's own names for itself, and `allowed_hosts`.

    Raises UsageError "hosts-unnamed" where the server would listen everywhere under no name, "api-key-weak".
    """
    names = {name.lower().strip("[]") for name in allowed_hosts}
    if _is_everywhere(host):
        if not names:
            raise UsageError(
                "hosts-unnamed",
                "the server would listen on every address, and no name is given under which it is asked",
                value=host,
                fix="name it as clients will: --allow-host models.example.org, or the machine's address",
            )
    else:
        names.add(host.lower().strip("[]"))
    for number, key in enumerate(keys, 1):
        if not (_SHORTEST_KEY <= len(key) <= _LONGEST_KEY and key.isascii() and key.isprintable() and " " not in key):
            raise UsageError(
                "api-key-weak",
                f"API key {number} is no {_SHORTEST_KEY} to {_LONGEST_KEY} printable characters without spaces",
                fix='make one: python -c "import secrets; print(secrets.token_urlsafe(32))"',
            )
    return Access(frozenset({*names, *_LOOPBACK}), tuple(hashlib.sha256(key.encode()).digest() for key in keys))


def read_keys(path: str | Path) -> tuple[str, ...]:
    """The keys of a file, one a line; empty lines and lines that begin with # are none. Raises UsageError
    "api-keys-unreadable", "api-keys-none"."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        fix = "give a readable text file with one key a line"
        raise UsageError(
            "api-keys-unreadable", "the file of API keys cannot be read", where=str(path), fix=fix
        ) from error
    keys = tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if not keys:
        raise UsageError("api-keys-none", "the file holds no API key", where=str(path), fix="write one key a line")
    return keys


def is_loopback(host: str) -> bool:
    """Is this an address that other machines cannot reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _is_everywhere(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return not host


def _origin_host(origin: str) -> str:
    try:
        return urlsplit(origin).hostname or ""
    except ValueError:
        return ""


def _given_key(headers: Sequence[tuple[bytes, bytes]]) -> bytes | None:
    found: Mapping[bytes, bytes] = dict(reversed(headers))
    if key := found.get(b"x-api-key"):
        return key[: _LONGEST_KEY + 1]
    scheme, _, rest = found.get(b"authorization", b"").strip().partition(b" ")
    if scheme.lower() == b"bearer":
        return rest.strip()[: _LONGEST_KEY + 1]
    if scheme.lower() == b"basic":  # what a browser sends for the page at /: any name, the key as the password
        try:
            return base64.b64decode(rest.strip(), validate=True).partition(b":")[2][: _LONGEST_KEY + 1]
        except (binascii.Error, ValueError):
            return b""
    return None


def _unauthorized(code: str, what: str) -> Refusal:
    fix = "send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'"
    return Refusal(401, code, what, fix=fix, headers={"WWW-Authenticate": 'Basic realm="warmstart", charset="UTF-8"'})
