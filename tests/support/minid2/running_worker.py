"""What each of two processes finds in its group, in a separate file, which the processes can import."""

import contextlib
import importlib
import io
import json
import os

import numpy as np
import torch
import torch.distributed as dist
from torch import nn


def launcher(root):
    return importlib.import_module(f"{root}.engine").launch


def found(engine):
    """The results of the functions of ``comm`` on this rank, as plain values."""
    comm = engine("utils.comm")
    rank = comm.get_rank()
    np.random.seed(rank)
    scalars = {"b": torch.tensor(1.0 + rank), "a": torch.tensor(10.0 * rank)}
    if rank:
        scalars = dict(reversed(scalars.items()))
    reduced = [comm.reduce_dict(dict(scalars)), comm.reduce_dict(dict(scalars), average=False)]
    local = comm.get_local_process_group()
    comm.synchronize()
    return {
        "world": [comm.get_world_size(), rank, comm.is_main_process()],
        "local": [comm.get_local_size(), comm.get_local_rank()],
        "all": comm.all_gather({"rank": rank, "more": "x" * rank}),
        "on 0": comm.gather(rank),
        "on 1": comm.gather([rank], dst=1),
        "all local": comm.all_gather(rank, local),
        "seeds": [comm.shared_random_seed() for _ in range(3)],
        "drawn alone": int(np.random.randint(2**31)),
        "reduced": [{name: value.item() for name, value in each.items()} for each in reduced] if rank == 0 else None,
    }


def train(engine):
    """A gradient that DDP averages, from a rank's own input."""
    torch.manual_seed(0)
    model = engine("engine").create_ddp_model(nn.Linear(2, 1), device_ids=None)
    model(torch.full((1, 2), 1.0 + engine("utils.comm").get_rank())).sum().backward()
    return [type(model).__name__, *model.module.weight.grad.flatten().tolist()]


def write(engine, folder):
    """What rank 0 writes, and what every rank."""
    cfg = engine("config").get_cfg()
    cfg.merge_from_list(["OUTPUT_DIR", str(folder), "SEED", 3])
    with contextlib.redirect_stdout(io.StringIO()) as screen:
        engine("engine").default_setup(cfg, None)
    engine("checkpoint").DetectionCheckpointer(nn.Linear(1, 1), str(folder)).save("model")
    return {"seed": torch.initial_seed(), "screen": bool(screen.getvalue())}


def run(root, folder, address):
    """In ``launch``'s processes, which then meet again as those that torchrun starts."""

    def engine(package):
        return importlib.import_module(f"{root}.{package}")

    keep(folder, "launch", {**found(engine), "trained": train(engine), "written": write(engine, folder / "out")})
    rank, comm = dist.get_rank(), engine("utils.comm")
    leave(comm)

    # Two machines with one process each, as far as the environment tells.
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"} | address
    dist.init_process_group("gloo")
    try:
        comm.get_local_rank()
        complaint = ""
    except AssertionError as error:
        complaint = str(error)
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    keep(folder, "torchrun", {**found(engine), "complaint": complaint})
    leave(comm)


def leave(comm):
    """Without a trace: with one, one interpreter in four aborts at its end, which Detectron2 does not prevent."""
    comm._LOCAL_PROCESS_GROUP = None
    comm.create_local_process_group.cache_clear()
    comm._get_global_gloo_group.cache_clear()
    dist.destroy_process_group()


def keep(folder, name, answers):
    (folder / f"{name} {dist.get_rank()}.json").write_text(json.dumps(answers))
    dist.barrier()
