"""The pretraining, on one page: views, a loss, a step; curves, looks and checkpoints beside it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssql_det.core.choices import seed_all
from ssql_det.core.config import goes_on, plain_values, run_folder, save_config
from ssql_det.core.devices import device_named
from ssql_det.core.errors import UserError
from ssql_det.core.ranks import barrier, is_main, rank, world_size
from ssql_det.core.writers import curves
from ssql_det.pretrain import checkpoint
from ssql_det.pretrain.checks import check
from ssql_det.pretrain.config import DEFAULTS, NO_MATTER, build_network, facts_of, views_of
from ssql_det.pretrain.data import Cached, identity, open_images
from ssql_det.pretrain.features import labelled
from ssql_det.pretrain.monitor import neighbours, spread
from ssql_det.pretrain.optim import build_optimizer, learning_rate
from ssql_det.pretrain.stream import Tolerance, steps_per_epoch, training_batches
from ssql_det.pretrain.sync_norm import synchronized
from ssql_det.quant import Scheme, parse_widths
from ssql_det.quant.hooks import recorded
from ssql_det.ssl import SSQL
from ssql_det.ssl.views import draws_of

_MAY_CHANGE = (
    *NO_MATTER,
    "INIT",
    "DATA.MOST_BAD_IMAGES",
    "DATA.CACHE_MB",
    "MONITOR.PERIOD",
    "MONITOR.DATA",
    "MONITOR.BITS",
    "MONITOR.SCHEME",
    "MONITOR.IMAGES",
)
_logger = logging.getLogger(__name__)


def pretrain(cfg: CfgNode, resume: bool = False) -> Path:
    """Train what a config describes; returns the path of the checkpoint.

    With ``resume`` a run that was stopped becomes, on the CPU bit for bit, the run that was not. Under a process group
    every rank calls it, each takes its part of a batch, and rank 0 writes.
    """
    folder, device, world = run_folder(cfg), device_named(cfg.DEVICE, "DEVICE"), world_size()
    check(cfg)
    images, recipe = Cached(open_images(cfg.DATA.TRAIN), cfg.DATA.CACHE_MB << 20), views_of(cfg)
    per_epoch = steps_per_epoch(len(images), cfg.OPTIM.BATCH)
    if not per_epoch:
        raise UserError(f"{cfg.DATA.TRAIN} has {len(images)} images and OPTIM.BATCH is {cfg.OPTIM.BATCH}; lower it")
    seed_all(cfg.SEED)
    defaults = plain_values(CfgNode(DEFAULTS))
    is_resumed = goes_on(cfg, folder, checkpoint.is_in(folder), resume, _MAY_CHANGE, defaults)
    network, backbone = build_network(cfg, begins=not is_resumed)
    network = network.to(device)
    if cfg.SYNC_NORM:
        synchronized(network)
    method, quantizers = (network.method, network.quantizers) if isinstance(network, SSQL) else (network, None)
    optimizer = build_optimizer(cfg, network)
    run = checkpoint.Run(method, backbone.name, optimizer, facts_of(cfg), identity(images), quantizers)
    total, tolerance = cfg.OPTIM.EPOCHS * per_epoch, Tolerance(cfg.DATA.MOST_BAD_IMAGES)
    looks = _Looks(cfg, backbone.module) if cfg.MONITOR.PERIOD else None
    start = run.resume(folder, total) if is_resumed else 0
    barrier()  # nobody writes before all have read
    if is_main():
        _logger.info("on %s, %d steps an epoch, from step %d of %d", device, per_epoch, start, total)
        save_config(cfg, folder)
    if start == total:
        return folder / checkpoint.NAME
    trained = DistributedDataParallel(network) if world > 1 else network

    parts = {"workers": cfg.DATA.WORKERS, "rank": rank(), "world": world}
    batches = training_batches(images, recipe.frame, cfg.OPTIM.BATCH, cfg.SEED, start, **parts)
    # What a run wrote that was killed before its first checkpoint goes as well.
    with curves(folder, start - 1) as write:
        begun, before = time.perf_counter(), start
        for step in range(start, total):
            batch = next(batches)
            tolerance.take(batch)
            views = [
                recipe.look(view.to(device), draws_of(cfg.SEED, batch.positions, number, recipe.draws).to(device))
                for number, view in enumerate(batch.views)
            ]
            rate = learning_rate(cfg, step, per_epoch)
            run.optimizer.param_groups[0]["lr"] = rate
            with recorded(method.encoder, [""]) as features, torch.autocast(device.type, torch.bfloat16, cfg.AMP):
                loss = _finite_loss(trained, views, step, network)
            run.optimizer.zero_grad()
            loss.backward()
            run.optimizer.step()

            done, ends_epoch = step + 1, (step + 1) % per_epoch == 0
            if done % cfg.PERIODS.LOG == 0 or done == total:
                seconds = (time.perf_counter() - begun) / max(done - before, 1)
                begun, before = time.perf_counter(), done
                scalars = {"loss": loss.item(), "lr": rate, "spread": spread(features[0]), "seconds": seconds}
                write(step, scalars)
                _tell(step, total, scalars)
            if looks is not None and ends_epoch and (done // per_epoch % cfg.MONITOR.PERIOD == 0 or done == total):
                write(step, looks.take(step))
                begun, before = time.perf_counter(), done  # the seconds of a step are without those of a look
            if ends_epoch and done // per_epoch % cfg.PERIODS.CHECKPOINT == 0 and done != total:
                run.save(folder, done)
    return run.save(folder, total)


def _finite_loss(trained: nn.Module, views: Sequence[Tensor], step: int, network: nn.Module) -> Tensor:
    """A loss that is none ends the run before it reaches the weights: the last checkpoint is a good one."""
    drawn = f" at {network.bits(step)}" if isinstance(network, SSQL) else ""
    try:
        loss: Tensor = trained(views, step)
    except UserError as failure:  # the observers look at what passes
        raise UserError(f"step {step}{drawn}: {failure}") from failure
    if not loss.isfinite():
        raise UserError(f"the loss is {loss.item()} in step {step}{drawn}; lower OPTIM.LR, in another OUTPUT_DIR")
    return loss


def _tell(step: int, total: int, scalars: Mapping[str, float]) -> None:
    left = scalars["seconds"] * (total - step - 1)
    if is_main():
        _logger.info(
            "step %d of %d, %d min left: loss %.4f, spread %.2f, lr %.4f, %.3f s a step",
            *(step + 1, total, left // 60, scalars["loss"], scalars["spread"], scalars["lr"], scalars["seconds"]),
        )


class _Looks:
    """kNN accuracy at some bit-widths, now and then."""

    def __init__(self, cfg: CfgNode, backbone: nn.Module) -> None:
        recipe, path = views_of(cfg), cfg.MONITOR.DATA or cfg.DATA.TRAIN
        self._backbone, self._input = backbone, recipe.input
        self._widths = parse_widths(",".join(map(str, cfg.MONITOR.BITS)))
        self._scheme = Scheme.parse(cfg.MONITOR.SCHEME)
        self._scheme.require_widths(self._widths)
        splits = [open_images(path, split) for split in ("train", "val")]
        self._seen, self._asked = (labelled(images, recipe, cfg.MONITOR.IMAGES) for images in splits)

    def take(self, step: int) -> Mapping[str, float]:
        found = neighbours(self._backbone, self._seen, self._asked, self._input, self._widths, self._scheme)
        if is_main():
            _logger.info("step %d: %s", step + 1, ", ".join(f"{name} {value:.1f}" for name, value in found.items()))
        return found
