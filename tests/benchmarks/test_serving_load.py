"""The load of the serving benchmark: what it counts as answered, refused and lost."""

from __future__ import annotations

import asyncio

from serving_load import Address, at_rate, quantile, request

from support.serving import numpy_pipeline, wait_ready
from warmstart.serving.server import Server


def loaded(answer: bytes | None) -> dict[str, int]:
    """The outcomes beside a server that reads a request and sends `answer`, or closes the connection."""

    ended: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended.append(asyncio.current_task())
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(6)
                if answer is None:
                    break
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def main() -> dict[str, int]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        address = Address(server.sockets[0].getsockname()[1], "/")
        found = await at_rate(address, [request(address, b'"good"')], rate=200, seconds=0.1, seed=1)
        server.close()
        await asyncio.gather(*filter(None, ended))  # none outlives the loop
        assert found["sent"] == sum(found["outcomes"].values()) > 0
        counted: dict[str, int] = {**found["outcomes"], "without": found["refused_without_retry_after"]}
        return counted

    return asyncio.run(main())


def test_a_connection_that_ends_without_an_answer_is_a_lost_request() -> None:
    assert set(loaded(None)) == {"lost", "without"}


def test_a_refusal_without_retry_after_is_told_from_one_with_it() -> None:
    bare = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\n\r\n{}"
    found = loaded(bare)
    assert found["without"] == found["429"] > 0
    found = loaded(bare.replace(b"Content-Length", b"Retry-After: 1\r\nContent-Length"))
    assert found["without"] == 0 < found["429"]


def test_a_server_under_a_light_load_answers_all_of_it() -> None:
    with Server({"reviews": numpy_pipeline()}, port=0) as server:
        wait_ready(server.url)
        address = Address(server.port, "/v1/predict/reviews")
        body = request(address, b'"good"')
        found = asyncio.run(at_rate(address, [body], rate=50, seconds=0.4, seed=1, recovery=True))
    assert set(found["outcomes"]) == {"200"} and found["milliseconds"]["p50"] > 0
    assert found["idle_again_seconds"] is not None


def test_quantiles_are_of_sorted_values() -> None:
    assert [quantile([1.0, 2.0, 3.0, 4.0], share) for share in (0.0, 0.5, 0.99)] == [1.0, 3.0, 4.0]
    assert quantile([], 0.5) != quantile([], 0.5)
