"""Functions that several processes run; a module, so that they can import it."""

from contextlib import suppress
from functools import partial
from unittest.mock import patch

import torch
from support.devices.targets import FLOAT64_ON_CPU
from support.pretrain.runs import StoppedError
from support.small_methods import METHODS, make_small_method, make_two_views
from torch import nn

from ssql_det.backbones import Backbone
from ssql_det.core.distributed import barrier, rank, world_size
from ssql_det.pretrain.checkpoint import TrainingState
from ssql_det.pretrain.config import read_config
from ssql_det.pretrain.loop import pretrain
from ssql_det.pretrain.ranks import backward_by_rank
from ssql_det.pretrain.sync_norm import convert_sync_batchnorm
from ssql_det.quant import Bits, FixedBits, Scheme
from ssql_det.quant.training import QuantizerOptim, QuantizerTraining
from ssql_det.ssl import SSQL, MoCo

WITHOUT_SHARING = ("simsiam", "byol", "simclr")  # whose ranks need nothing of each other, with SIMCLR.GATHER False
TRAINED_SCHEMES = ("lsq", "weight=dorefa, act=pact")


def step_by_step(folder):
    """Some steps of every method, alone and under SSQL, on this process's share of each batch; then MoCo's shuffle."""
    results = {(kind, is_ssql): take_steps(kind, is_ssql) for kind in METHODS for is_ssql in (False, True)}
    torch.save(results, folder / f"{world_size()}_{rank()}.pt")
    cases = [(kind, is_ssql, ranks) for kind in WITHOUT_SHARING for is_ssql in (False, True) for ranks in (2, 4)]
    as_ranks = {case: take_steps_as_ranks(*case) for case in cases}
    torch.save(as_ranks, folder / f"ranks_{world_size()}_{rank()}.pt")
    trained = {scheme: train_quantizers(scheme) for scheme in TRAINED_SCHEMES}
    torch.save(trained, folder / f"quantizers_{world_size()}_{rank()}.pt")
    torch.save(
        [_encode_shuffled(has_norm) for has_norm in (False, True)], folder / f"shuffled_{world_size()}_{rank()}.pt"
    )


def take_steps(kind, is_ssql, count=2, target=FLOAT64_ON_CPU):
    """Losses and gradients of each step, and the state after the last."""
    method = target.place(make_small_method(kind))
    network = convert_sync_batchnorm(SSQL(method, FixedBits(Bits(3, 4))) if is_ssql else method)

    def compute_gradients(parallel, views, step):
        loss = parallel([target.place_images(view) for view in views], step)
        loss.backward()
        return loss.detach()

    return _train(network, method, count, compute_gradients)


def take_steps_as_ranks(kind, is_ssql, ranks, count=2):
    """As ``take_steps``, of so many ranks with norms and ranges of their own, of which each process takes its share."""
    method = make_small_method(kind)
    method.gather = False
    network = SSQL(method, FixedBits(Bits(3, 4)), per_rank=True) if is_ssql else method
    assert not method.shared_by_ranks

    def compute_gradients(parallel, views, step):
        parts = [partial(parallel, step=step, part=part) for part in range(network.num_loss_parts)]
        return backward_by_rank(parallel, views, ranks // world_size(), parts)

    return _train(network, method, count, compute_gradients)


def _train(network, method, count, compute_gradients):
    parallel = nn.parallel.DistributedDataParallel(network) if world_size() > 1 else network
    trained = {name: parameter for name, parameter in method.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1, momentum=0.9)
    losses, gradients = [], []
    for step in range(count):
        views = [view.chunk(world_size())[rank()] for view in make_two_views(images=8, seed=step)]
        optimizer.zero_grad()
        losses.append(compute_gradients(parallel, views, step))
        gradients.append({name: parameter.grad.clone() for name, parameter in trained.items()})
        optimizer.step()
        for parameter in trained.values():  # few digits, so that rounding errors change no later quantization
            parameter.data.copy_(parameter.data.bfloat16())
    return losses, gradients, method.state_dict()


def train_quantizers(scheme, count=2):
    """Quantization-aware training: the quantizers' gradients in each step, and their values after the last."""
    method = make_small_method("simsiam")
    switches = {"quantize_targets": True, "auxiliary": False}
    network = convert_sync_batchnorm(SSQL(method, FixedBits(Bits(3, 4)), Scheme.parse(scheme), **switches))
    parallel = nn.parallel.DistributedDataParallel(network) if world_size() > 1 else network
    quantizers = QuantizerTraining(network.quantization, QuantizerOptim(lr_factor=2.0, weight_decay=0.1))
    optimizer = torch.optim.SGD([{"params": [*method.parameters()]}, *quantizers.make_groups(0.05)], lr=0.05)
    gradients = []
    for step in range(count):
        views = [view.chunk(world_size())[rank()] for view in make_two_views(images=8, seed=step)]
        loss = parallel(views, step)
        optimizer.zero_grad()
        loss.backward()
        quantizers.average_gradients()
        named = quantizers.module.named_parameters()
        gradients.append({name: each.grad.clone() for name, each in named if each.grad is not None})
        optimizer.step()
        for parameter in [*method.parameters(), *quantizers.parameters]:
            parameter.data.copy_(parameter.data.bfloat16())
    return gradients, quantizers.state_dict()


def _encode_shuffled(has_norm):
    """MoCo's keys of a tiny network, the images and features that its momentum encoder had here, and the queue."""
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(48, 6), *([nn.BatchNorm1d(6)] if has_norm else [])]
    method = MoCo(Backbone("tiny", nn.Sequential(*layers), 6), dim=4, hidden=5, queue=8).double()
    passes = []
    method.momentum.network.register_forward_hook(lambda module, args, out: passes.append((args[0], out)))
    images = images_to_shuffle().chunk(world_size())[rank()]
    torch.manual_seed(rank())  # the order must not depend on each process's generator
    targets = method.targets([images, images], ())
    (passed,) = passes
    return targets.keys, passed, method.queue.keys


def images_to_shuffle():
    """In channels-last memory format, which must not change what processes exchange."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(8, 3, 4, 4, dtype=torch.float64, generator=generator)
    return images.to(memory_format=torch.channels_last)


def whole_and_stopped(file, whole, stopped):
    """A run, and the same run stopped at its first checkpoint and resumed."""
    pretrained(file, whole)
    save = TrainingState.save

    def once(run, folder, steps):
        save(run, folder, steps)
        barrier()  # rank 0 has written it
        raise StoppedError

    with patch.object(TrainingState, "save", once), suppress(StoppedError):
        pretrained(file, stopped)
    pretrain(read_config(file, stopped), resume=True)


def pretrained(file, *overrides):
    """Whole runs, one after the other, as called by every process of a job."""
    for each in overrides:
        pretrain(read_config(file, each))
