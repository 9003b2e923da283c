"""What two processes run: a file of its own, so that they can import it."""

import contextlib
import json
from pathlib import Path

import pytest
import torch
from support.detect.configs import C4, FPN, choosing_in_float32, config
from support.detect.training_runs import LOOKING, first_gradients, sampling_the_first, stopped_in_step

from ssql_det.core.distributed import rank
from ssql_det.d2 import get_detection_dataset_dicts
from ssql_det.detect import train as training
from ssql_det.detect.detector import build_detector
from ssql_det.detect.periodic_evaluation import PeriodicEvaluation
from ssql_det.detect.train import estimate_norms, train

FEEDING = {"SOLVER__IMS_PER_BATCH": 6, "TEST__PRECISE_BN__ENABLED": False}
WHOLE_BATCHES = {"SOLVER__IMS_PER_BATCH": 4, "SOLVER__CLIP_GRADIENTS__ENABLED": False}
CASES = {  # of gradients
    "C4": (C4, {}),
    "C4, frozen norms": (C4, {"MODEL__RESNETS__NORM": "FrozenBN", "SSQL_DET__EXTRA_NORM": ""}),
    "FPN": (FPN, {}),
    "C4, two parts": (C4, {"SSQL_DET__MICRO_BATCHES": 2}),
}


def in_float64(cfg):
    return choosing_in_float32(build_detector(cfg).double())


def of_case(name, folder):
    """The config of a case."""
    file, keys = CASES[name]
    return config(file, f"{folder}/run", **WHOLE_BATCHES, **keys)


def gradients(folder):
    """Of each case's first step; and those of one tensor as each part of the batch found them."""
    for name in CASES:
        with seen_by_each_part() as found:
            reduced = first_gradients(of_case(name, folder), in_float64)
        torch.save((reduced, found), f"{folder}/{name}, rank {rank()}.pt")


@contextlib.contextmanager
def seen_by_each_part():
    losses, found = training._compute_losses, []

    def spy(model, *rest):
        grad = next(model.parameters()).grad
        found.append(None if grad is None else grad.clone())
        return losses(model, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_compute_losses", spy)
        yield found


def gradients_with(folder, norm):
    """Of one size of images: each rank sees the same one, as it is or in a mirror, and samples as many regions."""
    records = get_detection_dataset_dicts(("toy_voc_2007_trainval",))[:1]
    keys = {"MODEL__RESNETS__NORM": norm, "SSQL_DET__EXTRA_NORM": norm, "INPUT__MIN_SIZE_TRAIN": (64,), "SEED": 0}
    with pytest.MonkeyPatch.context() as patch, sampling_the_first():
        patch.setattr("ssql_det.detect.train_loader.get_detection_dataset_dicts", lambda *args, **kwargs: records)
        found = first_gradients(config(C4, f"{folder}/run", **WHOLE_BATCHES, **keys), in_float64)
    torch.save(found, f"{folder}/{rank()}.pt")


def estimated(folder):
    """Norms after an estimate over all ranks: the same weights, but statistics and generators of each rank's own."""
    cfg = of_case("C4", folder)
    torch.manual_seed(0)
    model = in_float64(cfg)
    torch.manual_seed(rank())
    estimate_norms(cfg, model, cfg.SEED)
    torch.save(dict(model.named_buffers()), f"{folder}/{rank()}.pt")


def looked_at(folder, is_precise):
    """A training that looks on the way; the network as each look found it."""
    look, found = PeriodicEvaluation.look, []

    def spy(watch, model, iteration):
        found.append({name: value.clone() for name, value in model.state_dict().items()})
        return look(watch, model, iteration)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PeriodicEvaluation, "look", spy)
        train(config(C4, f"{folder}/run", TEST__PRECISE_BN__ENABLED=is_precise, **LOOKING), C4)
    torch.save(found, f"{folder}/{rank()}.pt")


def fed(folder, name, stop):
    """The files that a training which goes on feeds this rank, a list a step, until a step does not come back."""
    losses, found = training._compute_losses, []

    def spy(model, batch, *rest):
        found.append([each["file_name"] for each in batch])
        return losses(model, batch, *rest)

    with pytest.MonkeyPatch.context() as patch, stopped_in_step(stop) if stop else contextlib.nullcontext():
        patch.setattr(training, "_compute_losses", spy)
        train(config(C4, f"{folder}/run", **FEEDING), C4, resume=True)
    Path(f"{folder}/{name} {rank()}.json").write_text(json.dumps(found))
