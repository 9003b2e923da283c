"""Train a detector: a loop as in Detectron2's plain_train_net.py, with resuming, gradient accumulation, precise BN."""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ssql_det.convert import Coverage, Metadata
from ssql_det.core.config import check_output_dir, flatten_config, save_config
from ssql_det.core.devices import choose_memory_format, warn_if_bfloat16_is_slow
from ssql_det.core.distributed import all_gather, all_reduce_mean, barrier, broadcast_tensors, is_main, rank, world_size
from ssql_det.core.errors import UserError
from ssql_det.core.files import atomic_write
from ssql_det.core.rng import RngState, seed_all
from ssql_det.core.run_folder import check_resume
from ssql_det.core.scalar_writer import METRICS_NAME, scalar_writer
from ssql_det.d2 import (
    CfgNode,
    CommonMetricPrinter,
    EventStorage,
    MetadataCatalog,
    build_lr_scheduler,
    build_optimizer,
)
from ssql_det.detect.any_precision import AnyPrecisionStep
from ssql_det.detect.config import (
    DEFAULT_VALUES,
    IGNORED_KEYS,
    RENAMED_KEYS,
    TRAINING_EVALUATION_KEYS,
    get_training_seed,
)
from ssql_det.detect.datasets import check_custom_annotations, check_dataset, is_custom
from ssql_det.detect.detector import build_detector, build_random_init_metadata, load_pretrained_detector
from ssql_det.detect.engine_errors import translate_config_errors
from ssql_det.detect.evaluation_data import Batch
from ssql_det.detect.periodic_evaluation import EVALUATIONS_NAME, FORMER_NAME, PeriodicEvaluation
from ssql_det.detect.quantized_training import QuantizedTraining
from ssql_det.detect.train_loader import BadImageLog, build_train_loader, get_micro_batch_size
from ssql_det.detect.training_checkpoint import FINAL_NAME, LAST_CHECKPOINT_NAME, WINDOW_SIZE, TrainingCheckpointer
from ssql_det.detect.training_step import TrainingStep, read_finite_losses, translate_divergence
from ssql_det.quant.forward import freezing
from ssql_det.quant.training import QUANTIZATION_NAME, QuantizerTraining

COVERAGE_NAME = "coverage.json"  # lists which tensors of MODEL.WEIGHTS were loaded
_TIMED_ITERATIONS = 5  # after which the time of a training is known well enough
_CHANGEABLE_KEYS = (  # keys that may change when a run is resumed
    *(*IGNORED_KEYS, "SOLVER.MAX_ITER", "SOLVER.CHECKPOINT_PERIOD"),
    *(*TRAINING_EVALUATION_KEYS, "TEST.EVAL_PERIOD"),
)
_logger = logging.getLogger(__name__)


