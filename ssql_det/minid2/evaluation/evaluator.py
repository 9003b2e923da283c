"""Running a model over a data set and passing its outputs to evaluators."""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Callable, Iterator, Mapping, MutableSequence, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from ..utils.comm import get_world_size, is_main_process
from ..utils.logger import log_every_n_seconds

_logger = logging.getLogger(__name__)

Inputs = Sequence[Mapping[str, Any]]

WARM_UP = 5  # batches that are not timed
LOG_PERIOD = 5  # seconds


class DatasetEvaluator:
    """Called as ``reset``, ``process`` for each batch, ``evaluate``, on every rank."""

    def reset(self) -> None:
        """Clear the state."""

    def process(self, inputs: Inputs, outputs: Inputs) -> None:
        """Process the inputs and outputs of a batch."""

    def evaluate(self) -> dict[str, Any] | None:
        """The results by task, such as ``{"bbox": {"AP": 40.2}}``; they may be empty except on rank 0."""


class DatasetEvaluators(DatasetEvaluator):
    """Combines several evaluators, whose results must have different names."""

    def __init__(self, evaluators: Sequence[DatasetEvaluator]) -> None:
        self._evaluators = evaluators

    def reset(self) -> None:
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs: Inputs, outputs: Inputs) -> None:
        for evaluator in self._evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self) -> dict[str, Any]:
        results: dict[str, Any] = {}
        for evaluator in self._evaluators:
            own = evaluator.evaluate()
            if own is None or not is_main_process():
                continue
            twice = results.keys() & own.keys()
            assert not twice, f"several evaluators return results of the same name: {sorted(twice)}"
            results.update(own)
        return results


def inference_on_dataset(
    model: Callable[[Any], Any],
    data_loader: Any,
    evaluator: DatasetEvaluator | MutableSequence[DatasetEvaluator] | None,
    callbacks: Mapping[str, Callable[[], object]] | None = None,
) -> dict[str, Any]:
    """Run the model, in eval mode, over a loader, and return the evaluator's results; speed and ETA are logged.

    Without an evaluator only the speed is measured. ``callbacks`` may have ``on_start``, ``on_end``, and for each batch
    ``before_inference`` and ``after_inference``.

    >>> inference_on_dataset(model, loader, None)
    {}
    """
    total = len(data_loader)
    _logger.info(f"Start inference on {total} batches")
    if evaluator is None:
        evaluator = []
    if isinstance(evaluator, MutableSequence):
        evaluator = DatasetEvaluators(evaluator)
    evaluator.reset()

    def call(name: str) -> None:
        (callbacks or {}).get(name, lambda: None)()

    warm_up = min(WARM_UP, total - 1)
    clock = _Clock()
    with ExitStack() as stack:
        if isinstance(model, nn.Module):
            stack.enter_context(inference_context(model))
        stack.enter_context(torch.no_grad())
        call("on_start")
        for index, inputs in enumerate(data_loader):
            clock.lap("Dataloading")
            if index == warm_up:
                clock = _Clock()
            call("before_inference")
            outputs = model(inputs)
            call("after_inference")
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            clock.lap("Inference")
            evaluator.process(inputs, outputs)
            clock.lap("Eval")

            timed = index + 1 - (warm_up if index >= warm_up else 0)
            if index >= 2 * warm_up or clock.laps["Inference"] / timed > 5:
                eta = datetime.timedelta(seconds=int(clock.total() / timed * (total - index - 1)))
                progress = f"Inference done {index + 1}/{total}. {clock.rates(timed)} ETA={eta}"
                log_every_n_seconds(logging.INFO, progress, n=LOG_PERIOD)
        call("on_end")

    timed, devices = total - warm_up, get_world_size()
    for name, seconds in {"": clock.total(), "pure compute ": clock.laps["Inference"]}.items():
        rate = f"{seconds / timed:.6f} s / iter per device, on {devices} devices"
        _logger.info(f"Total inference {name}time: {datetime.timedelta(seconds=seconds)} ({rate})")
    return evaluator.evaluate() or {}


@contextmanager
def inference_context(model: nn.Module) -> Iterator[None]:
    """Set the model to eval mode; on exit its mode is restored."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


class _Clock:
    """Seconds per stage; ``lap`` adds the time since the previous call to a stage."""

    def __init__(self) -> None:
        self.laps = dict.fromkeys(("Dataloading", "Inference", "Eval"), 0.0)
        self._start = self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.laps[stage] += now - self._last
        self._last = now

    def total(self) -> float:
        return time.perf_counter() - self._start

    def rates(self, count: int) -> str:
        stages = {**self.laps, "Total": self.total()}
        return " ".join(f"{stage}: {seconds / count:.4f} s/iter." for stage, seconds in stages.items())
