"""Functions that tests run in several processes: a separate file, so that these can import it."""

import contextlib
import json
from pathlib import Path

import pytest
import torch
from support.detect.configs import C4, FPN, config, select_boxes_in_float32
from support.detect.training_runs import WITH_EVALUATIONS, first_gradients, sampling_first_regions, stopping_in_step

from ssql_det.core.distributed import rank
from ssql_det.d2 import get_detection_dataset_dicts
from ssql_det.detect import training_step
from ssql_det.detect.any_precision import AnyPrecisionStep
from ssql_det.detect.detector import build_detector
from ssql_det.detect.periodic_evaluation import PeriodicEvaluation
from ssql_det.detect.train import estimate_norms, train

FEEDING = {"SOLVER__IMS_PER_BATCH": 6, "TEST__PRECISE_BN__ENABLED": False}
SWITCHABLE = {  # norms for each bit-width of weights
    "SSQL_DET__QUANTIZED_TRAINING__ENABLED": True,
    "SSQL_DET__QUANTIZED_TRAINING__NORMS": "switchable",
    "SSQL_DET__QUANTIZED_TRAINING__DISTILLATION": 0.5,
    "SSQL_DET__CALIB_IMAGES": 4,
}
WHOLE_BATCHES = {"SOLVER__IMS_PER_BATCH": 4, "SOLVER__CLIP_GRADIENTS__ENABLED": False}
ONE_SIZE = {"INPUT__MIN_SIZE_TRAIN": (64,), "SEED": 0}
AT_4W4A = {"SSQL_DET__QUANTIZED_TRAINING__ENABLED": True, "SSQL_DET__QUANTIZED_TRAINING__FIXED_BITS": "4w4a"}
CASES = {  # of gradients
    "C4": (C4, {}),
    "C4, frozen norms": (C4, {"MODEL__RESNETS__NORM": "FrozenBN", "SSQL_DET__EXTRA_NORM": ""}),
    "FPN": (FPN, {}),
    "C4, two parts": (C4, {"SSQL_DET__MICRO_BATCHES": 2}),
}


def build_in_float64(cfg):
    return select_boxes_in_float32(build_detector(cfg).double())


def case_config(name, folder):
    """The config of a case."""
    file, keys = CASES[name]
    return config(file, f"{folder}/{name}", **WHOLE_BATCHES, **keys)


def save_gradients(folder):
    """Save the gradients of each case's first step, and those of one tensor before each micro-batch."""
    for name in CASES:
        with recording_micro_batch_gradients() as found:
            reduced = first_gradients(case_config(name, folder), build_in_float64)
        torch.save((reduced, found), f"{folder}/{name}, rank {rank()}.pt")


@contextlib.contextmanager
def recording_micro_batch_gradients():
    losses, found = training_step.compute_losses, []

    def spy(model, *rest):
        grad = next(model.parameters()).grad
        found.append(None if grad is None else grad.clone())
        return losses(model, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_step, "compute_losses", spy)
        yield found


def save_gradients_with_norm(folder, norm):
    """Save the gradients of a step in which all ranks sample equally many regions."""
    keys = {"MODEL__RESNETS__NORM": norm, "SSQL_DET__EXTRA_NORM": norm}
    with sampling_alike():
        found = first_gradients(config(C4, f"{folder}/run", **WHOLE_BATCHES, **ONE_SIZE, **keys), build_in_float64)
    torch.save(found, f"{folder}/{rank()}.pt")


def save_quantized_gradients(folder):
    """Save the gradients of a quantized step, and those of one tensor before each pass. Norms are frozen: rounding in
    others would move sums of integers that are 0 to either side of a ReLU."""
    keys = {"MODEL__RESNETS__NORM": "FrozenBN", "SSQL_DET__EXTRA_NORM": ""}
    cfg = config(C4, f"{folder}/run", **WHOLE_BATCHES, **ONE_SIZE, **keys, **AT_4W4A)
    with sampling_alike(), recording_micro_batch_gradients() as before:
        found = first_gradients(cfg, build_in_float64)
    torch.save((found, before), f"{folder}/{rank()}.pt")


@contextlib.contextmanager
def sampling_alike():
    """Train on one image, mirrored or not, so that all ranks sample equally many regions."""
    records = get_detection_dataset_dicts(("toy_voc_2007_trainval",))[:1]
    with pytest.MonkeyPatch.context() as patch, sampling_first_regions():
        patch.setattr("ssql_det.detect.train_loader.get_detection_dataset_dicts", lambda *args, **kwargs: records)
        yield


def save_estimated_norms(folder):
    """Save the norms that ranks estimate together, from equal weights but different statistics and generators."""
    cfg = case_config("C4", folder)
    torch.manual_seed(0)
    model = build_in_float64(cfg)
    torch.manual_seed(rank())
    estimate_norms(cfg, model, cfg.SEED)
    torch.save(dict(model.named_buffers()), f"{folder}/{rank()}.pt")


def save_evaluated_models(folder, is_precise):
    """Train with periodic evaluations; save the model's state at each of them."""
    evaluate, states = PeriodicEvaluation.evaluate, []

    def spy(evaluation, model, iteration):
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        return evaluate(evaluation, model, iteration)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PeriodicEvaluation, "evaluate", spy)
        train(config(C4, f"{folder}/run", TEST__PRECISE_BN__ENABLED=is_precise, **WITH_EVALUATIONS), C4)
    torch.save(states, f"{folder}/{rank()}.pt")


def save_fed_files(folder, name, stop):
    """Save the files that a resumed training feeds this rank, a list per step, until it is stopped."""
    losses, found = training_step.compute_losses, []

    def spy(model, batch, *rest):
        found.append([each["file_name"] for each in batch])
        return losses(model, batch, *rest)

    with pytest.MonkeyPatch.context() as patch, stopping_in_step(stop) if stop else contextlib.nullcontext():
        patch.setattr(training_step, "compute_losses", spy)
        train(config(C4, f"{folder}/run", **FEEDING), C4, resume=True)
    Path(f"{folder}/{name} {rank()}.json").write_text(json.dumps(found))


def train_to_nan_on_the_second(folder):
    """Train until a loss is nan, on the second rank alone."""
    losses = training_step.compute_losses

    def spoilt(*given):
        computed = losses(*given)
        if rank():
            computed["loss_cls"] = computed["loss_cls"] * float("nan")  # keeps its graph, as a real one does
        return computed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_step, "compute_losses", spoilt)
        train(config(C4, f"{folder}/run"), C4)


def save_switchable_norms(folder):
    """Train two iterations, and save the norms that this rank has."""
    save_trained = AnyPrecisionStep.save_trained

    def spy(step, *args):
        torch.save(step.switchable_norms.state_dict(), f"{folder}/{rank()}.pt")
        save_trained(step, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AnyPrecisionStep, "save_trained", spy)
        train(config(C4, f"{folder}/run", SOLVER__MAX_ITER=2, SOLVER__STEPS=(), **SWITCHABLE), C4)
