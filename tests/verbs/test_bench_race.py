"""Who runs when, how a best setting is found, and what a contestant's process may do to its driver."""

from __future__ import annotations

import os
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmstart.errors import DataError, UsageError, WarmstartError
from warmstart.verbs.bench_process import Contestant, Place, Worker, spare_cores, usable_cores, working
from warmstart.verbs.bench_race import CLOSE, Entry, best_setting, find_setting, race, turns

ROWS = [{"text": "a b"}, {"text": "c \ud800 \u2028"}, {"text": ""}]


@given(st.lists(st.integers(), unique=True, min_size=1, max_size=8), st.integers(0, 30))
def test_everybody_runs_once_a_repeat_and_over_as_many_repeats_stands_once_in_each_place(
    entries: list[int], start: int
) -> None:
    orders = [turns(entries, start + k) for k in range(len(entries))]
    assert all(Counter(order) == Counter(entries) for order in orders)
    assert all(sorted(place) == sorted(entries) for place in zip(*orders, strict=True))
    assert turns([], 3) == []


class Script:
    """Stands for a worker: remembers what it was asked, and takes as long as it is told."""

    def __init__(self, name: str, log: list[tuple[Any, ...]], slow: int = -1) -> None:
        self.name, self.log, self.slow = name, log, slow

    def run(self, workload: str, setting: int | None, *, survey: bool = False) -> Any:
        self.log.append((workload, self.name, setting, "warm" if survey else "run"))
        found: dict[str, Any] = {"seconds": 2.0 if setting == self.slow else 1.0, "cpu_seconds": 1.0, "peak_mb": None}
        return found | ({"survey": {"answers": [self.name], "tokens": 1, "positions": 2}} if survey else {})


def test_a_race_warms_up_and_alternates_and_fewer_repeats_come_first() -> None:
    log: list[tuple[Any, ...]] = []
    workers = cast(Mapping[str, Worker], {name: Script(name, log) for name in "abc"})
    a, b, c = (Contestant(name, "m") for name in "abc")
    entries = [Entry(a, "w", 8, 3), Entry(b, "w", None, 3), Entry(c, "w", 1, 1), Entry(a, "v", 4, 1)]
    lines: list[str] = []
    trials, surveys = race(entries, workers, {"w": 10, "v": 20}, progress=lines.append)
    assert log[:3] == [("w", "a", 8, "warm"), ("w", "b", None, "warm"), ("w", "c", 1, "warm")]
    assert [how for *_, how in log].count("warm") == len(entries) and log[-2:] == [
        ("v", "a", 4, "warm"),
        ("v", "a", 4, "run"),
    ]
    order = [(trial.workload, trial.repeat, trial.turn, trial.name) for trial in trials]
    assert order == [
        ("w", 0, 0, "a"), ("w", 0, 1, "b"), ("w", 0, 2, "c"), ("w", 1, 0, "b"), ("w", 1, 1, "a"),
        ("w", 2, 0, "a"), ("w", 2, 1, "b"), ("v", 0, 0, "a"),
    ]  # fmt: skip
    assert [trial.rows for trial in trials if trial.workload == "v"] == [20] and len(lines) == len(trials) + len(
        entries
    )
    assert set(surveys) == {("w", "a"), ("w", "b"), ("w", "c"), ("v", "a")} and surveys["v", "a"].answers == ["a"]


@given(st.dictionaries(st.integers(1, 64), st.floats(min_value=1e-3, max_value=1e3), min_size=1, max_size=6))
def test_the_best_setting_is_the_quickest_and_the_close_ones_are_timed_again(costs: dict[int, float]) -> None:
    best, times = best_setting(costs.__getitem__, tuple(costs))
    assert costs[best] == min(costs.values()) and set(times) == set(costs)
    for choice, seconds in times.items():
        assert len(seconds) == (3 if costs[choice] <= CLOSE * min(costs.values()) else 1)


@pytest.mark.parametrize("slow", [8, 64])
def test_of_two_close_settings_the_quicker_one_where_the_race_is_run_races(slow: int) -> None:
    log: list[tuple[Any, ...]] = []
    workers = cast(Mapping[str, Worker], {"a": Script("a", log, slow)})
    trials, surveys = race([Entry(Contestant("a", "m"), "w", 8, 2, runner_up=64)], workers, {"w": 10})
    assert log[:4] == [("w", "a", 8, "warm"), ("w", "a", 64, "warm"), ("w", "a", 8, "run"), ("w", "a", 64, "run")]
    assert [(trial.setting, trial.seconds) for trial in trials] == [(72 - slow, 1.0)] * 2 and len(surveys) == 1


def test_one_lucky_time_does_not_win() -> None:
    times = {1: iter([1.0, 1.5, 1.5]), 8: iter([1.1, 1.1, 1.1]), 64: iter([9.0])}
    best, found = best_setting(lambda choice: next(times[choice]), (1, 8, 64))
    assert best == 8 and found == {1: [1.0, 1.5, 1.5], 8: [1.1, 1.1, 1.1], 64: [9.0]}


# --- real processes -------------------------------------------------------------------------------------------------

