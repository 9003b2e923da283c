"""What two processes run: a file of its own, so that they can import it."""

from contextlib import suppress
from unittest.mock import patch

import torch
from support.methods import KINDS, small, two_views
from support.pretrain.runs import StoppedError
from torch import nn

from ssql_det.backbones import Backbone
from ssql_det.core.distributed import barrier, rank, world_size
from ssql_det.pretrain.checkpoint import TrainingState
from ssql_det.pretrain.config import read_config
from ssql_det.pretrain.loop import pretrain
from ssql_det.pretrain.sync_norm import synchronized
from ssql_det.quant import Bits, FixedBits
from ssql_det.ssl import SSQL, MoCo


def step_by_step(folder):
    """A few steps of every method, alone and under SSQL, on this process's part of the batches; then the shuffle."""
    found = {(kind, is_ssql): _steps(kind, is_ssql) for kind in KINDS for is_ssql in (False, True)}
    torch.save(found, folder / f"{world_size()}_{rank()}.pt")
    torch.save([_shuffled(has_norm) for has_norm in (False, True)], folder / f"shuffled_{world_size()}_{rank()}.pt")


def _steps(kind, is_ssql, count=3):
    """Losses and gradients step by step, and the state after them."""
    method = small(kind)
    network = synchronized(SSQL(method, FixedBits(Bits(3, 4))) if is_ssql else method)
    parallel = nn.parallel.DistributedDataParallel(network) if world_size() > 1 else network
    trained = {name: parameter for name, parameter in method.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1, momentum=0.9)
    losses, gradients = [], []
    for step in range(count):
        loss = parallel([view.chunk(world_size())[rank()] for view in two_views(images=8, seed=step)], step)
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: parameter.grad.clone() for name, parameter in trained.items()})
        optimizer.step()
        for parameter in trained.values():  # to few digits: the sixteenth must not tip the next step's roundings over
            parameter.data.copy_(parameter.data.bfloat16())
    return losses, gradients, method.state_dict()


def _shuffled(has_norm):
    """Keys of images that a tiny network tells apart, what its copy has seen here, and the queue."""
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(48, 6), *([nn.BatchNorm1d(6)] if has_norm else [])]
    method = MoCo(Backbone("tiny", nn.Sequential(*layers), 6), dim=4, hidden=5, queue=8).double()
    seen = []
    method.momentum.network.register_forward_hook(lambda module, given, out: seen.append((given[0], out)))
    images = images_to_shuffle().chunk(world_size())[rank()]
    torch.manual_seed(rank())  # one order holds for all, whatever each would draw
    targets = method.targets([images, images], ())
    (passed,) = seen
    return targets.keys, passed, method.queue.keys


def images_to_shuffle():
    """In the memory order of channels last, which must not get between processes."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(8, 3, 4, 4, dtype=torch.float64, generator=generator)
    return images.to(memory_format=torch.channels_last)


def whole_and_stopped(file, whole, stopped):
    """A run, and the same again that ends at its first checkpoint and is resumed."""
    pretrained(file, whole)
    save = TrainingState.save

    def once(run, folder, steps):
        save(run, folder, steps)
        barrier()  # rank 0 has written it
        raise StoppedError

    with patch.object(TrainingState, "save", once), suppress(StoppedError):
        pretrained(file, stopped)
    pretrain(read_config(file, stopped), resume=True)


def pretrained(file, overrides):
    """A whole run, as every rank of a job makes it."""
    pretrain(read_config(file, overrides))
