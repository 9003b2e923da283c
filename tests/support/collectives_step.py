"""A step of SSQL in each of two processes that notes its collectives: a file of its own, so that they can import it."""

import torch
import torch.distributed as dist

from ssql_det.backbones import build_backbone
from ssql_det.core.distributed import rank
from ssql_det.quant import Bits, FixedBits, Scheme
from ssql_det.ssl import SSQL, SimSiam

COLLECTIVES = (
    "all_reduce",
    "all_gather",
    "all_gather_object",
    "broadcast",
    "broadcast_object_list",
    "reduce",
    "gather",
)


def run(scheme, directory):
    torch.manual_seed(0)
    backbone = build_backbone("narrow_resnet")
    network = SSQL(SimSiam(backbone, dim=16, hidden=8), FixedBits(Bits(4, 4)), scheme=Scheme.parse(scheme)).train()
    found = []

    def noted(name, collective):
        def call(tensor, op=dist.ReduceOp.SUM, *args, **kwargs):
            found.append({dist.ReduceOp.MAX: "max", dist.ReduceOp.SUM: "sum"}[op] if name == "all_reduce" else name)
            return collective(tensor, op, *args, **kwargs)

        return call

    for name in COLLECTIVES:
        setattr(dist, name, noted(name, getattr(dist, name)))
    network([torch.randn(4, 3, 32, 32) + rank() for _ in range(2)], 0).backward()
    (directory / str(rank())).write_text(" ".join(found))
