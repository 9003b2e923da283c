"""A step of BYOL, MoCo v2 and SimCLR, alone and under SSQL, against the same written out by hand; float64."""

import pytest
import torch
from support.methods import gradients, same, small, two_views
from support.methods_by_hand import ContrastivePass, Pass, PlainPass, cosine_loss, statistics_after

from ssql_det.core.errors import UserError
from ssql_det.quant import Bits, FixedBits
from ssql_det.ssl import SSQL

# ---- by hand -------------------------------------------------------------------------------------------------------


def moved(method):
    """The weights of the moving average after a step at rate .9, of what they are before it."""
    online = dict(method.encoder.named_parameters())
    kept = method.momentum.network.named_parameters()
    return {name: 0.9 * weight.clone() + 0.1 * online[name].detach() for name, weight in kept}


def twice(method, passes, bits, encode):
    """What ``encode`` finds in the float pass, and where there are bits in the quantized one; and the passes."""
    plain = passes(method.encoder.named_parameters())
    found = [encode(plain)]
    if bits is None:
        return found, [plain]
    low = passes(method.encoder.named_parameters(), bits, plain.ranges)
    return [*found, encode(low)], [plain, low]


def byol(method, views, bits, passes=Pass):
    target = passes(moved(method))
    targets = [target.encode(view).detach() for view in views]
    found, online = twice(method, passes, bits, lambda way: [way.encode(view) for view in views])
    losses = [cosine_loss(method, encoded, targets) for encoded in found]
    return losses, {"encoder": online, "momentum.network": [target]}


def byol_without_last_norm(method, views, bits):
    return byol(method, views, bits, PlainPass)


def moco(method, views, bits):
    target, queue = ContrastivePass(moved(method)), method.queue.keys.clone()
    keys = target.encode(views[1]).detach()
    found, online = twice(method, ContrastivePass, bits, lambda way: way.encode(views[0]))
    losses = []
    for queries in found:
        right = ((queries * keys).sum(1) / 0.2).exp()
        wrong = (queries @ queue.T / 0.2).exp().sum(1)
        losses.append(-(right / (right + wrong)).log().mean())
    return losses, {"encoder": online, "momentum.network": [target]}


def nt_xent(anchors, candidates):
    """Both [2N, D]: the first views, then the second."""
    count, losses = len(anchors) // 2, []
    for each in range(2 * count):
        likeness = (candidates @ anchors[each] / 0.5).exp()
        losses.append(-(likeness[(each + count) % (2 * count)] / (likeness.sum() - likeness[each])).log())
    return sum(losses) / len(losses)


