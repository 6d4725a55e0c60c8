"""The page at /, in a real browser: a text goes in, scores come out as bars, and nothing that comes is run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from support.browser import opened
from support.serving import numpy_pipeline, wait_ready
from warmstart.serving.server import Server

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


def test_the_page_is_whole_without_the_network(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    for path in ("/playground.js", "/playground.css"):
        assert path in page.text
        assert client.get(path).status_code == 200
    assert 'name="viewport"' in page.text and '<label for="model">' in page.text
    assert "http://" not in page.text and "https://" not in page.text


def test_the_list_of_models_says_what_to_fill_in(client: httpx.Client) -> None:
    [reviews, _] = client.get("/v1/models").json()["data"]
    assert [(field["name"], field["required"]) for field in reviews["fields"]] == [("text", True), ("text_pair", False)]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: the page is not opened in a browser")
@pytest.mark.parametrize("size", ["390,844", "1280,900"], ids=["phone", "desktop"])
def test_a_browser_shows_the_page_and_a_links_prediction_as_bars(size: str, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    pipe = numpy_pipeline()
    text = "good <script>document.title='owned'</script> film"
    with Server({"reviews": pipe}, port=0) as server:
        wait_ready(server.url)
        shown, said = _opened(f"{server.url}/#text={quote(text)}", tmp_path, size)
    assert 'id="field-text"' in shown and 'id="field-text_pair"' in shown
    assert "reviews · text-classification" in shown
    expected = sorted(pipe(text).scores.items(), key=lambda item: -item[1])
    bars = re.findall(r"<span>(\w+)</span><span>([\d.]+)</span></div><progress", shown)
    assert bars == [(label, f"{score:.4f}") for label, score in expected]
    assert "<title>warmstart</title>" in shown  # what was typed ran nowhere
    assert "Content Security Policy" not in said and "Uncaught" not in said


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: the page is not opened in a browser")
def test_the_page_works_by_keyboard(tmp_path: Path) -> None:
    """From the address on: Tab to the box, a text, Tab to the button, Enter; then Control and Enter in the box."""
    assert CHROMIUM is not None
    pipe = numpy_pipeline()
    focused = "document.activeElement && document.activeElement.id"
    shown = "[...document.querySelectorAll('progress')].map((bar) => bar.value).join()"
    with Server({"reviews": pipe}, port=0) as server:
        wait_ready(server.url)
        with opened(CHROMIUM, server.url, tmp_path, width=390, height=844) as tab:
            tab.until("document.getElementById('field-text') !== null")
            tab.press_until("Tab", f"{focused} === 'field-text'")
            tab.write("a good film")
            tab.press_until("Tab", f"{focused} === 'send'")
            tab.press("Enter")
            first = tab.until(shown)
            assert tab.value(focused) == "send"  # nobody has to begin again
            expected = sorted(pipe("a good film").scores.values(), reverse=True)
            assert [float(value) for value in first.split(",")] == pytest.approx(expected, abs=1e-4)
            tab.value("document.getElementById('field-text').select()")
            tab.value("document.getElementById('field-text').focus()")
            tab.write("tedious")
            tab.press("Enter", control=True)
            assert tab.until(f"{shown} !== '{first}' && {shown}")
            assert tab.value("document.documentElement.scrollWidth <= window.innerWidth")  # fits a phone
            assert not tab.complaints


def _opened(url: str, home: Path, size: str) -> tuple[str, str]:
    """The page's elements once it is quiet, and what the browser complained of."""
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        f"--user-data-dir={home}", f"--window-size={size}", "--virtual-time-budget=4000", "--enable-logging=stderr",
        "--dump-dom", url,
    ]  # fmt: skip
    environment = {**os.environ, "HOME": str(home)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, env=environment)
    assert done.returncode == 0, done.stderr[-1000:]
    return done.stdout, done.stderr
