"""The table of serving: what is read off the records, and that a promise can be missed."""

from __future__ import annotations

from typing import Any

from serving_table import BF16, FP32, INT8, highest, ratios, table


def rate(contestant: str, repeat: int, value: float, met: bool) -> dict[str, Any]:
    return {
        "part": "speed", "kind": "rate", "contestant": contestant, "repeat": repeat, "rate": value, "met": met,
        "milliseconds": {"p50": 20.0, "p90": 50.0, "p99": 100.0}, "idle_milliseconds": 10.0,
    }  # fmt: skip


def loaded(goodput: float, outcomes: dict[str, int], *, bare: int = 0, again: float | None = 1.0) -> dict[str, Any]:
    return {
        "part": "overload", "kind": "overload", "contestant": FP32, "repeat": 0, "times": 2.0, "rate": 200.0,
        "peaks": [100.0, 60.0, 130.0], "goodput": goodput, "outcomes": outcomes, "refused_without_retry_after": bare,
        "milliseconds": {"p99": 900.0}, "idle_again_seconds": again,
    }  # fmt: skip


def overload(goodput: float, outcomes: dict[str, int], *, bare: int = 0, again: float | None = 1.0) -> str:
    record = loaded(goodput, outcomes, bare=bare, again=again)
    return next(line for line in table([record]) if line.startswith("| warmstart"))


def test_the_highest_rate_is_the_highest_that_met_the_bound_in_each_repeat() -> None:
    records = [rate(FP32, 0, 90, True), rate(FP32, 0, 99, True), rate(FP32, 0, 120, False), rate(FP32, 1, 80, True)]
    assert {repeat: one["rate"] for repeat, one in highest(records, FP32).items()} == {0: 99, 1: 80}


def test_a_ratio_is_beside_the_better_peer_of_the_same_repeat() -> None:
    ours = {0: rate(FP32, 0, 90, True), 1: rate(FP32, 1, 90, True), 2: rate(FP32, 2, 90, True)}
    peers = [{0: rate("a", 0, 30, True), 1: rate("a", 1, 45, True)}, {0: rate("b", 0, 15, True)}]
    assert ratios(ours, peers) == [3.0, 2.0]


def test_promises_are_met_missed_and_not_measured() -> None:
    peers = [rate("FastAPI", 0, 30, True)]
    met = "\n".join(table([rate(FP32, 0, 90, True), rate(INT8, 0, 170, True), *peers]))
    assert "at least 3 times, found 3.00x (3.00 – 3.00): met." in met
    assert "at least 2 times, found 1.89x (1.89 – 1.89): **not met**." in met
    assert "at least 3 times; not measured." in "\n".join(table(peers))


def test_a_peer_in_bf16_is_beside_bf16_alone() -> None:
    peers = [rate("FastAPI", 0, 30, True), rate("FastAPI, bf16", 0, 50, True)]
    told = "\n".join(table([rate(FP32, 0, 90, True), rate(BF16, 0, 120, True), *peers]))
    assert "at least 3 times, found 3.00x (3.00 – 3.00): met." in told
    assert "bf16 beside the peer in bf16: 2.40x (2.40 – 2.40); nothing was promised." in told
    assert "the peer in bf16" not in "\n".join(table([rate(FP32, 0, 90, True), *peers]))


def test_overload_is_as_promised_only_where_all_of_it_is() -> None:
    good = {"200": 2700, "429": 3300}
    assert overload(91, good).endswith("| yes |")
    for line in (
        overload(89, good), overload(91, good | {"lost": 1}), overload(91, good | {"500": 1}),
        overload(91, good, bare=1), overload(91, good, again=5.1), overload(91, good, again=None),
    ):  # fmt: skip
        assert line.endswith("| **no** |")


def test_goodput_is_beside_the_median_of_the_peaks_around_it_and_promised_of_the_median_repeat() -> None:
    def told(*goodputs: float) -> str:
        return "\n".join(table([loaded(one, {"200": 2700}) for one in goodputs]))

    assert "| 100 (60 – 130) | 2 × = 200/s | 88.0 | 88% |" in told(88)
    assert "2 ×: goodput promised at least 90% of the peak, found 91% (88% – 95%): met." in told(88, 95, 91)
    assert "2 ×: goodput promised at least 90% of the peak, found 88% (80% – 95%): **not met**." in told(88, 95, 80)