def simclr(method, views, bits, cross=False):
    found, online = twice(method, ContrastivePass, bits, lambda way: torch.cat([way.encode(view) for view in views]))
    plain, *low = found
    candidates = [plain.detach()] if cross else low
    return [nt_xent(plain, plain), *map(nt_xent, low, candidates)], {"encoder": online}


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
    method, views = small(kind), two_views()
    losses, passes = BY_HAND[kind](method, views, bits)
    expected = sum(losses) / len(losses) if auxiliary else losses[-1]
    average = moved(method) if hasattr(method, "momentum") else {}
    network = method if bits is None else SSQL(method, FixedBits(bits), auxiliary=auxiliary)
    loss = network(views, step=0)
    assert abs(loss - expected) < 1e-12
    same(gradients(loss, method), gradients(expected, method))
    if average:
        same(dict(method.momentum.network.named_parameters()), average)
    for path, ways in passes.items():
        for norm in ways[0].statistics:
            found, (mean, variance, count) = method.get_submodule(f"{path}.{norm}"), statistics_after(ways, norm)
            torch.testing.assert_close(found.running_mean, mean, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(found.running_var, variance, rtol=1e-10, atol=1e-12)
            assert found.num_batches_tracked == count


@EVERY
def test_a_step_alone_is_what_the_paper_says(kind):
    check_step(kind, bits=None)


@EVERY
@pytest.mark.parametrize("bits", [Bits(2, 4), Bits(4, 4), Bits(8, 8)], ids=str)
def test_a_step_under_ssql_is_what_the_paper_says(kind, bits):
    check_step(kind, bits)


@EVERY
def test_a_step_under_ssql_without_the_float_loss(kind):
    check_step(kind, Bits(3, 5), auxiliary=False)


@EVERY
@pytest.mark.parametrize("bits", [None, Bits(2, 4)], ids=str)
def test_targets_are_asked_for_once_a_step(kind, bits, monkeypatch):
    """They may change what moves with the steps."""
    method, asked = small(kind), []
    targets = method.targets
    monkeypatch.setattr(method, "targets", lambda *given: asked.append(given) or targets(*given))
    (SSQL(method, FixedBits(bits)) if bits else method)(two_views(), step=0)
    assert len(asked) == 1


@EVERY
@pytest.mark.parametrize("predictions", [True, False])
def test_targets_that_ssql_does_not_choose_are_not_quantized(kind, predictions):
    with pytest.raises(UserError, match=f"{small(kind).title} says itself what it is held against"):
        SSQL(small(kind), FixedBits(Bits(4, 4)), quantize_predictions=predictions, quantize_targets=True)


@pytest.mark.parametrize("kind", ["byol", "simclr", "simclr, cross"])
@pytest.mark.parametrize("bits", [None, Bits(2, 4)], ids=str)
def test_the_views_may_be_swapped(kind, bits):
    found = []
    for views in (two_views(), two_views()[::-1]):
        method = small(kind)
        loss = (SSQL(method, FixedBits(bits)) if bits else method)(views, step=0)
        found.append({"loss": loss.detach(), **gradients(loss, method)})
    same(*found)


@EVERY
@pytest.mark.parametrize("bits", [None, Bits(2, 4)], ids=str)
def test_the_order_of_images_does_not_matter(kind, bits):
    order, found = torch.tensor([3, 0, 5, 1, 4, 2]), []
    for views in (two_views(), [view[order] for view in two_views()]):
        method = small(kind)
        loss = (SSQL(method, FixedBits(bits)) if bits else method)(views, step=0)
        found.append({"loss": loss.detach(), **gradients(loss, method)})
    same(*found)


# ---- what moves with the steps ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [None, Bits(2, 4)], ids=str)
def test_keys_enter_the_queue_after_the_loss_and_around_its_end(bits):
    method, views = small("moco"), two_views()
    method.queue.place.fill_(7)
    keys, queue = ContrastivePass(moved(method)).encode(views[1]), list(method.queue.keys.clone())
    for place, key in zip((7, 8, 9, 0, 1, 2), keys, strict=True):
        queue[place] = key
    losses, _ = moco(method, views, bits)
    loss = (SSQL(method, FixedBits(bits)) if bits else method)(views, step=0)
    assert abs(loss - sum(losses) / len(losses)) < 1e-12
    torch.testing.assert_close(method.queue.keys, torch.stack(queue), rtol=1e-9, atol=1e-12)
    assert method.queue.place == 3


def test_only_the_first_view_is_a_query():
    method, (query, key) = small("moco"), two_views()
    seen = {"encoder": [], "momentum": []}
    method.encoder.register_forward_hook(lambda module, given, out: seen["encoder"].append(given[0]))
    method.momentum.network.register_forward_hook(lambda module, given, out: seen["momentum"].append(given[0]))
    SSQL(method, FixedBits(Bits(4, 4)))([query, key], step=0)
    assert [each is query for each in seen["encoder"]] == [True, True]
    assert [each is key for each in seen["momentum"]] == [True]


@pytest.mark.parametrize("kind", ["byol", "moco"])
def test_the_next_step_goes_on_from_what_the_last_left(kind):
    """Three steps with an optimizer between them: the average is the sum of what it followed."""
    method, views = small(kind), two_views()
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
    same(average, expected)
    assert not any(weight.requires_grad for weight in average.values())


@pytest.mark.parametrize("kind", ["byol", "moco"])
def test_in_evaluation_nothing_moves(kind):
    method = small(kind).eval()
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    assert SSQL(method, FixedBits(Bits(4, 4)))(two_views(), step=0).isfinite()
    after = method.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


# ---- half precision ------------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("auxiliary", [True, False])
def test_a_step_in_bfloat16_is_near_one_in_float32_and_its_state_stays_float32(kind, auxiliary):
    losses = []
    for is_half in (False, True):
        method = small(kind).float()
        with torch.autocast("cpu", torch.bfloat16, is_half):
            loss = SSQL(method, FixedBits(Bits(8, 8)), auxiliary=auxiliary)([view.float() for view in two_views()], 0)
        loss.backward()
        losses.append(loss)
    assert losses[1].dtype == torch.float32
    assert losses[1].item() == pytest.approx(losses[0].item(), abs=0.05)
    assert {tensor.dtype for tensor in method.state_dict().values()} == {torch.float32, torch.int64}
    assert all(weight.grad.isfinite().all() for weight in method.parameters() if weight.requires_grad)
    if kind == "moco":
        torch.testing.assert_close(method.queue.keys.norm(dim=1), torch.ones(10))