def train(cfg: CfgNode, config_label: str, resume: bool = False) -> Path:
    """Train a detector from the backbone (or detector) in ``MODEL.WEIGHTS``, or from scratch if that is empty.

    Returns the path of the final checkpoint. ``config_label``, from ``make_config_label``, is for result rows.
    On the CPU, an interrupted run that is continued with ``resume`` ends with exactly the weights of an uninterrupted
    run. Under a process group every rank calls it; rank 0 writes.
    """
    folder, last_iteration, seed = check_output_dir(cfg.OUTPUT_DIR), cfg.SOLVER.MAX_ITER - 1, get_training_seed(cfg)
    device = torch.device(cfg.MODEL.DEVICE)
    memory_format = choose_memory_format(cfg.SSQL_DET.MEMORY_FORMAT, device, "SSQL_DET.MEMORY_FORMAT")
    if cfg.SOLVER.AMP.ENABLED:
        warn_if_bfloat16_is_slow(device, "SOLVER.AMP.ENABLED")
    _check_solver(cfg)
    _check_data(cfg)
    _check_norms(cfg)
    seed_all(seed + rank())  # as in Detectron2: each rank samples other proposals; DDP broadcasts rank 0's weights
    values = flatten_config(cfg)
    other_names = ("model_*.pth", METRICS_NAME, EVALUATIONS_NAME, FORMER_NAME, COVERAGE_NAME, QUANTIZATION_NAME)
    is_resumed = check_resume(
        *(values, folder, LAST_CHECKPOINT_NAME, other_names, resume),
        *(_CHANGEABLE_KEYS, DEFAULT_VALUES, RENAMED_KEYS),
    )
    model, metadata, coverage = _build_model(cfg, is_resumed)
    model = model.to(memory_format=memory_format)
    step = _build_step(cfg, model)
    trained = nn.ModuleDict({"model": model, **step.trained})
    with translate_config_errors("the solver cannot be built", cfg):
        optimizer = _build_optimizer(cfg, trained, step.quantizers)
        scheduler = build_lr_scheduler(cfg, optimizer)
    storage, bad_images = EventStorage(), BadImageLog()
    checkpointables = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    if step.state_dict():
        checkpointables["trained"] = step
    checkpointer = TrainingCheckpointer(folder, checkpointables, storage, bad_images)
    start = 0
    if is_resumed:
        saved_iteration, metadata = checkpointer.resume()
        start = saved_iteration + 1
        if start == cfg.SOLVER.MAX_ITER:
            _logger.info("the run in %s is already finished", folder)
            step.save_trained(cfg, folder)  # it may have been killed before it wrote this
            return folder / f"{FINAL_NAME}.pth"
        if start > cfg.SOLVER.MAX_ITER:
            raise UserError(
                f"the run in {folder} is trained up to iteration {saved_iteration}, beyond SOLVER.MAX_ITER "
                f"{cfg.SOLVER.MAX_ITER}; raise SOLVER.MAX_ITER to continue"
            )
        _logger.info("resuming at iteration %d", start)
    micro_batches = cfg.SSQL_DET.MICRO_BATCHES
    loader = build_train_loader(cfg, seed, first_micro_batch=start * micro_batches)
    provenance = config_label, Metadata.from_dict(metadata), str(metadata.get("arch", ""))
    evaluation = PeriodicEvaluation(cfg, *provenance, step)
    printer = CommonMetricPrinter(cfg.SOLVER.MAX_ITER)
    barrier()  # no rank writes before all have read
    if is_main():
        save_config(values, folder)
        if coverage is not None:
            with atomic_write(folder / COVERAGE_NAME, "w") as file:
                json.dump(coverage.to_dict(), file, indent=1)
        if not is_resumed:
            evaluation.clear()
    ddp_model: nn.Module = model
    if world_size() > 1:
        ddp_model = DistributedDataParallel(model, find_unused_parameters=step.has_unused_parameters)

    first_time = time.perf_counter()
    # start - 1 is the last iteration whose scalars are kept.
    with storage, scalar_writer(folder, start - 1 if is_resumed else None) as write_scalars:
        for iteration in range(start, cfg.SOLVER.MAX_ITER):
            storage.iter = iteration
            start_time = time.perf_counter()
            ddp_model.train()
            optimizer.zero_grad()
            recorded_losses = step(ddp_model, _take_batches(loader, micro_batches, bad_images), iteration)
            for named_losses in read_finite_losses(recorded_losses, trained, iteration):
                for name, loss in named_losses.items():
                    storage.put_scalar(name, loss)
            optimizer.step()
            storage.put_scalar("lr", optimizer.param_groups[0]["lr"], smoothing_hint=False)
            scheduler.step()
            storage.put_scalar("time", time.perf_counter() - start_time)
            if iteration - start + 1 == _TIMED_ITERATIONS:
                _log_duration((time.perf_counter() - first_time) / _TIMED_ITERATIONS, last_iteration - iteration)

            if (iteration + 1) % WINDOW_SIZE == 0 or iteration == last_iteration:
                storage.put_scalar("bad_images", sum(all_gather(len(bad_images.names))), smoothing_hint=False)
                printer.write()
                smoothed_scalars = storage.latest_with_smoothing_hint(WINDOW_SIZE)
                write_scalars(iteration, {name: value for name, (value, _) in smoothed_scalars.items()})
            if iteration == last_iteration or evaluation.is_due(iteration, last_iteration):
                with translate_divergence(iteration):
                    estimate_norms(cfg, model, seed)
                broadcast_tensors(step.trained.buffers())
            if evaluation.is_due(iteration, last_iteration):
                write_scalars(iteration, evaluation.evaluate(model, iteration))
            if (iteration + 1) % cfg.SOLVER.CHECKPOINT_PERIOD == 0 and iteration != last_iteration:
                checkpointer.save(f"model_{iteration:07d}", iteration, metadata)
        path = checkpointer.save(FINAL_NAME, last_iteration, metadata)
    step.save_trained(cfg, folder)
    return path


def estimate_norms(cfg: CfgNode, model: nn.Module, seed: int) -> None:
    """Precise BN: estimate the norms' statistics over many training batches, if ``TEST.PRECISE_BN`` is enabled.

    The method of Wu and Johnson, "Rethinking Batch in BatchNorm" (2021), as in fvcore. Every call uses the same images
    and restores the random generators. Afterwards every rank has the average of all ranks' estimates. All other
    buffers, and the statistics too if they are not estimated, become those of rank 0.
    """
    norms = get_bn_modules(model) if cfg.TEST.PRECISE_BN.ENABLED else []
    if norms:
        rng_state = RngState.capture()
        is_training = model.training
        model.train()
        with EventStorage():  # the engine (Detectron2 or its stand-in) logs losses to the current storage
            update_bn_stats(model, build_train_loader(cfg, seed + 1), cfg.TEST.PRECISE_BN.NUM_ITER)
        model.train(is_training)
        rng_state.restore()
    for norm in norms:
        _average_over_ranks(norm)
    broadcast_tensors(model.buffers())


