"""A step of any-precision training equals one that is written out by hand, and never holds two graphs."""

import copy

import pytest
import torch
from support.detect.configs import C4, FPN, config, randomize_norms, select_boxes_in_float32
from support.detect.detector_by_hand import any_precision_step_by_hand
from support.detect.training_runs import is_equal, largest_difference
from support.saved_bytes import SavedBytes

from ssql_det.d2 import EventStorage
from ssql_det.detect.any_precision import AnyPrecisionStep
from ssql_det.detect.detector import build_detector
from ssql_det.detect.quantized_training import QuantizedTraining
from ssql_det.detect.train_loader import build_train_loader
from ssql_det.detect.training_step import TrainingStep
from ssql_det.quant import Bits, FixedBits, SampledBits

SMALL = {
    "INPUT__MIN_SIZE_TRAIN": (128,),
    "MODEL__FPN__OUT_CHANNELS": 16,
    "MODEL__ROI_BOX_HEAD__FC_DIM": 24,
    "MODEL__ROI_MASK_HEAD__CONV_DIM": 12,
    "MODEL__ROI_HEADS__BATCH_SIZE_PER_IMAGE": 16,
}


@pytest.fixture(params=[C4, FPN], scope="module")
def detector_and_batch(request, toy_data_in_place):
    """A detector in float64, in training mode, and two images."""
    cfg = config(request.param, **SMALL)
    torch.manual_seed(0)
    model = select_boxes_in_float32(randomize_norms(build_detector(cfg)).double())
    return model.train(), next(build_train_loader(cfg, seed=1))


def gradients_of(model):
    return {name: each.grad for name, each in model.named_parameters()}


def run(step, model, batch):
    torch.manual_seed(7)  # of the sampled anchors and regions
    with EventStorage():
        return step(model, [batch], iteration=0)


@pytest.mark.parametrize("bits", [Bits(4, 4), Bits(2, 4)], ids=str)
def test_a_step_equals_one_by_hand(bits, detector_and_batch):
    model, batch = copy.deepcopy(detector_and_batch[0]), detector_and_batch[1]
    twin = copy.deepcopy(model)
    recorded = run(AnyPrecisionStep(model, QuantizedTraining(FixedBits(bits))), model, batch)
    torch.manual_seed(7)
    with EventStorage():
        expected = any_precision_step_by_hand(twin, batch, bits)
    assert [each.bits for each in recorded] == [Bits.FP, bits]
    for ours, theirs in zip(recorded, expected, strict=True):
        assert largest_difference(ours.losses, theirs | {"total_loss": sum(theirs.values())}) <= 1e-9
    assert largest_difference(*map(gradients_of, (model, twin))) <= 1e-9
    assert recorded[0].losses != recorded[1].losses


def test_two_graphs_are_never_in_memory(detector_and_batch):
    model, batch = detector_and_batch
    counters = []
    for step in (TrainingStep(), AnyPrecisionStep(model, QuantizedTraining(FixedBits(Bits(4, 4)), has_lowest=True))):
        counters.append(SavedBytes())
        with counters[-1].counting():
            run(step, model, batch)
        assert counters[-1].now == 0
    float_step, any_precision_step = counters
    assert float_step.most > 1e6
    assert any_precision_step.most <= 1.7 * float_step.most


def test_running_statistics_follow_the_float_pass_alone(detector_and_batch):
    model, batch = detector_and_batch
    alone, both = copy.deepcopy(model), copy.deepcopy(model)
    run(TrainingStep(), alone, batch)
    run(AnyPrecisionStep(both, QuantizedTraining(SampledBits(seed=0), has_lowest=True)), both, batch)
    assert is_equal(dict(both.named_buffers()), dict(alone.named_buffers()))
    assert not is_equal(dict(both.named_buffers()), dict(model.named_buffers()))
