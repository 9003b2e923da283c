"""The pretraining, on one page: views, a loss, a step; curves, looks and checkpoints beside it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssql_det.core.config import check_output_dir, check_resume, save_config
from ssql_det.core.devices import resolve_device
from ssql_det.core.distributed import barrier, is_main, rank, world_size
from ssql_det.core.errors import UserError
from ssql_det.core.rng import seed_all
from ssql_det.core.scalar_writer import scalar_writer
from ssql_det.pretrain import checkpoint
from ssql_det.pretrain.classifiers import Monitor, spread
from ssql_det.pretrain.config import (
    IGNORED_KEYS,
    PretrainConfig,
    build_metadata,
    build_network,
    check,
    default_values,
    moved_keys,
)
from ssql_det.pretrain.data import hash_file_names
from ssql_det.pretrain.optim import build_optimizer, learning_rate
from ssql_det.pretrain.sync_norm import synchronized
from ssql_det.pretrain.view_loader import BadImageCounter, build_view_loader, steps_per_epoch
from ssql_det.quant.hooks import recording_outputs
from ssql_det.ssl import SSQL
from ssql_det.ssl.augmentations import draw_random_numbers

_MAY_CHANGE = (
    *(*IGNORED_KEYS, "INIT", "DATA.MOST_BAD_IMAGES", "DATA.CACHE_MB"),
    *("MONITOR.PERIOD", "MONITOR.DATA", "MONITOR.BITS", "MONITOR.SCHEME", "MONITOR.IMAGES"),
)
_logger = logging.getLogger(__name__)


def pretrain(pretraining: PretrainConfig, resume: bool = False) -> Path:
    """Train what a config describes; returns the path of the checkpoint.

    With ``resume`` a run that was stopped becomes, on the CPU bit for bit, the run that was not. Under a process group
    every rank calls it, each takes its part of a batch, and rank 0 writes.

    >>> pretrain(read_config("configs/pretrain/mini.yaml", ["OUTPUT_DIR", "runs/ssql"]))
    PosixPath('runs/ssql/checkpoint.pth')
    """
    folder, device = check_output_dir(pretraining.output_dir), resolve_device(pretraining.device, "DEVICE")
    data, optim, monitor, seed = pretraining.data, pretraining.optim, pretraining.monitor, pretraining.seed
    world, amp = world_size(), pretraining.amp
    check(pretraining)
    images, recipe = data.open(), data.views
    per_epoch = steps_per_epoch(len(images), optim.batch)
    if not per_epoch:
        raise UserError(f"{data.train} has {len(images)} images and OPTIM.BATCH is {optim.batch}; lower it")
    seed_all(seed)
    is_resumed = _goes_on(pretraining, folder, resume)
    network, backbone = build_network(pretraining, begins=not is_resumed)
    network = network.to(device)
    if pretraining.sync_norm:
        synchronized(network)
    method, quantizers = (network.method, network.quantizers) if isinstance(network, SSQL) else (network, None)
    optimizer = build_optimizer(optim, network)
    run = checkpoint.TrainingState(
        method, backbone.name, optimizer, build_metadata(pretraining), hash_file_names(images), quantizers
    )
    total, tolerance = optim.epochs * per_epoch, BadImageCounter(data.most_bad_images)
    looks = Monitor(monitor, recipe, backbone.module) if monitor else None
    start = run.resume(folder, total) if is_resumed else 0
    barrier()  # nobody writes before all have read
    if is_main():
        _logger.info("on %s, %d steps an epoch, from step %d of %d", device, per_epoch, start, total)
        save_config(pretraining.values, folder)
    if start == total:
        return folder / checkpoint.CHECKPOINT_NAME
    trained = DistributedDataParallel(network) if world > 1 else network

    parts = {"workers": data.workers, "rank": rank(), "world": world}
    batches = build_view_loader(images, recipe.image_transform, optim.batch, seed, start, **parts)
    # What a run wrote that was killed before its first checkpoint goes as well.
    with scalar_writer(folder, start - 1) as write:
        begun, before = time.perf_counter(), start
        for step in range(start, total):
            batch = next(batches)
            tolerance.take(batch)
            views = [
                recipe.batch_transform(
                    view.to(device),
                    draw_random_numbers(seed, batch.positions, number, recipe.num_random_numbers).to(device),
                )
                for number, view in enumerate(batch.views)
            ]
            rate = learning_rate(optim, step, per_epoch)
            run.optimizer.param_groups[0]["lr"] = rate
            with recording_outputs(method.encoder, [""]) as features, torch.autocast(device.type, torch.bfloat16, amp):
                loss = _finite_loss(trained, views, step, network)
            run.optimizer.zero_grad()
            loss.backward()
            run.optimizer.step()

            done, ends_epoch = step + 1, (step + 1) % per_epoch == 0
            if done % pretraining.log_period == 0 or done == total:
                seconds = (time.perf_counter() - begun) / max(done - before, 1)
                begun, before = time.perf_counter(), done
                scalars = {"loss": loss.item(), "lr": rate, "spread": spread(features[0]), "seconds": seconds}
                write(step, scalars)
                _tell(step, total, scalars)
            if looks is not None and ends_epoch and (done // per_epoch % looks.period == 0 or done == total):
                found = looks.take()
                _tell_look(step, found)
                write(step, found)
                begun, before = time.perf_counter(), done  # the seconds of a step are without those of a look
            if ends_epoch and done // per_epoch % pretraining.checkpoint_period == 0 and done != total:
                run.save(folder, done)
    return run.save(folder, total)


def _goes_on(pretraining: PretrainConfig, folder: Path, resume: bool) -> bool:
    values, defaults = pretraining.values, default_values()
    may_change = {*_MAY_CHANGE, *(defaults.keys() - values.keys())}  # hyperparameters of other methods decide nothing
    return check_resume(values, folder, checkpoint.is_in(folder), resume, may_change, defaults, moved_keys())


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


def _tell_look(step: int, found: Mapping[str, float]) -> None:
    if is_main():
        _logger.info("step %d: %s", step + 1, ", ".join(f"{name} {value:.1f}" for name, value in found.items()))
