"""What a client is told when it gets no prediction: a status, a stable code, and never anything of our insides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from warmstart.errors import DataError, UsageError, WarmstartError

# Errors of the library that are no fault of the request's rows, and still the request's business.
_STATUS = {"out-of-memory": 413, "output-not-a-number": 422}


class Refusal(Exception):  # noqa: N818  # an answer more than an error
    """An answer other than 200. `what` and `fix` are for people, `code` for programs; `headers` go with it."""

    def __init__(
        self, status: int, code: str, what: str, *, fix: str = "", where: str = "", headers: Mapping[str, str] = {}
    ) -> None:
        super().__init__(f"{status} {code}: {what}")
        self.status, self.code, self.what, self.fix, self.where = status, code, what, fix, where
        self.headers = dict(headers)

    def body(self, request_id: str) -> dict[str, Any]:
        """The answer as JSON. `error.message`, `.type` and `.code` are where OpenAI's clients look."""
        told = f"{self.what} ({self.where})" if self.where else self.what
        return {
            "error": {
                "message": f"{told}; {self.fix}" if self.fix else told,
                "type": "invalid_request_error" if self.status < 500 else "server_error",
                "code": self.code,
                "where": self.where,
                "next": self.fix,
                "request_id": request_id,
            }
        }


def overloaded(seconds: int, what: str = "more text waits than the server takes") -> Refusal:
    """429, with the seconds after which a place is likely."""
    return Refusal(429, "queue-full", what, fix="send it again later", headers={"Retry-After": str(seconds)})


def unavailable(what: str, *, code: str = "not-ready") -> Refusal:
    """503: the server is about to start or to stop."""
    headers = {"Retry-After": "5"} | ({"Connection": "close"} if code == "stopping" else {})
    return Refusal(503, code, what, fix="send it again later", headers=headers)


def too_late(what: str = "the answer was not there in time") -> Refusal:
    return Refusal(504, "deadline-exceeded", what, fix="allow more time, or send fewer rows at once")


def as_refusal(error: BaseException) -> Refusal:
    """What a client is told of an error: all of what concerns its own rows, of anything else that it happened."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, WarmstartError) and (isinstance(error, DataError | UsageError) or error.code in _STATUS):
        return Refusal(_STATUS.get(error.code, 422), error.code, error.what, fix=error.fix, where=str(error.where))
    return Refusal(500, "internal-error", "the server failed at this request", fix="tell its operator the request id")
