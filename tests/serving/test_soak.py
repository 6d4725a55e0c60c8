"""Many requests and many ends: memory, descriptors and threads stay where they are, and nothing accepted is lost.

`make soak`: 20,000 requests, and 20 times SIGTERM under load. Here fewer of both.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import psutil

from support.serving import KEY, LIGHT, eventually, serving

REQUESTS = int(os.environ.get("WARMSTART_SOAK", "1500"))
STOPS = int(os.environ.get("WARMSTART_STOPS", "2"))
CLIENTS, SAMPLES, ROUNDS = 8, 20, 40
WARM_UP = 3_000  # requests until pools and caches have filled: not sampled
PATH = "/v1/predict/reviews"
ROWS = ["a good film " * 3, "bad"]
# What a thousand requests may add, in kB: a request that left a kilobyte behind would add as much.
MOST_KB = 300.0


def test_q98_memory_descriptors_and_threads_stay_where_they_are() -> None:
    """The slope is that of the last three quarters of the run: at its beginning pools and caches fill."""
    with serving(["-c", LIGHT, KEY]) as (process, url, _):
        server = psutil.Process(process.pid)
        samples: list[tuple[int, int, int, int]] = []  # requests, kB, descriptors, threads
        port = int(url.rpartition(":")[2])
        with ThreadPoolExecutor(CLIENTS) as pool:
            for _ in range(ROUNDS):  # as the samples are: with connections that come and go
                warm = pool.map(lambda first: asked(port, range(WARM_UP // ROUNDS)[first::CLIENTS]), range(CLIENTS))
                assert set().union(*warm) == {200}
            for sample in range(SAMPLES):
                numbers = range(sample * REQUESTS // SAMPLES, (sample + 1) * REQUESTS // SAMPLES)
                found = pool.map(lambda first, numbers=numbers: asked(port, numbers[first::CLIENTS]), range(CLIENTS))
                assert set().union(*found) == {200}
                memory = server.memory_info().rss // 1024
                samples.append((numbers.stop, memory, server.num_fds(), server.num_threads()))
    done, memory, descriptors, threads = np.array(samples[SAMPLES // 4 :]).T
    slope = 1000 * np.polyfit(done, memory, 1)[0]
    print(f"{REQUESTS:,} requests: {slope:+.1f} kB a thousand, from {memory[0]:,} to {memory[-1]:,} kB,", end=" ")
    print(f"descriptors {descriptors.min()} to {descriptors.max()}, threads {threads.min()} to {threads.max()}")
    assert slope < MOST_KB * max(1.0, 5_000 / REQUESTS)  # a short run's slope is that of its noise
    assert descriptors.max() - descriptors.min() <= CLIENTS + 2
    assert threads.max() - threads.min() <= 2


def asked(port: int, numbers: range) -> set[int]:
    """The statuses of so many requests on one connection; now and then others come between: one that is refused, one
    that leaves before its answer, one on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"X-API-Key": KEY, "Content-Type": "application/json"}
    found = set[int]()
    for number in numbers:
        if number % 50 == 0:
            connection.request("POST", PATH, "[]", headers)
            answer = connection.getresponse()
            assert answer.status == 400 and answer.read()
            for path in ("/metrics", PATH):
                other = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                other.request("GET" if path == "/metrics" else "POST", path, json.dumps(ROWS), headers)
                if path == "/metrics":
                    assert other.getresponse().status == 200
                other.close()
        connection.request("POST", PATH, json.dumps(ROWS[number % 2]), headers)
        answer = connection.getresponse()
        found.add(answer.status)
        assert answer.read()
    connection.close()
    return found


# A batch holds one request and takes its time: at any moment most requests wait in the queue.
SLOW = """
import logging, sys, time
import warmstart as ws
from support.serving import Misbehaving, numpy_pipeline, with_runtime
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
pipe = numpy_pipeline()
slow = Misbehaving(pipe.runtime, tokens=3, fault=lambda batch, outputs: time.sleep(0.05) or outputs)
ws.serve(with_runtime(pipe, slow), port=0, api_keys=sys.argv[1:], limits=ws.Limits(batch_tokens=120))
"""
ASKING = 8
SURELY_SENT = 0.2  # seconds after a client began to send its request


def test_h72_sigterm_under_load_loses_nothing_however_often() -> None:
    answered = lost = waiting = 0
    for _ in range(STOPS):
        ours, theirs, broken, unanswered, waited = stopped_under_load()
        answered, waiting = answered + ours, waiting + waited
        lost += theirs - ours + unanswered
        assert theirs == ours and broken == unanswered == 0
        assert waited >= 2  # the queue was not empty
    print(f"{STOPS} times SIGTERM under load: {answered:,} accepted and answered, {waiting} of them later, {lost} lost")


def stopped_under_load() -> tuple[int, int, int, int, int]:
    """Answers that clients have; answers of the server's own log; answers that broke off in the middle; requests from
    before SIGTERM that were not predicted, and those that were after it."""
    outcomes: list[tuple[float, float, int]] = []  # when it was asked, when answered, the status: 0 for no answer
    broken: list[Exception] = []
    with serving(["-c", SLOW, KEY]) as (process, url, lines):

        def ask() -> None:
            with httpx.Client(base_url=url, headers={"x-api-key": KEY}, timeout=60, trust_env=False) as client:
                while True:
                    began, status = time.monotonic(), 0
                    try:
                        answer = client.post(PATH, json=ROWS * 8)
                        status = answer.status_code
                        assert status != 200 or len(answer.json()) == 16
                    except httpx.ConnectError:  # it listens no more
                        return
                    except httpx.RemoteProtocolError as error:
                        if "without sending a response" not in str(error):
                            broken.append(error)
                        return  # the connection was closed between two requests
                    except httpx.TransportError:
                        return
                    finally:
                        outcomes.append((began, time.monotonic(), status))

        asking = [threading.Thread(target=ask) for _ in range(ASKING)]
        for thread in asking:
            thread.start()
        assert eventually(lambda: sum(status == 200 for _, _, status in outcomes) >= 2 * ASKING, seconds=60)
        told = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        for thread in asking:
            thread.join(60)
    statuses = [status for _, _, status in outcomes if status]
    assert set(statuses) <= {200, 503} and statuses.count(200) >= 2 * ASKING
    before = [(ended, status) for began, ended, status in outcomes if began < told - SURELY_SENT]
    unanswered = sum(status != 200 for _, status in before)
    waited = sum(ended > told for ended, _ in before) - unanswered
    # Whatever the server read and accepted stands in its log, with the status that it was answered with.
    entries = [json.loads(line) for line in lines if line.startswith("{") and '"POST"' in line]
    return len(statuses), len(entries), len(broken), unanswered, waited
