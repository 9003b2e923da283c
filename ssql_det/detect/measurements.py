"""Measure a detector on the selection images, with some of its modules quantized; each result is kept in a file.

``measurements.jsonl`` in the folder of a run has a JSON line for each measurement, and ``measurements.json`` the
settings that determine them. Whoever asks for a measurement again, a run that goes on or another command, gets it from
there; other settings are an error once the folder has a measurement.

Two quantities can be measured: AP, of boxes or the mean of boxes and masks, by the evaluator of the training data; and
the distillation loss, the difference between the outputs of the quantized and the float detector on the same regions,
which is faster, needs no objects and changes smoothly.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssql_det.core.config import check_output_dir, check_same_config
from ssql_det.core.distributed import all_gather, broadcast_from_main, is_main, rank, world_size
from ssql_det.core.errors import UserError
from ssql_det.core.files import atomic_write
from ssql_det.core.files import sha256 as hash_file
from ssql_det.core.json_files import read_json
from ssql_det.core.json_lines import append_record, read_records
from ssql_det.core.rows import finite_or_none
from ssql_det.d2 import CfgNode, engine_name
from ssql_det.detect.distillation import DistillationLoss
from ssql_det.detect.evaluation import evaluate, split_class_aps
from ssql_det.detect.evaluation_data import CachedLoader, RoleImages, merge_batches, select_role_images
from ssql_det.detect.quantized_evaluation import (
    NormBatches,
    QuantizationSettings,
    build_calibrated_quantization,
    collect_settings,
    describe_calibration,
    evaluate_detector_at,
)
from ssql_det.detect.replay import record_proposals
from ssql_det.detect.saved_quantization import load_with_images
from ssql_det.detect.selection_data import registering_selection
from ssql_det.quant import Bits, Quantization, Scheme
from ssql_det.quant.bits import format_bits

MEASUREMENTS_NAME, SETTINGS_NAME = "measurements.jsonl", "measurements.json"
AP, DISTILLATION = "AP", "distillation loss"
_BATCH_SIZE = 8  # images, for the distillation loss
_TASKS = ("bbox", "segm")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measurement:
    """One line of the file."""

    quantity: str  # AP or DISTILLATION
    bits: str  # of the modules without overrides
    overrides: Mapping[str, str]  # bit-widths by pattern of module paths
    value: float
    metrics: Mapping[str, float | None] = field(default_factory=dict)  # of the evaluator
    repair_bytes: int = 0  # of norms and biases that only this bit-width has
    seconds: float = 0.0


class MeasurementFile:
    """The measurements of a folder. Every rank makes one; rank 0 reads and writes."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, settings
        found = broadcast_from_main(self._read)
        self._measurements = {_make_key(each): each for each in found}

    def find(self, quantity: str, bits: Bits, overrides: Mapping[str, Bits]) -> Measurement | None:
        return self._measurements.get(_make_key(_describe(quantity, bits, overrides)))

    def add(self, measurement: Measurement) -> None:
        self._measurements[_make_key(measurement)] = measurement
        if not is_main():
            return
        if not (self.folder / MEASUREMENTS_NAME).exists():
            with atomic_write(self.folder / SETTINGS_NAME, "w") as file:
                json.dump(self.settings, file, indent=1)
        self._check_settings()  # another run may have started in the folder since
        append_record(self.folder / MEASUREMENTS_NAME, dataclasses.asdict(measurement), "a measurement")

    def _read(self) -> list[Measurement]:
        path = self.folder / MEASUREMENTS_NAME
        if not path.exists():
            return []
        self._check_settings()
        found = [_read_record(record, f"{path}, line {line}") for line, record in read_records(path, "a measurement")]
        if found:
            _logger.info("using the %d measurements in %s", len(found), path)
        return found

    def _check_settings(self) -> None:
        path, advice = self.folder / SETTINGS_NAME, "choose another OUTPUT_DIR"
        if not path.exists():
            raise UserError(f"{self.folder / MEASUREMENTS_NAME} has no {SETTINGS_NAME} beside it; {advice}")
        saved = read_json(path, advice, lambda content: isinstance(content, dict))
        check_same_config(saved, self.settings, f"{self.folder / MEASUREMENTS_NAME}", advice)


