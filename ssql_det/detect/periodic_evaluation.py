"""Evaluate during a training, at full precision and low bit-widths; result rows go to OUTPUT_DIR/evaluations.jsonl."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from torch import nn

from ssql_det.convert import Metadata
from ssql_det.core import rows
from ssql_det.core.distributed import broadcast_from_main, is_main, world_size
from ssql_det.core.errors import UserError
from ssql_det.core.rng import RngState
from ssql_det.d2 import CfgNode
from ssql_det.detect.datasets import shorten_dataset_name
from ssql_det.detect.evaluation_data import CachedLoader, build_evaluation_loader
from ssql_det.detect.quantized_evaluation import (
    DetectorProvenance,
    EvaluationContext,
    QuantizationSettings,
    evaluate_quantized,
    make_row,
    prepare_evaluation,
)
from ssql_det.detect.training_step import TrainingStep
from ssql_det.quant import Bits, Calibration, Scheme, parse_bit_widths
from ssql_det.quant.scheme import SWITCHABLE, TRAINED
from ssql_det.quant.switchable_norms import SwitchableNorms

EVALUATIONS_NAME = "evaluations.jsonl"
FORMER_NAME = "looks.jsonl"  # name of the same file in runs of earlier versions


class PeriodicEvaluation:
    """Evaluates every ``SSQL_DET.EVAL_PERIOD`` (or ``TEST.EVAL_PERIOD``) iterations and after the last one.

    Three arguments are only recorded in the rows: ``config_label``, from ``make_config_label``; ``metadata``, that of
    the training's checkpoints, with the pretraining method; ``backbone``, the name of the backbone's architecture.
    Of ``step``, norms that are trained for bit-widths take the place of those that the config's scheme leaves as
    trained, and quantizers with trained parameters that of the config's.
    """

    def __init__(
        self,
        cfg: CfgNode,
        config_label: str,
        metadata: Metadata,
        backbone: str,
        step: TrainingStep,
    ) -> None:
        self._cfg, self._config_label, self._metadata, self._backbone = cfg, config_label, metadata, backbone
        self._period = cfg.SSQL_DET.EVAL_PERIOD or cfg.TEST.EVAL_PERIOD
        self._bit_widths = parse_bit_widths(",".join(map(str, cfg.SSQL_DET.EVAL_BITS)))
        scheme, scope, self._norms = Scheme.parse(cfg.SSQL_DET.SCHEME), cfg.SSQL_DET.SCOPE, step.switchable_norms
        self._trained = step.quantizers if step.quantizers and step.quantizers.parameters else None
        if self._trained is not None:
            scheme = _combine(self._trained.quantization.scheme, scheme)
            scope = cfg.SSQL_DET.QUANTIZED_TRAINING.SCOPE
        if self._norms is not None and scheme.norms == TRAINED:
            scheme = replace(scheme, norms=SWITCHABLE)
        if self._period > 0:
            scheme.check_bits(self._bit_widths)
            if scheme.norms == SWITCHABLE and self._norms is not None:
                _check_norms(self._norms, self._bit_widths)
        self._settings = QuantizationSettings(scope, Calibration(cfg.SSQL_DET.CALIB_IMAGES), scheme)
        if world_size() > cfg.SSQL_DET.CALIB_IMAGES:
            raise UserError(
                f"SSQL_DET.CALIB_IMAGES must be at least the number of processes ({world_size()}), "
                f"got {cfg.SSQL_DET.CALIB_IMAGES}"
            )
        self._folder = Path(cfg.OUTPUT_DIR)
        datasets = cfg.DATASETS.TEST if self._period > 0 else ()
        # built here, so that an invalid data set fails at startup and not in the middle of the run
        self._loaders = {name: build_evaluation_loader(cfg, name) for name in datasets}

    def is_due(self, iteration: int, last_iteration: int) -> bool:
        """Whether to evaluate after this iteration (counted from 0)."""
        return self._period > 0 and ((iteration + 1) % self._period == 0 or iteration == last_iteration)

    def clear(self) -> None:
        """Delete all rows in OUTPUT_DIR; call it only when a training starts anew.

        Rows can be there if an earlier run was killed before its first checkpoint.
        """
        for name in (EVALUATIONS_NAME, FORMER_NAME):
            (self._folder / name).unlink(missing_ok=True)

    def evaluate(self, model: nn.Module, iteration: int) -> dict[str, float]:
        """Append a row per test set and bit-width; return the metrics of all rows (NaN where one is None).

        ``iteration`` is the last finished one, counted from 0. The keys of the metrics are ``dataset/bits/metric``. A
        row that a killed run wrote for the same iteration is reused. The random generators' states are restored.
        """
        checkpoint_label = f"iteration {iteration}"
        provenance = DetectorProvenance(checkpoint_label, self._metadata, self._backbone)
        finished_rows = {(row.checkpoint, row.dataset, row.bits): row for row in broadcast_from_main(self._read_rows)}
        rng_state = RngState.capture()
        scalars: dict[str, float] = {}
        for dataset, loader in self._loaders.items():
            name = shorten_dataset_name(dataset)
            context: EvaluationContext | None = None
            for bits in self._bit_widths:
                row = finished_rows.get((checkpoint_label, name, str(bits)))
                if row is None:
                    if context is None:
                        context = self._prepare(model, dataset, loader)
                    row = make_row(context, self._config_label, bits, evaluate_quantized(context, bits), provenance)
                    if is_main():
                        rows.append_row(self._folder / EVALUATIONS_NAME, row)
                scalars |= {
                    f"{name}/{bits}/{metric}": math.nan if value is None else value
                    for metric, value in row.metrics.items()
                    if "/" in metric  # metrics of the evaluator; costs such as GBOPs have no slash
                }
        rng_state.restore()
        return scalars

    def _prepare(self, model: nn.Module, dataset: str, loader: CachedLoader) -> EvaluationContext:
        context = prepare_evaluation(self._cfg, model, self._settings, dataset, loader, trained=self._trained)
        context.quantization.switchable_norms = self._norms
        return context

    def _read_rows(self) -> list[rows.Row]:
        files = [self._folder / name for name in (FORMER_NAME, EVALUATIONS_NAME)]
        return [row for file in files if file.exists() for row in rows.read_rows(file)]


def _combine(trained: Scheme, given: Scheme) -> Scheme:
    """The scheme of a training's quantizers with the norms of the config's, which says nothing else."""
    if replace(given, norms=TRAINED) not in (Scheme(), replace(trained, norms=TRAINED)):
        raise UserError(
            f"SSQL_DET.SCHEME {given} has other quantizers than are trained, {trained}; evaluations use those, so set "
            "norms alone, or leave it at its default"
        )
    return replace(trained, norms=given.norms)


def _check_norms(norms: SwitchableNorms, bit_widths: Iterable[Bits]) -> None:
    untrained = [bits for bits in bit_widths if bits.weight is not None and bits.weight not in norms.weight_bits]
    if untrained:
        raise UserError(
            f"SSQL_DET.EVAL_BITS has {untrained[0]}, but norms are trained for weights of "
            f"{', '.join(map(str, norms.weight_bits))} bits; leave it out"
        )