def _average_over_ranks(norm: nn.Module) -> None:
    """Average a norm's running statistics: the variance over all ranks is their mean variance plus the variance of
    their means."""
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    mean_over_ranks = all_reduce_mean(mean)
    variance.copy_(all_reduce_mean(variance + (mean - mean_over_ranks).square()))
    mean.copy_(mean_over_ranks)


def _build_model(cfg: CfgNode, is_resumed: bool) -> tuple[nn.Module, dict[str, Any], Coverage | None]:
    """Build the detector; returns it, the metadata for its checkpoints, and which weights were loaded (None: none).

    The seed in the metadata is that of this training, not of the pretraining. A resumed run does not load
    ``MODEL.WEIGHTS``, because its own checkpoint has all weights.
    """
    seed_metadata = {"seed": get_training_seed(cfg)}
    if (cfg.MODEL.WEIGHTS or cfg.SSQL_DET.LOAD_HEADS) and not is_resumed:
        model, checkpoint, coverage = load_pretrained_detector(cfg)
        return model, {**checkpoint.metadata_dict(), **seed_metadata}, coverage
    model = build_detector(cfg)
    if not is_resumed:
        _logger.warning(
            "MODEL.WEIGHTS is empty: the detector is trained from random weights; MODEL.WEIGHTS FILE names a backbone"
        )
    return model, {**build_random_init_metadata(cfg, model), **seed_metadata}, None


def _log_duration(seconds: float, num_remaining: int) -> None:
    """How long the training takes, by the mean time of its first iterations."""
    minutes = seconds * num_remaining / 60
    if minutes >= 100:
        text = f"{minutes / 60:.1f} hours"
    else:
        text = f"{minutes:.0f} min" if minutes >= 1 else "less than 1 min"
    message = "%.2f s per iteration: %s for the remaining %d, without evaluations"
    _logger.info(message, seconds, text, num_remaining)


def _build_step(cfg: CfgNode, model: nn.Module) -> TrainingStep:
    options = cfg.SSQL_DET.MICRO_BATCHES, cfg.SOLVER.AMP.ENABLED
    training = QuantizedTraining.from_config(cfg)
    return TrainingStep(*options) if training is None else AnyPrecisionStep(model, training, *options)


def _build_optimizer(cfg: CfgNode, trained: nn.Module, quantizers: QuantizerTraining | None) -> torch.optim.Optimizer:
    """The optimizer that the solver describes. Parameters of quantizers have rates of their own."""
    if quantizers is None:
        return build_optimizer(cfg, trained)
    with freezing(quantizers.module):
        optimizer = build_optimizer(cfg, trained)
    for group in quantizers.make_groups(cfg.SOLVER.BASE_LR):
        optimizer.add_param_group(group)
    return optimizer


def _take_batches(loader: Iterator[Batch], count: int, bad_images: BadImageLog) -> Iterator[Batch]:
    for batch in itertools.islice(loader, count):
        bad_images.log_skipped_images(batch)
        yield batch


def _check_solver(cfg: CfgNode) -> None:
    get_micro_batch_size(cfg)
    if cfg.SEED + world_size() > 1 << 32:  # the seed of a rank is SEED + rank
        raise UserError(f"SEED must be less than 2**32, got {cfg.SEED}")


def _check_norms(cfg: CfgNode) -> None:
    if world_size() == 1 or cfg.MODEL.DEVICE != "cpu":
        return
    keys = [key for key, value in flatten_config(cfg).items() if value in ("SyncBN", "nnSyncBN")]
    if keys:
        raise UserError(f"SyncBN needs GPUs; for several processes on the CPU set {' and '.join(keys)} to naiveSyncBN")


def _check_data(cfg: CfgNode) -> None:
    """Check that all data sets have the same classes, as many as the head, and check custom training annotations.

    Without these checks a run would fail late, or train wrongly.
    """
    classes_by_dataset: dict[str, list[str]] = {}
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        check_dataset(name)
        classes = getattr(MetadataCatalog.get(name), "thing_classes", None)
        if classes is None:
            continue
        if len(classes) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            raise UserError(
                f"{name} has {len(classes)} classes and MODEL.ROI_HEADS.NUM_CLASSES is "
                f"{cfg.MODEL.ROI_HEADS.NUM_CLASSES}; set it to {len(classes)}"
            )
        classes_by_dataset[name] = list(classes)
        for other, other_classes in classes_by_dataset.items():
            if other_classes != classes_by_dataset[name]:
                raise UserError(
                    f"{other} has the classes {', '.join(other_classes)}, but {name} has {', '.join(classes)}; "
                    "they must be the same, in the same order"
                )
    for name in filter(is_custom, cfg.DATASETS.TRAIN):
        check_custom_annotations(name)