PEER = """
import os, sys, time
print("a library talks on stdout while it is imported")

class Peer:
    model = None
    facts = {"threads": os.environ["OMP_NUM_THREADS"], "offline": os.environ["HF_HUB_OFFLINE"]}

    def answers(self, rows, setting):
        print("and while it runs")
        text = rows[0]["text"] if rows else ""
        if text == "die":
            sys.stderr.write("first line\\nterminate called: no memory\\n"); sys.stderr.flush()
            os._exit(9)
        if text == "bad row":
            from warmstart.errors import DataError, Where
            raise DataError("field-missing", "no text", where=Where("f", line=3), value=7, fix="give one")
        if text == "slow":
            time.sleep(0.05 / setting)
        return [row["text"] for row in rows]

    def positions(self, rows, setting):
        return 8 * len(rows)

    def gemm_peak(self):
        return 12.5

    def tokens(self, rows):
        return len(rows)

def start(settings):
    if settings.get("broken"):
        raise ValueError("no such peer")
    return Peer()
"""


@pytest.fixture
def peer(tmp_path: Path) -> Callable[..., Contestant]:
    """A contestant of its own making, in a folder of its own."""
    (tmp_path / "some_peer.py").write_text(textwrap.dedent(PEER), encoding="utf-8")

    def make(name: str = "peer", choices: tuple[int, ...] = (), **settings: Any) -> Contestant:
        return Contestant(name, "some_peer", settings, choices, str(tmp_path))

    return make


def test_a_contestant_in_its_process(peer: Callable[..., Contestant]) -> None:
    with working([peer("one"), peer("two")], Place(1, spare_cores(1))) as workers:
        assert workers["one"].facts == {"threads": "1", "offline": "1"}
        for name, worker in workers.items():
            worker.load("w", ROWS)
            found = worker.run("w", None, survey=True)
            assert found["survey"] == {"answers": [row["text"] for row in ROWS], "tokens": 3, "positions": 24}, name
            assert found["cpu_seconds"] >= 0 and 0 < found["seconds"] < 5
            assert worker.gemm_peak() == 12.5
        found = workers["one"].run("w", None)
        assert set(found) == {"seconds", "cpu_seconds", "peak_mb"}
        if Path("/proc/self/status").exists():
            assert 5 < found["peak_mb"] < 500
        processes = [worker._process for worker in workers.values()]
    assert all(process.poll() is not None for process in processes)


def test_the_errors_of_a_contestant_are_its_drivers(peer: Callable[..., Contestant]) -> None:
    started = time.monotonic()
    with working([peer()], Place()) as workers:
        workers["peer"].load("w", [{"text": "bad row"}])
        with pytest.raises(DataError) as caught:
            workers["peer"].run("w", None)
    assert caught.value.code == "field-missing" and "f:3" in str(caught.value.where) and caught.value.fix == "give one"
    with working([peer()], Place()) as workers:
        workers["peer"].load("w", [{"text": "die"}])
        with pytest.raises(WarmstartError, match="terminate called: no memory") as dead:
            workers["peer"].run("w", None)
        assert workers["peer"]._process.poll() == 9
    assert dead.value.code == "contestant-failed" and str(dead.value.where) == "peer"
    with pytest.raises(WarmstartError, match="ValueError: no such peer") as unmade, working([peer(broken=1)], Place()):
        pass
    assert unmade.value.code == "contestant-failed"
    with pytest.raises(WarmstartError, match="ModuleNotFoundError"), working([Contestant("x", "no_module_x")], Place()):
        pass
    assert time.monotonic() - started < 30


def test_a_module_of_the_current_folder_is_not_imported(
    peer: Callable[..., Contestant], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of data may hold a json.py."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "json.py").write_text("raise RuntimeError('this is data')", encoding="utf-8")
    monkeypatch.chdir(folder)
    with working([peer()], Place()) as workers:
        assert workers["peer"].facts["threads"] == "1"


def test_each_workload_has_its_own_best_setting(peer: Callable[..., Contestant]) -> None:
    slow, quick = [{"text": "slow"}], [{"text": "quick"}]
    found = find_setting(peer(choices=(1, 8)), Place(), {"slow": slow, "quick": quick})
    assert found["slow"][0] == 8 and set(found["slow"][1]) == {1, 8} and found["quick"][0] in (1, 8)
    assert find_setting(peer(choices=(32,)), Place(), {"w": slow}) == {"w": (32, {})}
    assert find_setting(peer(), Place(), {"w": slow}) == {"w": (None, {})}


def test_cores_are_of_those_this_process_may_use() -> None:
    cores = spare_cores(1)
    assert len(cores) <= 1 and usable_cores() >= 1
    if cores:
        assert set(cores) <= os.sched_getaffinity(0)
    assert spare_cores(usable_cores() + 1) == ()


def test_errors_that_are_rebuilt_keep_their_class(peer: Callable[..., Contestant]) -> None:
    with pytest.raises(UsageError) as caught, working([Contestant("x", "warmstart.verbs.bench_own", {
        "model": "starter", "task": "no-such-task",
    })], Place()):  # fmt: skip
        pass
    assert caught.value.code == "task-unknown" and caught.value.exit_code == 2
