"""A request's body, read within its limits and parsed without mercy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from warmstart.serving.limits import Limits
from warmstart.serving.refusal import Refusal

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

# Beyond this, parsing would keep the event loop from others for milliseconds.
_PARSED_ELSEWHERE = 64 << 10
# Up to here a float names one whole number.
_EXACT = 2**53


class DepartedError(Exception):
    """The client left before it had an answer."""


async def read_body(receive: Receive, headers: list[tuple[bytes, bytes]], limits: Limits) -> bytes:
    """The body's bytes. Raises Refusal "body-not-json", "body-too-large", "body-too-slow"; DepartedError."""
    _check_headers(headers, limits)
    parts, size = list[bytes](), 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise DepartedError
                part = message.get("body", b"")
                size += len(part)
                if size > limits.body_bytes:
                    raise _too_large(limits)
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        what = f"the body was not there within {limits.body_seconds:g} seconds"
        raise Refusal(408, "body-too-slow", what, headers={"Connection": "close"}) from None


async def parse_json(content: bytes) -> Any:
    """The JSON value. Raises Refusal "json-malformed" for anything that is not exactly one value of strict JSON."""
    if len(content) > _PARSED_ELSEWHERE:
        return await asyncio.to_thread(_parse, content)
    return _parse(content)


def _parse(content: bytes) -> Any:
    try:
        text = content.decode("utf-8")
        return json.loads(text, object_pairs_hook=_no_twice, parse_constant=_no_constant, parse_float=_number)
    except UnicodeDecodeError as error:
        raise _malformed(f"byte {error.start} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise _malformed(f"{error.msg}, line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise _malformed("it is nested too deeply") from None
    except ValueError as error:  # a number of thousands of digits, or what the hooks found
        raise _malformed(str(error) if isinstance(error, _FoundError) else "a number has too many digits") from None


class _FoundError(ValueError):
    pass


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _FoundError("an object has the same key twice")
    return found


def _number(digits: str) -> float:
    """JSON has one kind of number, and its schemas count 4.0 among the integers."""
    value = float(digits)
    return int(value) if value.is_integer() and abs(value) <= _EXACT else value


def _no_constant(name: str) -> Any:
    raise _FoundError(f"{name} is no number of JSON")


def _malformed(what: str) -> Refusal:
    return Refusal(400, "json-malformed", f"the body is not JSON: {what}")


def _check_headers(headers: list[tuple[bytes, bytes]], limits: Limits) -> None:
    names = {name for name, _ in headers}
    if {b"content-length", b"transfer-encoding"} <= names:  # whoever stands before us may read it otherwise
        what = "the body's length is given in two ways"
        raise Refusal(400, "framing-ambiguous", what, headers={"Connection": "close"})
    kinds = [value.decode("latin-1").lower() for name, value in headers if name == b"content-type"]
    kind, _, rest = kinds[0].partition(";") if len(kinds) == 1 else ("", "", "")
    charset = rest.strip().replace('"', "")
    if kind.strip() != "application/json" or charset not in ("", "charset=utf-8"):
        fix = "send Content-Type: application/json"
        raise Refusal(415, "body-not-json", "the body must be JSON in UTF-8", fix=fix, headers={"Connection": "close"})
    if any(name == b"content-encoding" and value.lower() != b"identity" for name, value in headers):
        fix = "send the body as it is"
        what = "compressed bodies are not read"
        raise Refusal(415, "body-compressed", what, fix=fix, headers={"Connection": "close"})
    if any(name == b"content-length" and int(value) > limits.body_bytes for name, value in headers):
        raise _too_large(limits)


def _too_large(limits: Limits) -> Refusal:
    what = f"the body is larger than {limits.body_bytes:,} bytes"
    return Refusal(413, "body-too-large", what, fix="send fewer rows at once", headers={"Connection": "close"})
