"""`warmstart serve` as a process of its own: what it prints, what ends it, and that it answers as the others do."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

import warmstart as ws
from support.serving import KEY, LIGHT, eventually, numpy_pipeline, serving
from warmstart.cli import serve as serve_command
from warmstart.cli.main import run
from warmstart.errors import UsageError
from warmstart.serving import server as server_module
from warmstart.serving.server import Server, served_name
from warmstart.tasks import as_dict

TEXTS = ["I love this film, it is wonderful and warm.", "A dull, tired plot.", "bad", "naïve 日本語"]


def test_command_line_library_and_http_give_the_same(
    tiny: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny("bert")
    keys = tmp_path / "keys.txt"
    keys.write_text(f"# mine\n\n{KEY}\n")
    library = [as_dict(prediction) for prediction in ws.load(folder, device="cpu")(TEXTS)]
    capsys.readouterr()
    assert run(["predict", "-m", str(folder), "--json", *TEXTS]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    command = ["-m", "warmstart", "serve", "--port", 0, "-m", f"reviews={folder}", "--api-key-file", keys]
    with serving(command) as (_, url, lines):
        headers = {"x-api-key": KEY}
        answered = httpx.post(f"{url}/v1/predict/reviews", json=TEXTS, headers=headers, trust_env=False).json()
        assert httpx.post(f"{url}/v1/predict/reviews", json=TEXTS, trust_env=False).status_code == 401
        entries = [json.loads(line) for line in list(lines) if line.startswith("{")]
        assert {"time", "id", "client", "method", "path", "status", "bytes", "ms"} == set(entries[0])
        assert not any(KEY in line or "wonderful" in line for line in lines)
    for found in (printed, answered):
        assert [row["label"] for row in found] == [row["label"] for row in library]
        assert [row["tokens"] for row in found] == [row["tokens"] for row in library]
        for row, other in zip(found, library, strict=True):
            assert row["scores"] == pytest.approx(other["scores"], abs=1e-5)


@pytest.mark.parametrize(
    ("format", "precision"), [("onnx", "fp32"), ("openvino", "fp32"), ("onnx", "int8"), ("openvino", "int8")]
)
def test_an_export_answers_over_http_as_in_the_library(
    tiny: Callable[..., Path], tmp_path: Path, format: str, precision: str
) -> None:
    """Without PyTorch in the process. In int8 company in a batch tells: ONNX Runtime's ranges are those of the batch,
    and OpenVINO's last bits decide what is rounded up."""
    rows = [{"text": text, "label": "NEGATIVE"} for text in TEXTS]
    few = ws.Tolerance(rows=len(rows), agreement=0.5, difference=None)
    ws.export(tiny("bert"), tmp_path / "m", format=format, precision=precision, data=rows, tolerance=few)
    library = [as_dict(ws.load(tmp_path / "m")(text)) for text in TEXTS]
    with serving(["-m", "warmstart", "serve", "--port", 0, "-m", f"m={tmp_path / 'm'}"]) as (process, url, _):
        with httpx.Client(base_url=url, timeout=20, trust_env=False) as client:
            found = [client.post("/v1/predict/m", json=text).json() for text in TEXTS]
            together = client.post("/v1/predict/m", json=TEXTS).json()
        if Path("/proc/self/maps").exists():
            assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()
    apart = 1e-5 if precision == "fp32" else 0.05
    for row, one, other in zip(library, found, together, strict=True):
        assert (one["label"], one["tokens"]) == (row["label"], row["tokens"])
        assert one["scores"] == pytest.approx(row["scores"], abs=1e-5)
        assert other["scores"] == pytest.approx(row["scores"], abs=apart)


def test_h72_sigterm_under_load_answers_all_it_accepted_and_exits_0() -> None:
    with serving(["-c", LIGHT, KEY]) as (process, url, lines):
        outcomes: list[object] = []

        def ask() -> None:
            while True:
                with httpx.Client(base_url=url, headers={"x-api-key": KEY}, timeout=20, trust_env=False) as client:
                    try:
                        outcomes.append(client.post("/v1/predict/reviews", json=TEXTS * 8).status_code)
                    except httpx.TransportError as error:  # it does not listen any more, or did not take it
                        outcomes.append(error)
                        return

        asking = [threading.Thread(target=ask) for _ in range(4)]
        for thread in asking:
            thread.start()
        assert eventually(lambda: outcomes.count(200) >= 8, seconds=20)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        for thread in asking:
            thread.join(10)
        # Every request that the server read, by its own log, was answered; the clients have all those answers.
        assert {one for one in outcomes if isinstance(one, int)} <= {200, 503}
        posts = [json.loads(line) for line in lines if line.startswith("{") and '"POST"' in line]
        assert len(posts) == sum(isinstance(one, int) for one in outcomes)
        assert sum(post["status"] == 200 for post in posts) == outcomes.count(200) >= 8


