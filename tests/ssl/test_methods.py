"""A step of BYOL, MoCo v2 and SimCLR, alone and under SSQL, against the same step written by hand; float64."""

import pytest
import torch
from support.reference_methods import (
    ContrastivePass,
    EncoderPass,
    PassWithoutLastNorm,
    cosine_loss,
    expected_statistics,
)
from support.small_methods import assert_tensors_close, compute_gradients, make_small_method, make_two_views

from ssql_det.core.errors import UserError
from ssql_det.quant import Bits, FixedBits
from ssql_det.ssl import SSQL

# ---- by hand -------------------------------------------------------------------------------------------------------


def average_weights(method):
    """The weights of the momentum encoder after one update at momentum .9."""
    online = dict(method.encoder.named_parameters())
    average = method.momentum.network.named_parameters()
    return {name: 0.9 * weight.clone() + 0.1 * online[name].detach() for name, weight in average}


def encode_twice(method, pass_type, bits, encode):
    """The features of the float pass and, with ``bits``, of the quantized pass; and the passes themselves."""
    float_pass = pass_type(method.encoder.named_parameters())
    features = [encode(float_pass)]
    if bits is None:
        return features, [float_pass]
    quantized_pass = pass_type(method.encoder.named_parameters(), bits, float_pass.ranges)
    return [*features, encode(quantized_pass)], [float_pass, quantized_pass]


def byol(method, views, bits, pass_type=EncoderPass):
    target = pass_type(average_weights(method))
    targets = [target.encode(view).detach() for view in views]
    features, online = encode_twice(method, pass_type, bits, lambda network: [network.encode(view) for view in views])
    losses = [cosine_loss(method, encoded, targets) for encoded in features]
    return losses, {"encoder": online, "momentum.network": [target]}


def byol_without_last_norm(method, views, bits):
    return byol(method, views, bits, PassWithoutLastNorm)


def moco(method, views, bits):
    target, queue = ContrastivePass(average_weights(method)), method.queue.keys.clone()
    keys = target.encode(views[1]).detach()
    features, online = encode_twice(method, ContrastivePass, bits, lambda network: network.encode(views[0]))
    losses = []
    for queries in features:
        positive = ((queries * keys).sum(1) / 0.2).exp()
        negatives = (queries @ queue.T / 0.2).exp().sum(1)
        losses.append(-(positive / (positive + negatives)).log().mean())
    return losses, {"encoder": online, "momentum.network": [target]}


def nt_xent(anchors, candidates):
    """Both [2N, D]: the first views, then the second."""
    count, losses = len(anchors) // 2, []
    for each in range(2 * count):
        similarities = (candidates @ anchors[each] / 0.5).exp()
        losses.append(-(similarities[(each + count) % (2 * count)] / (similarities.sum() - similarities[each])).log())
    return sum(losses) / len(losses)


def simclr(method, views, bits, cross=False):
    features, online = encode_twice(
        method, ContrastivePass, bits, lambda network: torch.cat([network.encode(view) for view in views])
    )
    float_features, *quantized_features = features
    candidates = [float_features.detach()] if cross else quantized_features
    losses = [nt_xent(float_features, float_features), *map(nt_xent, quantized_features, candidates)]
    return losses, {"encoder": online}


def simclr_cross(method, views, bits):
    return simclr(method, views, bits, cross=True)


BY_HAND = {
    "byol": byol_without_last_norm,
    "byol, last norm": byol,
    "moco": moco,
    "simclr": simclr,
    "simclr, cross": simclr_cross,
}
EVERY = pytest.mark.parametrize("kind", BY_HAND)


# ---- a step --------------------------------------------------------------------------------------------------------


