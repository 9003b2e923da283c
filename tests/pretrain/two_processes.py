"""What two processes run: a file of its own, so that they can import it."""

import torch
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

from ssql_det.backbones import Backbone
from ssql_det.core.ranks import rank, world_size
from ssql_det.pretrain.config import read_config
from ssql_det.pretrain.loop import pretrain
from ssql_det.pretrain.sync_norm import synchronized
from ssql_det.quant import Bits, FixedBits
from ssql_det.ssl import SSQL, SimSiam

WIDTHS = (64, 6, 8, 10)


def network():
    torch.manual_seed(0)
    backbone = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=0, channels=WIDTHS, zero_init_last=False)
    method = SimSiam(Backbone("small", backbone, WIDTHS[-1]), dim=12, hidden=5)
    return synchronized(SSQL(method, FixedBits(Bits(3, 4)))).double().train()


def views():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 3, 32, 32, dtype=torch.float64, generator=generator) for _ in range(2)]


def step(folder):
    """One step on this process's half; loss, gradients and statistics into the folder."""
    trained = network()
    parallel = nn.parallel.DistributedDataParallel(trained) if world_size() > 1 else trained
    mine = [view.chunk(world_size())[rank()] for view in views()]
    loss = parallel(mine, 0)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in trained.named_parameters()}
    torch.save((loss.detach(), gradients, dict(trained.named_buffers())), folder / f"{world_size()}_{rank()}.pt")


def pretrained(file, overrides):
    """A whole run, as every rank of a job makes it."""
    torch.set_num_threads(1)
    pretrain(read_config(file, overrides))
