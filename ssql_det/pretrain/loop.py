"""The pretraining loop: views, loss and optimizer step, with curves, kNN evaluation and checkpoints."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssql_det.core.config import check_output_dir, save_config
from ssql_det.core.devices import choose_memory_format, resolve_device, warn_if_bfloat16_is_slow
from ssql_det.core.distributed import barrier, is_main, local_world_size, rank, world_size
from ssql_det.core.errors import UserError
from ssql_det.core.gradients import read_losses
from ssql_det.core.rng import seed_all
from ssql_det.core.run_folder import check_resume
from ssql_det.core.scalar_writer import METRICS_NAME, scalar_writer
from ssql_det.pretrain.checkpoint import CHECKPOINT_NAME, TrainingState
from ssql_det.pretrain.config import (
    IGNORED_KEYS,
    PretrainConfig,
    build_metadata,
    build_network,
    check_config,
    default_values,
    get_renamed_keys,
)
from ssql_det.pretrain.data import hash_file_names
from ssql_det.pretrain.features import compute_spread
from ssql_det.pretrain.monitor import build_monitor
from ssql_det.pretrain.optim import build_optimizer, learning_rate, set_learning_rate
from ssql_det.pretrain.ranks import backward_by_rank, count_ranks_per_process
from ssql_det.pretrain.sync_norm import convert_sync_batchnorm
from ssql_det.pretrain.view_loader import BadImageCounter, build_augmented_view_loader, steps_per_epoch
from ssql_det.quant import Calibration
from ssql_det.quant.hooks import recording_outputs
from ssql_det.quant.training import QUANTIZATION_NAME, QuantizerTraining
from ssql_det.ssl import SSQL
from ssql_det.ssl.method import Views

# None of these keys changes the result of a resumed run: IGNORED_KEYS never do; INIT is read only when a run starts.
_MAY_CHANGE_ON_RESUME = (
    *(*IGNORED_KEYS, "INIT", "DATA.MOST_BAD_IMAGES", "DATA.CACHE_MB"),
    *("MONITOR.PERIOD", "MONITOR.DATA", "MONITOR.BITS", "MONITOR.SCHEME", "MONITOR.IMAGES"),
)
_logger = logging.getLogger(__name__)


def pretrain(config: PretrainConfig, resume: bool = False) -> Path:
    """Pretrain a backbone as the config says, and return the path of the checkpoint.

    A resumed run ends with the same checkpoint as an uninterrupted one, on the CPU bit for bit. In a process group
    every process must call this; each trains on its share of every batch, and rank 0 writes the files.
    """
    folder, device = check_output_dir(config.output_dir), resolve_device(config.device, "DEVICE")
    memory_format = choose_memory_format(config.memory_format, device, "MEMORY_FORMAT")
    if config.amp:
        warn_if_bfloat16_is_slow(device, "AMP")
    data, augmentation, optim, seed = config.data, config.data.augmentation, config.optim, config.seed
    check_config(config)
    images = data.open()
    epoch_steps = steps_per_epoch(len(images), optim.batch)
    if not epoch_steps:
        raise UserError(f"{data.train} has {len(images)} images and OPTIM.BATCH is {optim.batch}; reduce OPTIM.BATCH")
    seed_all(seed)
    is_resumed = _check_resume(config, folder, resume)
    network, backbone = build_network(config, load_init=not is_resumed)
    num_ranks = count_ranks_per_process(config, network, world_size())
    network = network.to(device).to(memory_format=memory_format)
    if config.sync_norm:
        convert_sync_batchnorm(network)
    method = network.method if isinstance(network, SSQL) else network
    quantization = network.quantization if isinstance(network, SSQL) else None
    quantizers = None if quantization is None else QuantizerTraining(quantization, config.quantizer_optim)
    trained = nn.ModuleList([network, *([quantizers.module] if quantizers else [])])
    more_groups = quantizers.make_groups(optim.lr) if quantizers else []
    optimizer = build_optimizer(optim, network, more_groups, method.modules_at_fixed_lr)
    metadata, data_hash = build_metadata(config), hash_file_names(images)
    started_on = Calibration(optim.batch, seed, images.name)  # the images that trained quantizers started from
    state = TrainingState(method, backbone.name, optimizer, metadata, data_hash, quantizers, started_on)
    total_steps, bad_images = optim.epochs * epoch_steps, BadImageCounter(data.max_bad_images)
    monitor = build_monitor(config.monitor, augmentation, backbone.module) if config.monitor else None
    first_step = state.resume(folder, total_steps) if is_resumed else 0
    barrier()  # rank 0 must not overwrite the checkpoint before every process has read it
    if is_main():
        _logger.info(
            "training on %s, %d steps per epoch, from step %d of %d", device, epoch_steps, first_step, total_steps
        )
        save_config(config.values, folder)
    if first_step == total_steps:
        return folder / CHECKPOINT_NAME
    model = DistributedDataParallel(network) if world_size() > 1 else network
    torch.backends.cudnn.benchmark = True  # all batches have one shape

    batches = build_augmented_view_loader(
        *(images, augmentation, optim.batch, seed, device),
        first_batch=first_step,
        workers=-(-data.workers // local_world_size()),
        rank=rank(),
        world_size=world_size(),
    )
    # first_step - 1 is the last step to keep in the curves; -1 drops all, if a run was killed before its first
    # checkpoint.
    with scalar_writer(folder, first_step - 1) as write_scalars:
        timer, timed_step = time.perf_counter(), first_step  # the seconds per step are averaged from here
        for step in range(first_step, total_steps):
            batch = next(batches)
            bad_images.update(batch)
            lr = learning_rate(optim, step, epoch_steps)
            set_learning_rate(optimizer, optim, lr)
            optimizer.zero_grad()
            with recording_outputs(method.encoder, [""]) as encoded:
                compute = partial(_compute_loss, model, network, device, config.amp, step)
                loss_parts = [partial(compute, part) for part in range(network.num_loss_parts)]
                loss = backward_by_rank(model, batch.views, num_ranks, loss_parts)
            if quantizers is not None:
                quantizers.average_gradients()
            _check_finite(loss, trained, _describe_step(network, step))
            optimizer.step()

            steps_done, epochs_done = step + 1, (step + 1) // epoch_steps
            is_epoch_end, is_last_step = steps_done % epoch_steps == 0, steps_done == total_steps
            if steps_done % config.log_period == 0 or is_last_step:
                seconds = (time.perf_counter() - timer) / max(steps_done - timed_step, 1)
                timer, timed_step = time.perf_counter(), steps_done
                # Of the first rank, whose part comes last: what the encoder (backbone and projector) gave for the first
                # view, in the float pass if there is one. A spread near 0 means that these features have collapsed.
                features = encoded[-(len(encoded) // num_ranks)]
                scalars = {"loss": loss.item(), "lr": lr, "spread": compute_spread(features), "seconds": seconds}
                write_scalars(step, scalars)
                _log_step(step, total_steps, scalars)
            if monitor is not None and is_epoch_end and (epochs_done % monitor.period == 0 or is_last_step):
                accuracies = monitor.evaluate()
                _log_accuracies(step, accuracies)
                write_scalars(step, accuracies)
                timer, timed_step = time.perf_counter(), steps_done  # evaluation does not count as time of a step
            if is_epoch_end and epochs_done % config.checkpoint_period == 0 and not is_last_step:
                state.save(folder, steps_done)
    return state.save(folder, total_steps)


def _check_resume(config: PretrainConfig, folder: Path, resume: bool) -> bool:
    values, defaults = config.values, default_values()
    # A config that an earlier version saved may have keys of methods that the run does not use.
    other_methods_keys = defaults.keys() - values.keys()
    may_change = {*_MAY_CHANGE_ON_RESUME, *other_methods_keys}
    renamed_keys = get_renamed_keys()
    names = (METRICS_NAME, QUANTIZATION_NAME)
    return check_resume(values, folder, CHECKPOINT_NAME, names, resume, may_change, defaults, renamed_keys)


def _compute_loss(
    model: nn.Module, network: nn.Module, device: torch.device, amp: bool, step: int, part: int, views: Views
) -> Tensor:
    """Run the forward pass of a part of the loss, in bfloat16 with ``amp``, and return it.

    ``model`` is ``network``, wrapped if there are several processes. The pass also updates norm statistics and, where
    the method has them, the momentum encoder and the queue; ``step`` decides the bit-widths of SSQL.
    """
    try:
        with torch.autocast(device.type, torch.bfloat16, amp):
            loss: Tensor = model(views, step, part)
    except UserError as error:  # from a quantizer that observed invalid activations
        raise UserError(f"{_describe_step(network, step)}: {error}") from error
    return loss


def _check_finite(loss: Tensor, trained: nn.Module, step: str) -> None:
    """A NaN or infinite loss or gradient ends the run, before it reaches the weights."""
    (value,), are_gradients_finite = read_losses(loss[None], trained)
    if math.isfinite(value) and are_gradients_finite:
        return
    problem = "a gradient is not finite" if math.isfinite(value) else f"the loss is {value}"
    raise UserError(f"{problem} in {step}; lower OPTIM.LR and use another OUTPUT_DIR")


def _describe_step(network: nn.Module, step: int) -> str:
    return f"step {step} at {network.bits(step)}" if isinstance(network, SSQL) else f"step {step}"


def _log_step(step: int, total_steps: int, scalars: Mapping[str, float]) -> None:
    seconds_left = scalars["seconds"] * (total_steps - step - 1)
    if is_main():
        _logger.info(
            "step %d of %d, %d min left: loss %.4f, spread %.2f, lr %.4f, %.3f s per step",
            *(step + 1, total_steps, seconds_left // 60),
            *(scalars["loss"], scalars["spread"], scalars["lr"], scalars["seconds"]),
        )


def _log_accuracies(step: int, accuracies: Mapping[str, float]) -> None:
    if is_main():
        _logger.info("step %d: %s", step + 1, ", ".join(f"{name} {value:.1f}" for name, value in accuracies.items()))