def test_h72_a_second_sigterm_ends_it_at_once() -> None:
    with serving(["-c", LIGHT]) as (process, url, _):
        head = "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as half:
            half.sendall(head.encode())
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            assert process.poll() is None  # it waits for the rest of the body
            started = time.perf_counter()
            process.send_signal(signal.SIGTERM)
            assert process.wait(5) == 128 + signal.SIGTERM
            assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--host", "0.0.0.0"), "hosts-unnamed"),
        (("--api-key-file", "absent.txt"), "api-keys-unreadable"),
        (("--api-key-file", "empty.txt"), "api-keys-none"),
        (("--api-key-file", "weak.txt"), "api-key-weak"),
        (("-m", "a=starter", "-m", "a=starter-encoder"), "model-name-twice"),
        (("-m", "starter", "-m", "a b=starter"), "model-name"),
        (("-m", "starter", "-m", "runs/lr=3e-5"), "model-name"),
    ],
)
def test_a_wrong_call_is_told_of_before_anything_is_loaded(
    arguments: tuple[str, ...],
    code: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("# none\n")
    (tmp_path / "weak.txt").write_text("password\n")
    started = time.perf_counter()
    assert run(["serve", *arguments]) == 2
    assert f"[{code}]" in capsys.readouterr().err
    assert time.perf_counter() - started < 2


def test_a_folder_whose_name_holds_an_equals_sign_is_that_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/lr=3e-5").mkdir(parents=True)
    opened, served = list[str](), list[list[str]]()
    monkeypatch.setattr(serve_command, "open_pipeline", lambda model, **_: opened.append(model))
    monkeypatch.setattr(server_module, "serve", lambda pipelines, **_: served.append(list(pipelines)))
    assert run(["serve", "-m", "runs/lr=3e-5", "-m", "b=runs/lr=3e-5"]) == 0
    assert opened == ["runs/lr=3e-5", "runs/lr=3e-5"] and served == [["model", "b"]]


def test_a_port_that_is_taken_and_a_name_that_is_none() -> None:
    pipe = numpy_pipeline()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(UsageError, match="cannot listen") as error:
            ws.serve(pipe, port=taken.getsockname()[1])
        assert error.value.code == "port-unavailable"
    for name in ("a/b", "", "../x", "a b"):
        with pytest.raises(UsageError) as error:
            ws.serve({name: pipe}, port=0)
        assert error.value.code == "model-name"
    with pytest.raises(UsageError) as error:
        ws.serve({}, port=0)
    assert error.value.code == "models-none"


def test_garbage_is_not_looked_for_among_libraries_and_models(monkeypatch: pytest.MonkeyPatch) -> None:
    left_out = [gc.get_freeze_count()]

    def join(server: Server, seconds: float | None = None) -> bool:
        left_out.append(gc.get_freeze_count())
        server._socket.close()
        return True

    monkeypatch.setattr(Server, "start", lambda server: None)
    monkeypatch.setattr(Server, "join", join)
    ws.serve({"reviews": numpy_pipeline()}, port=0)
    assert left_out[1] > left_out[0] + 10_000
    assert gc.get_freeze_count() <= left_out[0]  # Python 3.12 freezes some itself, and thaws all
    gc.freeze()  # the caller's own
    try:
        mine = gc.get_freeze_count()
        ws.serve({"reviews": numpy_pipeline()}, port=0)
        assert gc.get_freeze_count() > mine - 10_000
    finally:
        gc.unfreeze()


def test_models_are_served_under_the_last_part_of_their_name() -> None:
    names = {
        "starter": "starter",
        "runs/a": "a",
        "runs/a/model": "a",
        "org/name@main": "name",
        "pkg:mine": "mine",
        "..": "model",
    }
    assert {name: served_name(name) for name in names} == names
    assert served_name(os.fspath(Path("some folder") / "with space")) == "model"