def check_step(kind, bits, auxiliary=True):
    """Loss, gradients, and what a step leaves behind: statistics of norms, and the moving average."""
    method, views = make_small_method(kind), make_two_views()
    losses, passes = BY_HAND[kind](method, views, bits)
    expected = sum(losses) / len(losses) if auxiliary else losses[-1]
    average = average_weights(method) if hasattr(method, "momentum") else {}
    network = method if bits is None else SSQL(method, FixedBits(bits), auxiliary=auxiliary)
    loss = network(views, step=0)
    assert abs(loss - expected) < 1e-12
    assert_tensors_close(compute_gradients(loss, method), compute_gradients(expected, method))
    if average:
        assert_tensors_close(dict(method.momentum.network.named_parameters()), average)
    for path, network_passes in passes.items():
        for norm in network_passes[0].statistics:
            found, (mean, variance, count) = (
                method.get_submodule(f"{path}.{norm}"),
                expected_statistics(network_passes, norm),
            )
            torch.testing.assert_close(found.running_mean, mean, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(found.running_var, variance, rtol=1e-10, atol=1e-12)
            assert found.num_batches_tracked == count


@EVERY
def test_a_step_alone_equals_the_paper(kind):
    check_step(kind, bits=None)


@EVERY
@pytest.mark.parametrize("bits", [Bits(2, 4), Bits(8, 8)], ids=str)
def test_a_step_under_ssql_equals_the_paper(kind, bits):
    check_step(kind, bits)


@EVERY
def test_a_step_under_ssql_without_the_float_loss(kind):
    check_step(kind, Bits(3, 5), auxiliary=False)


@EVERY
@pytest.mark.parametrize("bits", [None, Bits(2, 4)], ids=str)
def test_targets_are_made_once_a_step(kind, bits, monkeypatch):
    """Because they may update a moving average or a queue."""
    method, calls = make_small_method(kind), []
    targets = method.targets
    monkeypatch.setattr(method, "targets", lambda *arguments: calls.append(arguments) or targets(*arguments))
    (SSQL(method, FixedBits(bits)) if bits else method)(make_two_views(), step=0)
    assert len(calls) == 1


@EVERY
@pytest.mark.parametrize("predictions", [True, False])
def test_quantized_targets_are_refused(kind, predictions):
    with pytest.raises(
        UserError, match=f"the targets of {make_small_method(kind).title}; set SSQL.QUANTIZE_TARGETS False"
    ):
        SSQL(make_small_method(kind), FixedBits(Bits(4, 4)), quantize_predictions=predictions, quantize_targets=True)


@pytest.mark.parametrize("kind", ["byol", "simclr", "simclr, cross"])
@pytest.mark.parametrize("bits", [None, Bits(2, 4)], ids=str)
def test_the_views_may_be_swapped(kind, bits):
    found = []
    for views in (make_two_views(), make_two_views()[::-1]):
        method = make_small_method(kind)
        loss = (SSQL(method, FixedBits(bits)) if bits else method)(views, step=0)
        found.append({"loss": loss.detach(), **compute_gradients(loss, method)})
    assert_tensors_close(*found)


@EVERY
@pytest.mark.parametrize("bits", [None, Bits(2, 4)], ids=str)
def test_the_order_of_images_does_not_matter(kind, bits):
    order, found = torch.tensor([3, 0, 5, 1, 4, 2]), []
    for views in (make_two_views(), [view[order] for view in make_two_views()]):
        method = make_small_method(kind)
        loss = (SSQL(method, FixedBits(bits)) if bits else method)(views, step=0)
        found.append({"loss": loss.detach(), **compute_gradients(loss, method)})
    assert_tensors_close(*found)


# ---- state that a step updates ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [None, Bits(2, 4)], ids=str)
def test_keys_enter_the_queue_after_the_loss_and_wrap_around(bits):
    method, views = make_small_method("moco"), make_two_views()
    method.queue.place.fill_(7)
    keys, queue = ContrastivePass(average_weights(method)).encode(views[1]), list(method.queue.keys.clone())
    for index, key in zip((7, 8, 9, 0, 1, 2), keys, strict=True):
        queue[index] = key
    losses, _ = moco(method, views, bits)
    loss = (SSQL(method, FixedBits(bits)) if bits else method)(views, step=0)
    assert abs(loss - sum(losses) / len(losses)) < 1e-12
    torch.testing.assert_close(method.queue.keys, torch.stack(queue), rtol=1e-9, atol=1e-12)
    assert method.queue.place == 3


def test_only_the_first_view_is_a_query():
    method, (query, key) = make_small_method("moco"), make_two_views()
    inputs = {"encoder": [], "momentum": []}
    method.encoder.register_forward_hook(lambda module, args, out: inputs["encoder"].append(args[0]))
    method.momentum.network.register_forward_hook(lambda module, args, out: inputs["momentum"].append(args[0]))
    SSQL(method, FixedBits(Bits(4, 4)))([query, key], step=0)
    assert [each is query for each in inputs["encoder"]] == [True, True]
    assert [each is key for each in inputs["momentum"]] == [True]


@pytest.mark.parametrize("kind", ["byol", "moco"])
def test_several_steps_give_the_weighted_sum(kind):
    """Three steps with an optimizer: the average is the weighted sum of the weights it was updated with."""
    method, views = make_small_method(kind), make_two_views()
    optimizer = torch.optim.SGD([each for each in method.parameters() if each.requires_grad], lr=0.1)
    average = dict(method.momentum.network.named_parameters())
    expected = {name: weight.clone() * 0.9**3 for name, weight in average.items()}
    for step in range(3):
        for name, weight in method.encoder.named_parameters():
            expected[name] += 0.1 * 0.9 ** (2 - step) * weight.detach()
        loss = SSQL(method, FixedBits(Bits(4, 4)))(views, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert_tensors_close(average, expected)
    assert not any(weight.requires_grad for weight in average.values())


@pytest.mark.parametrize("kind", ["byol", "moco"])
def test_in_evaluation_mode_nothing_is_updated(kind):
    method = make_small_method(kind).eval()
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    assert SSQL(method, FixedBits(Bits(4, 4)))(make_two_views(), step=0).isfinite()
    after = method.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


# ---- half precision ------------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("auxiliary", [True, False])
def test_a_step_in_bfloat16_is_near_one_in_float32_and_its_state_stays_float32(kind, auxiliary):
    losses = []
    for is_half in (False, True):
        method = make_small_method(kind).float()
        with torch.autocast("cpu", torch.bfloat16, is_half):
            loss = SSQL(method, FixedBits(Bits(8, 8)), auxiliary=auxiliary)(
                [view.float() for view in make_two_views()], 0
            )
        loss.backward()
        losses.append(loss)
    assert losses[1].dtype == torch.float32
    assert losses[1].item() == pytest.approx(losses[0].item(), abs=0.05)
    assert {tensor.dtype for tensor in method.state_dict().values()} == {torch.float32, torch.int64}
    assert all(weight.grad.isfinite().all() for weight in method.parameters() if weight.requires_grad)
    if kind == "moco":
        torch.testing.assert_close(method.queue.keys.norm(dim=1), torch.ones(10))
