"""Signals: noted once, obeyed twice, and handed back as they were."""

from __future__ import annotations

import signal
import threading

import pytest

from warmstart.training.stopping import SIGNALS, listening


@pytest.mark.parametrize(("number", "ends"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_once_is_noted_and_twice_is_now(number: int, ends: type[BaseException]) -> None:
    with pytest.raises(ends) as caught, listening() as stop:
        assert stop.signal is None
        signal.raise_signal(number)
        assert stop.signal == number and isinstance(stop.outcome(), ends)
        signal.raise_signal(number)
        raise AssertionError("the second one ends it")
    assert ends is KeyboardInterrupt or caught.value.code == 143


def test_handlers_are_those_from_before_afterwards_and_ignored_signals_stay_ignored() -> None:
    def own(number: int, frame: object) -> None: ...

    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        signal.signal(signal.SIGTERM, own)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with listening() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.signal is None and signal.getsignal(signal.SIGTERM) is not own
        assert signal.getsignal(signal.SIGTERM) is own and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_elsewhere_than_in_the_main_thread_nothing_changes() -> None:
    seen = []

    def work() -> None:
        with listening() as stop:
            seen.append((stop.signal, signal.getsignal(signal.SIGINT)))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, before)]