class Measurer:
    """Measures the detector; :func:`measuring` makes one."""

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        images: RoleImages,
        scheme: Scheme,
        file: MeasurementFile,
        make_quantization: Callable[[], Quantization],
        stack: ExitStack,  # whose contexts stay open as long as this is used
    ) -> None:
        self._cfg, self._model, self._images = cfg, model.eval(), images
        self.scheme, self.file = scheme, file
        self._make_quantization, self._stack = make_quantization, stack
        self.norm_batches = NormBatches(model, images.calibration)

    @cached_property
    def quantization(self) -> Quantization:
        """Calibrated when it is needed first."""
        return self._make_quantization()

    def measure(self, quantity: str, bits: Bits, overrides: Mapping[str, Bits] | None = None) -> Measurement:
        """The measurement of a bit-width with overrides of single modules, from the file if it is there.

        All ranks call it, and get the same.
        """
        overrides = overrides or {}
        found = self.file.find(quantity, bits, overrides)
        if found is not None:
            return found
        start, quantization = time.perf_counter(), self.quantization
        kept = {*quantization.repairs}
        compute = self._make_evaluate() if quantity == AP else self._make_distill()
        metrics = evaluate_detector_at(quantization, bits, compute, overrides, self.norm_batches)
        repair_bytes = quantization.get_repair(bits, overrides).num_bytes
        for label in {*quantization.repairs} - kept:  # norms of a bit-width that nobody asks for again
            del quantization.repairs[label]
        measurement = dataclasses.replace(
            _describe(quantity, bits, overrides),
            value=metrics[DISTILLATION] if quantity == DISTILLATION else average_ap(metrics),
            metrics={name: finite_or_none(value) for name, value in split_class_aps(metrics)[0].items()},
            repair_bytes=repair_bytes,
            seconds=round(time.perf_counter() - start, 2),
        )
        if not math.isfinite(measurement.value):
            raise UserError(f"the {quantity} at {format_bits(bits, overrides)} is not finite; use other bit-widths")
        self.file.add(measurement)
        return measurement

    def measure_loss(self, quantity: str, bits: Bits, overrides: Mapping[str, Bits] | None = None) -> float:
        """How much worse than the float detector: AP lost, or the distillation loss."""
        if quantity == DISTILLATION:
            return self.measure(quantity, bits, overrides).value
        return self.measure(quantity, Bits.FP).value - self.measure(quantity, bits, overrides).value

    @cached_property
    def _selection(self) -> tuple[str, CachedLoader]:
        return self._stack.enter_context(registering_selection(self._cfg, self._images.selection))

    def _make_evaluate(self) -> Callable[[], dict[str, float]]:
        name, loader = self._selection
        return partial(evaluate, self._model, loader, name, self._cfg.SSQL_DET.FAST_EVALUATION)

    @cached_property
    def _distillation(self) -> tuple[range, DistillationLoss]:
        """The indices of this rank's batches, which are the same however many ranks there are, and their loss."""
        images = self._images.selection
        starts = range(0, len(images), _BATCH_SIZE)[rank() :: world_size()]
        batches = [next(merge_batches(images[start : start + _BATCH_SIZE], _BATCH_SIZE)) for start in starts]
        return starts, DistillationLoss(self._model, record_proposals(self._model, batches))

    def _make_distill(self) -> Callable[[], dict[str, float]]:
        starts, compute_loss = self._distillation  # recorded now, while the detector is float

        def distill() -> dict[str, float]:
            with torch.no_grad():
                losses = [(start, float(compute_loss(self._model, index))) for index, start in enumerate(starts)]
            gathered = sorted(pair for pairs in all_gather(losses) for pair in pairs)
            return {DISTILLATION: math.fsum(loss for _, loss in gathered) / len(gathered)}

        return distill


@contextmanager
def measuring(
    cfg: CfgNode,
    model: nn.Module,
    weights_sha256: str,
    settings: QuantizationSettings,
    quantization_file: Path | None = None,
) -> Iterator[Measurer]:
    """Measure the detector in ``OUTPUT_DIR``, on the selection images of the settings' calibration.

    With a ``quantization_file``, whose settings these must be, the detector is not calibrated.
    """
    if settings.calibration.selection_images < 1:
        raise UserError("bit-widths of parts are compared on images of their own; give --selection-images")
    images = select_role_images(cfg, settings.calibration)
    file_sha256 = "" if quantization_file is None else broadcast_from_main(partial(hash_file, quantization_file))
    all_settings = {
        **collect_settings(cfg, weights_sha256, settings, file_sha256, engine_name()),
        "the training images' sha256": _hash_images(images),
    }

    def make_quantization() -> Quantization:
        if quantization_file is None:
            return build_calibrated_quantization(cfg, model, settings, images.calibration)
        quantization, _ = load_with_images(quantization_file, cfg, model, settings)
        quantization.calibration = describe_calibration(cfg, settings, images.calibration)
        return quantization

    file = MeasurementFile(check_output_dir(cfg.OUTPUT_DIR), all_settings)
    with ExitStack() as stack:
        yield Measurer(cfg, model, images, settings.scheme, file, make_quantization, stack)


def average_ap(metrics: Mapping[str, float | None]) -> float:
    """The AP of boxes, or the mean of boxes and masks if there are masks; 0 where nothing was detected.

    >>> average_ap({"bbox/AP": 40.0, "segm/AP": 30.0}), average_ap({"bbox/AP": None})
    (35.0, 0.0)
    """
    aps = [metrics[f"{task}/AP"] for task in _TASKS if f"{task}/AP" in metrics]
    return sum(0.0 if ap is None or not math.isfinite(ap) else ap for ap in aps) / max(len(aps), 1)


def _describe(quantity: str, bits: Bits, overrides: Mapping[str, Bits]) -> Measurement:
    texts = {pattern: str(override) for pattern, override in overrides.items()}
    return Measurement(quantity, str(bits), texts, math.nan)


def _make_key(measurement: Measurement) -> tuple[Any, ...]:
    """The order of overrides matters: the last one that matches counts."""
    return measurement.quantity, measurement.bits, *measurement.overrides.items()


def _read_record(record: Any, where: str) -> Measurement:
    try:
        measurement = Measurement(**record)
        is_valid = math.isfinite(measurement.value) and all(
            isinstance(text, str) for pair in measurement.overrides.items() for text in pair
        )
        is_valid &= isinstance(measurement.metrics, dict) and isinstance(measurement.repair_bytes, int)
    except (TypeError, AttributeError):
        is_valid = False
    if not is_valid:
        raise UserError(f"{where} is not a measurement; delete that line to measure again")
    return measurement


def _hash_images(images: RoleImages) -> str:
    """SHA-256 of the names of the calibration images, and of the names, sizes and objects of the selection images."""
    digest = hashlib.sha256()
    for image in images.calibration.dataset_dicts:
        digest.update(repr(Path(image["file_name"]).name).encode())
    for image in images.selection.dataset_dicts:
        objects = [(each["category_id"], *each["bbox"]) for each in image.get("annotations", ())]
        digest.update(repr((Path(image["file_name"]).name, image["height"], image["width"], objects)).encode())
    return digest.hexdigest()
