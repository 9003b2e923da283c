"""The training of a detector, on one page: Detectron2's plain loop, and what small machines and killed runs need."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path

import torch
from torch import Tensor, nn

from ssql_det.convert import Facts
from ssql_det.core.choices import seed_all
from ssql_det.core.config import require_least, require_same_run, save_config
from ssql_det.core.errors import UserError
from ssql_det.core.writers import JsonWriter, TensorBoardWriter, Writers
from ssql_det.d2 import (
    CfgNode,
    CommonMetricPrinter,
    EventStorage,
    MetadataCatalog,
    build_lr_scheduler,
    build_optimizer,
)
from ssql_det.detect import checkpoints
from ssql_det.detect.answers import answered
from ssql_det.detect.config import NO_MATTER, seed_of
from ssql_det.detect.data import Batch, check_dataset
from ssql_det.detect.precise_bn import estimate_norms
from ssql_det.detect.stream import BadImages, training_batches
from ssql_det.detect.watch import LOOKS_NAME, Watch
from ssql_det.detect.weights import build_detector, described_by, pretrained_detector

_PERIOD = 20  # iterations between log lines
_MAY_CHANGE = (  # when a run goes on
    *(*NO_MATTER, "SOLVER.MAX_ITER", "SOLVER.CHECKPOINT_PERIOD"),
    *("SSQL.EVAL_PERIOD", "SSQL.EVAL_BITS", "TEST.EVAL_PERIOD"),
)
_CURE = "lower SOLVER.BASE_LR or lengthen SOLVER.WARMUP_ITERS, and train in another OUTPUT_DIR"
_logger = logging.getLogger(__name__)


def train(cfg: CfgNode, config_name: str, resume: bool = False) -> Path:
    """Train what a config describes, from ``MODEL.WEIGHTS``'s backbone, or from scratch where that is empty.

    Returns the path of the final checkpoint. With ``resume`` a run that was stopped becomes, on the CPU bit for bit,
    the run that was not.
    """
    folder, micro_batches = Path(cfg.OUTPUT_DIR), _micro_batches(cfg)
    _check_numbers(cfg)
    _check_classes(cfg)
    seed = seed_of(cfg)
    seed_all(seed)
    goes_on = (folder / checkpoints.TAG).exists()
    if goes_on and not resume:
        raise UserError(f"{folder} holds a run already; say --resume to go on with it, or choose another OUTPUT_DIR")
    if goes_on:
        require_same_run(cfg, folder, _MAY_CHANGE)
    if cfg.MODEL.WEIGHTS and not goes_on:
        model, checkpoint = pretrained_detector(cfg)
        start, description = 0, {**checkpoint.description(), "seed": seed}
    else:
        model = build_detector(cfg)
        start, description = 0, {**described_by(cfg, model), "seed": seed}
    with answered("the solver cannot be built"):
        optimizer = build_optimizer(cfg, model)
        scheduler = build_lr_scheduler(cfg, optimizer)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    if goes_on:
        newest, description = checkpoints.resume(folder, parts)
        start = newest + 1
        if start == cfg.SOLVER.MAX_ITER:
            _logger.info("%s is finished already", folder)
            return folder / f"{checkpoints.FINAL}.pth"
        if start > cfg.SOLVER.MAX_ITER:
            raise UserError(
                f"{folder} is trained up to iteration {newest}, beyond SOLVER.MAX_ITER {cfg.SOLVER.MAX_ITER}; "
                "nothing is left to do"
            )
        _logger.info("going on at iteration %d", start)
    else:
        (folder / LOOKS_NAME).unlink(missing_ok=True)  # of a run that was killed before its first checkpoint
    save_config(cfg, folder)

    batches = training_batches(cfg, cfg.SOLVER.IMS_PER_BATCH // micro_batches, seed, first=start * micro_batches)
    watch = Watch(cfg, config_name, Facts.from_plain(description))
    bad_images, printer = BadImages(), CommonMetricPrinter(cfg.SOLVER.MAX_ITER)
    last = cfg.SOLVER.MAX_ITER - 1
    with ExitStack() as stack:
        storage = stack.enter_context(EventStorage(start))
        resumed = start - 1 if goes_on else None
        writer = stack.enter_context(
            closing(Writers([JsonWriter(folder, resumed), TensorBoardWriter(folder / "tensorboard", resumed)]))
        )
        for iteration in range(start, cfg.SOLVER.MAX_ITER):
            storage.iter = iteration
            begun = time.perf_counter()
            model.train()
            optimizer.zero_grad()
            for _ in range(micro_batches):
                batch = next(batches)
                bad_images.take_from(batch)
                losses = _losses(model, batch, iteration, cfg.SOLVER.AMP.ENABLED)
                _require_finite(losses, iteration)
                total = torch.stack(list(losses.values())).sum()
                (total / micro_batches).backward()
                for name, loss in {"total_loss": total, **losses}.items():
                    storage.put_scalar(name, loss.item())
            optimizer.step()
            storage.put_scalar("lr", optimizer.param_groups[0]["lr"], smoothing_hint=False)
            storage.put_scalar("bad_images", len(bad_images.names), smoothing_hint=False)
            scheduler.step()
            storage.put_scalar("time", time.perf_counter() - begun)

            if (iteration + 1) % _PERIOD == 0 or iteration == last:
                printer.write()
                writer.write(iteration, _latest(storage))
            if iteration == last or watch.is_due(iteration, last):
                estimate_norms(cfg, model, seed)
            if watch.is_due(iteration, last):
                writer.write(iteration, watch.look(model, iteration))
            if (iteration + 1) % cfg.SOLVER.CHECKPOINT_PERIOD == 0 and iteration != last:
                checkpoints.save(folder, f"model_{iteration:07d}", iteration, parts, description)
    return checkpoints.save(folder, checkpoints.FINAL, last, parts, description)


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


def _micro_batches(cfg: CfgNode) -> int:
    """Into how many parts a batch is taken, one after the other. Each counts the same, as a rank's part does."""
    parts, size = cfg.SSQL.MICRO_BATCHES, cfg.SOLVER.IMS_PER_BATCH
    if parts < 1 or size % parts:
        raise UserError(f"SSQL.MICRO_BATCHES must divide SOLVER.IMS_PER_BATCH {size}, got {parts}")
    return int(parts)


def _check_numbers(cfg: CfgNode) -> None:
    """What would end in a traceback, or never."""
    require_least(cfg, dict.fromkeys(("SOLVER.MAX_ITER", "SOLVER.CHECKPOINT_PERIOD", "TEST.PRECISE_BN.NUM_ITER"), 1))
    if cfg.SEED >= 1 << 32:
        raise UserError(f"SEED must be less than 2**32, got {cfg.SEED}")


def _check_classes(cfg: CfgNode) -> None:
    """A head of too few classes fails in a kernel, one of too many trains in silence."""
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        check_dataset(name)
        classes = getattr(MetadataCatalog.get(name), "thing_classes", None)
        if classes is not None and len(classes) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            raise UserError(
                f"{name} has {len(classes)} classes and MODEL.ROI_HEADS.NUM_CLASSES is "
                f"{cfg.MODEL.ROI_HEADS.NUM_CLASSES}; set it to {len(classes)}"
            )


def _latest(storage: EventStorage) -> dict[str, float]:
    """Medians of what is noisy over the last log period, the last value of what is not."""
    return {name: value for name, (value, _) in storage.latest_with_smoothing_hint(_PERIOD).items()}
