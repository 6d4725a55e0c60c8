"""One loaded pipeline a case, one training a trainable case; and the logger as it was."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from cases import CASES, Case, Loaded, Trained

import warmstart as ws
from warmstart.rows import read
from warmstart.tasks import TASKS

TRAINABLE = [case for case in CASES if TASKS[case.task].trainable]
PREDICTING = [case for case in CASES if not TASKS[case.task].trainable]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """On tiny models a second thread only waits, and on a busy machine for a long time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def load(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Loaded]:
    """Loads each case once."""
    root, known = tmp_path_factory.mktemp("contract"), dict[str, Loaded]()

    def load(case: Case) -> Loaded:
        if case.name not in known:
            folder = case.checkpoint(tiny_root, root / case.name)
            pipe = ws.load(folder, task=case.task, options=case.options, device="cpu")
            rows = list(read(case.rows(), fields=pipe.task.fields, targets=pipe.task.trainable))
            known[case.name] = Loaded(case, folder, pipe, rows)
        return known[case.name]

    return load


def _name(case: Case) -> str:
    return case.name


@pytest.fixture(scope="session", params=CASES, ids=_name)
def loaded(request: pytest.FixtureRequest, load: Callable[[Case], Loaded]) -> Loaded:
    """Every case."""
    return load(request.param)


@pytest.fixture(scope="session", params=TRAINABLE, ids=_name)
def trainable(request: pytest.FixtureRequest, load: Callable[[Case], Loaded]) -> Loaded:
    """Every case of a task that can be trained."""
    return load(request.param)


@pytest.fixture(scope="session", params=PREDICTING, ids=_name)
def predicting(request: pytest.FixtureRequest, load: Callable[[Case], Loaded]) -> Loaded:
    """Every case of a task that only predicts."""
    return load(request.param)


@pytest.fixture(scope="session")
def trained(trainable: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The case trained on its own rows until it should have them by heart."""
    config = ws.TrainConfig(
        epochs=60, batch_size=8, learning_rate=5e-3, warmup=0.0, schedule="constant", weight_decay=0.0, device="cpu"
    )
    run = ws.train(
        trainable.folder,
        trainable.case.rows(),
        output=tmp_path_factory.mktemp("runs") / trainable.case.name,
        task=trainable.case.task,
        config=config,
        options=trainable.case.options,
    )
    return Trained(trainable, run)


@pytest.fixture(autouse=True)
def quiet_logger() -> Iterator[None]:
    """The command line takes over the package's logger: give it back, or later tests hear nothing."""
    logger = logging.getLogger("warmstart")
    handlers, level, propagate = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)
