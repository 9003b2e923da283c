"""The training of a detector, on one page: Detectron2's plain loop, and what small machines and killed runs need."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssql_det.convert import Coverage, Metadata
from ssql_det.core.config import check_minimums, check_output_dir, check_resume, flatten_config, save_config
from ssql_det.core.distributed import all_gather, all_reduce_mean, barrier, broadcast_tensors, is_main, rank, world_size
from ssql_det.core.errors import UserError
from ssql_det.core.files import atomic_write
from ssql_det.core.rng import RngState, seed_all
from ssql_det.core.scalar_writer import scalar_writer
from ssql_det.d2 import (
    CfgNode,
    CommonMetricPrinter,
    EventStorage,
    MetadataCatalog,
    build_lr_scheduler,
    build_optimizer,
)
from ssql_det.detect import training_checkpoint
from ssql_det.detect.config import (
    DEFAULT_VALUES,
    IGNORED_KEYS,
    RENAMED_KEYS,
    TRAINING_EVALUATION_KEYS,
    get_training_seed,
)
from ssql_det.detect.datasets import check_custom_annotations, check_dataset, is_custom
from ssql_det.detect.detector import build_detector, describe_untrained, load_pretrained_detector
from ssql_det.detect.engine_errors import translate_errors
from ssql_det.detect.evaluation_data import Batch
from ssql_det.detect.periodic_evaluation import EVALUATIONS_NAME, PeriodicEvaluation
from ssql_det.detect.train_loader import BadImageLog, build_train_loader, get_micro_batch_size

COVERAGE_NAME = "coverage.json"
_MAY_CHANGE = (  # when a run goes on
    *(*IGNORED_KEYS, "SOLVER.MAX_ITER", "SOLVER.CHECKPOINT_PERIOD"),
    *(*TRAINING_EVALUATION_KEYS, "TEST.EVAL_PERIOD"),
)
_CURE = "lower SOLVER.BASE_LR or lengthen SOLVER.WARMUP_ITERS, and train in another OUTPUT_DIR"
_logger = logging.getLogger(__name__)


def train(cfg: CfgNode, config_label: str, resume: bool = False) -> Path:
    """Train what a config describes, from ``MODEL.WEIGHTS``'s backbone, or from scratch where that is empty.

    Returns the path of the final checkpoint. With ``resume`` a run that was stopped becomes, on the CPU bit for bit,
    the run that was not. Under a process group every rank calls it, each takes its part of a batch, and rank 0 writes.
    """
    folder, last, seed = check_output_dir(cfg.OUTPUT_DIR), cfg.SOLVER.MAX_ITER - 1, get_training_seed(cfg)
    _check_numbers(cfg)
    _check_data(cfg)
    _check_norms(cfg)
    seed_all(seed + rank())  # Detectron2's way: ranks sample different regions; weights are the first's
    is_there = (folder / training_checkpoint.LAST_CHECKPOINT_NAME).exists()
    values = flatten_config(cfg)
    is_resumed = check_resume(values, folder, is_there, resume, _MAY_CHANGE, DEFAULT_VALUES, RENAMED_KEYS)
    model, description, coverage = _network(cfg, begins=not is_resumed)
    with translate_errors("the solver cannot be built"):
        optimizer = build_optimizer(cfg, model)
        scheduler = build_lr_scheduler(cfg, optimizer)
    storage, bad_images = EventStorage(), BadImageLog()
    run = training_checkpoint.TrainingCheckpointer(
        folder, {"model": model, "optimizer": optimizer, "scheduler": scheduler}, storage, bad_images
    )
    start = 0
    if is_resumed:
        newest, description = run.resume()
        start = newest + 1
        if start == cfg.SOLVER.MAX_ITER:
            _logger.info("%s is finished already", folder)
            return folder / f"{training_checkpoint.FINAL_NAME}.pth"
        if start > cfg.SOLVER.MAX_ITER:
            raise UserError(
                f"{folder} is trained up to iteration {newest}, beyond SOLVER.MAX_ITER {cfg.SOLVER.MAX_ITER}; "
                "nothing is left to do"
            )
        _logger.info("going on at iteration %d", start)
    parts = cfg.SSQL_DET.MICRO_BATCHES
    batches = build_train_loader(cfg, seed, first=start * parts)
    watch = PeriodicEvaluation(cfg, config_label, Metadata.from_dict(description), str(description.get("arch", "")))
    printer = CommonMetricPrinter(cfg.SOLVER.MAX_ITER)
    barrier()  # nobody writes before all have read
    if is_main():
        save_config(values, folder)
        if coverage is not None:
            with atomic_write(folder / COVERAGE_NAME, "w") as file:
                json.dump(coverage.to_dict(), file, indent=1)
        if not is_resumed:
            (folder / EVALUATIONS_NAME).unlink(missing_ok=True)  # of a run that was killed before its first checkpoint
    trained = DistributedDataParallel(model) if world_size() > 1 else model

    with storage, scalar_writer(folder, start - 1 if is_resumed else None) as write:
        for iteration in range(start, cfg.SOLVER.MAX_ITER):
            storage.iter = iteration
            begun = time.perf_counter()
            trained.train()
            optimizer.zero_grad()
            for part in range(parts):
                batch = next(batches)
                bad_images.take_from(batch)
                with _reduced(trained, is_last=part == parts - 1):
                    losses = _losses(trained, batch, iteration, cfg.SOLVER.AMP.ENABLED)
                    _require_finite(losses, iteration)
                    total = torch.stack(list(losses.values())).sum()
                    (total / parts).backward()
                named = {"total_loss": total, **losses}
                for name, loss in zip(named, all_reduce_mean(torch.stack(list(named.values()))).tolist(), strict=True):
                    storage.put_scalar(name, loss)
            optimizer.step()
            storage.put_scalar("lr", optimizer.param_groups[0]["lr"], smoothing_hint=False)
            scheduler.step()
            storage.put_scalar("time", time.perf_counter() - begun)

            if (iteration + 1) % training_checkpoint.WINDOW_SIZE == 0 or iteration == last:
                storage.put_scalar("bad_images", sum(all_gather(len(bad_images.names))), smoothing_hint=False)
                printer.write()
                medians = storage.latest_with_smoothing_hint(training_checkpoint.WINDOW_SIZE)  # of what is noisy
                write(iteration, {name: value for name, (value, _) in medians.items()})
            if iteration == last or watch.is_due(iteration, last):
                estimate_norms(cfg, model, seed)
            if watch.is_due(iteration, last):
                write(iteration, watch.look(model, iteration))
            if (iteration + 1) % cfg.SOLVER.CHECKPOINT_PERIOD == 0 and iteration != last:
                run.save(f"model_{iteration:07d}", iteration, description)
        return run.save(training_checkpoint.FINAL_NAME, last, description)


def estimate_norms(cfg: CfgNode, model: nn.Module, seed: int) -> None:
    """Precise BN, where the config says so and norms are not frozen: statistics over many batches, estimated anew.

    Wu and Johnson, "Rethinking Batch in BatchNorm" (2021); the computation is fvcore's. Generators stay as they are.
    The images are the beginning of a stream of their own, the same each time, which the ranks share. Afterwards every
    rank has the same statistics: those of all, or where nothing is estimated the main process's.
    """
    norms = get_bn_modules(model) if cfg.TEST.PRECISE_BN.ENABLED else []
    if norms:
        generators = RngState.capture()
        is_training = model.training
        model.train()
        with (
            EventStorage(),
            translate_errors("the norms' statistics cannot be estimated"),
        ):  # losses report to a storage
            update_bn_stats(model, build_train_loader(cfg, seed + 1), cfg.TEST.PRECISE_BN.NUM_ITER)
        model.train(is_training)
        generators.restore()
    for norm in norms:
        _average(norm)
    broadcast_tensors(model.buffers())


def _average(norm: nn.Module) -> None:
    """Over the ranks, which count the same: the variance of all is that within each and that of their means."""
    average, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    of_all = all_reduce_mean(average)
    variance.copy_(all_reduce_mean(variance + (average - of_all).square()))
    average.copy_(of_all)


def _network(cfg: CfgNode, begins: bool) -> tuple[nn.Module, dict[str, Any], Coverage | None]:
    """The detector, and what is known about it: with the pretrained backbone if there is one and the run begins.

    Then also how it was covered.
    """
    seed = {"seed": get_training_seed(cfg)}
    if cfg.MODEL.WEIGHTS and begins:
        model, checkpoint, coverage = load_pretrained_detector(cfg)
        return model, {**checkpoint.metadata_dict(), **seed}, coverage
    model = build_detector(cfg)
    return model, {**describe_untrained(cfg, model), **seed}, None


def _reduced(trained: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """The ranks exchange gradients once a batch, after the last of its parts."""
    if is_last or not isinstance(trained, DistributedDataParallel):
        return nullcontext()
    return trained.no_sync()


def _losses(model: nn.Module, batch: Batch, iteration: int, in_bfloat16: bool) -> dict[str, Tensor]:
    device = next(model.parameters()).device.type
    try:
        with torch.autocast(device, torch.bfloat16, enabled=in_bfloat16):
            losses: dict[str, Tensor] = model(batch)
    except FloatingPointError as failure:  # the engine looks at its proposals
        raise UserError(f"the training diverged at iteration {iteration} ({failure}); {_CURE}") from failure
    return losses


def _require_finite(losses: Mapping[str, Tensor], iteration: int) -> None:
    for name, loss in losses.items():
        if not loss.isfinite():
            raise UserError(f"{name} is {loss.item()} at iteration {iteration}; {_CURE}")


def _check_numbers(cfg: CfgNode) -> None:
    """What would end in a traceback, or never."""
    check_minimums(cfg, dict.fromkeys(("SOLVER.MAX_ITER", "SOLVER.CHECKPOINT_PERIOD", "TEST.PRECISE_BN.NUM_ITER"), 1))
    get_micro_batch_size(cfg)
    if cfg.SEED + world_size() > 1 << 32:  # each rank has a seed of its own
        raise UserError(f"SEED must be less than 2**32, got {cfg.SEED}")


def _check_norms(cfg: CfgNode) -> None:
    if world_size() == 1 or cfg.MODEL.DEVICE != "cpu":
        return
    keys = [key for key, value in flatten_config(cfg).items() if value in ("SyncBN", "nnSyncBN")]
    if keys:
        raise UserError(
            "SyncBN shares its statistics between GPUs only; for several processes on the CPU set "
            f"{' and '.join(keys)} to naiveSyncBN"
        )


def _check_data(cfg: CfgNode) -> None:
    """A head of too few classes fails in a kernel, one of too many trains in silence; so do two orders of classes."""
    known: dict[str, list[str]] = {}
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
        known[name] = list(classes)
        for other, theirs in known.items():
            if theirs != known[name]:
                raise UserError(f"the classes of {other} are {', '.join(theirs)}, those of {name} {', '.join(classes)}")
    for name in filter(is_custom, cfg.DATASETS.TRAIN):
        check_custom_annotations(name)
