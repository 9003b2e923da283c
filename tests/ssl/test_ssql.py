"""A step of SSQL over SimSiam against the same step written by hand, without contexts and hooks; float64."""

import itertools

import pytest
import torch
from support.reference_methods import EncoderPass, cosine_loss, expected_statistics
from support.small_methods import assert_tensors_close, compute_gradients, make_small_method, make_two_views

from ssql_det.core.errors import UserError
from ssql_det.quant import Bits, FixedBits, Quantization, SampledBits, Scheme
from ssql_det.ssl import SSQL, encoder_quant_points


def by_hand(method, views, bits, predictions=True, targets=False, auxiliary=True):
    """The loss of a step, and the float and the quantized pass."""
    float_pass = EncoderPass(method.encoder.named_parameters())
    encoded = [float_pass.encode(view) for view in views]
    quantized = EncoderPass(method.encoder.named_parameters(), bits, float_pass.ranges)
    encoded_quantized = [quantized.encode(view) for view in views]
    loss_targets = [each.detach() for each in (encoded_quantized if targets else encoded)]
    losses = []
    if not predictions or auxiliary:
        losses.append(cosine_loss(method, encoded, loss_targets))
    if predictions:
        losses.append(cosine_loss(method, encoded_quantized, loss_targets))
    return sum(losses) / len(losses), float_pass, quantized


BITS = [Bits(2, 4), Bits(4, 4), Bits(5, 8), Bits(8, 8)]


@pytest.mark.parametrize("bits", BITS, ids=str)
def test_a_step_equals_the_paper(bits):
    method, views = make_small_method("simsiam"), make_two_views()
    expected, *_ = by_hand(method, views, bits)
    loss = SSQL(method, FixedBits(bits))(views, step=0)
    assert abs(loss - expected) < 1e-12
    assert_tensors_close(compute_gradients(loss, method), compute_gradients(expected, method))


@pytest.mark.parametrize(("predictions", "targets", "auxiliary"), list(itertools.product([True, False], repeat=3)))
def test_the_switches_of_table_8(predictions, targets, auxiliary):
    method, views = make_small_method("simsiam"), make_two_views()
    switches = {"quantize_predictions": predictions, "quantize_targets": targets, "auxiliary": auxiliary}
    if not predictions and not targets:
        with pytest.raises(UserError, match="quantizes neither predictions nor targets"):
            SSQL(method, FixedBits(Bits(4, 4)), **switches)
        return
    expected, *_ = by_hand(method, views, Bits(3, 5), predictions, targets, auxiliary)
    loss = SSQL(method, FixedBits(Bits(3, 5)), **switches)(views, step=0)
    assert abs(loss - expected) < 1e-12
    assert_tensors_close(compute_gradients(loss, method), compute_gradients(expected, method))


def test_another_scheme_changes_the_quantized_pass_only():
    method, views, scheme = make_small_method("simsiam"), make_two_views(), Scheme("centred", "mse")
    quantization = Quantization(method.encoder, encoder_quant_points(method.encoder), scheme)
    with quantization.observing():
        encoded = method.encode(views)
    with quantization.at(Bits(3, 5)):
        quantized = method.encode(views)
    targets = [each.detach() for each in encoded]
    loss = SSQL(method, FixedBits(Bits(3, 5)), scheme=scheme)(views, step=0)
    expected = (method.loss(encoded, targets) + method.loss(quantized, targets)) / 2
    assert abs(loss - expected) < 1e-12
    assert_tensors_close(compute_gradients(loss, method), compute_gradients(expected, method))
    assert abs(loss - SSQL(method, FixedBits(Bits(3, 5)))(views, step=0)) > 1e-4


def test_norms_are_not_re_estimated_in_training():
    with pytest.raises(UserError, match="SSQL cannot train with norms=re-estimated"):
        SSQL(make_small_method("simsiam"), FixedBits(Bits(4, 4)), scheme=Scheme(norms="re-estimated"))


def test_the_views_may_be_swapped():
    method, views = make_small_method("simsiam"), make_two_views()
    one = SSQL(method, FixedBits(Bits(2, 4)))(views, step=0)
    other = SSQL(method, FixedBits(Bits(2, 4)))(views[::-1], step=0)
    assert abs(one - other) < 1e-12
    assert_tensors_close(compute_gradients(one, method), compute_gradients(other, method))


def test_both_passes_update_the_statistics_of_norms():
    method, views = make_small_method("simsiam"), make_two_views()
    _, float_pass, quantized = by_hand(method, views, Bits(4, 4))
    SSQL(method, FixedBits(Bits(4, 4)))(views, step=0)
    for path in float_pass.statistics:
        mean, variance, count = expected_statistics([float_pass, quantized], path)
        norm = method.encoder.get_submodule(path)
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(norm.running_var, variance, rtol=1e-10, atol=1e-12)
        assert norm.num_batches_tracked == count == 4


def test_the_bits_are_those_of_the_step():
    method, views = make_small_method("simsiam"), make_two_views()
    ssql = SSQL(method, SampledBits(seed=3))
    for step in (0, 7):
        expected = SSQL(method, FixedBits(SampledBits(seed=3)(step)))(views, step=0)
        assert ssql(views, step) == expected
    assert ssql(views, 0) != ssql(views, 7)


def test_the_projector_is_at_8_bits_and_its_inputs_and_the_predictor_are_float():
    points = encoder_quant_points(make_small_method("simsiam").encoder)
    projector = [point for point in points if point.path.startswith("projector")]
    assert [(point.key, point.bits) for point in projector] == [(f"projector.{n}:weight", 8) for n in (0, 3, 6)]
    assert not any("predictor" in point.path for point in points)


def test_simsiam_alone_is_the_float_loss():
    method, views = make_small_method("simsiam"), make_two_views()
    float_pass = EncoderPass(method.encoder.named_parameters())
    encoded = [float_pass.encode(view) for view in views]
    expected = cosine_loss(method, encoded, [each.detach() for each in encoded])
    loss = method(views)
    assert abs(loss - expected) < 1e-12
    assert_tensors_close(compute_gradients(loss, method), compute_gradients(expected, method))
