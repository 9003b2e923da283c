"""A quantizer with parameters is trained with the network under SSQL: optimizer, checkpoint, resuming."""

from unittest.mock import patch

import pytest
import torch
from support.pretrain.runs import config, content
from support.reference_methods import EncoderPass, cosine_loss
from support.small_methods import assert_tensors_close, compute_gradients, make_small_method, make_two_views
from torch import nn

from ssql_det.convert import read_checkpoint
from ssql_det.core.errors import UserError
from ssql_det.core.files import sha256
from ssql_det.pretrain.checkpoint import read_backbone, read_pretrained_method
from ssql_det.pretrain.config import build_network
from ssql_det.pretrain.loop import pretrain
from ssql_det.pretrain.optim import build_optimizer
from ssql_det.quant import ACTIVATIONS, Bits, FixedBits, Quantization, RangeQuantizer, Scheme, quant_points
from ssql_det.quant.quantizers.trained import TrainedRangeQuantizer
from ssql_det.quant.training import QuantizerOptim, QuantizerTraining
from ssql_det.ssl import SSQL

NAME = "stretched"
RUN = {"SSQL__SCHEME": f"act={NAME}", "SSQL__FIXED_BITS": "3w4a", "OPTIM__EPOCHS": 3}

pytestmark = pytest.mark.usefixtures("logging_as_it_was")


class Stretched(RangeQuantizer):
    """The observed range, times a trained factor."""

    def __init__(self, spec):
        super().__init__(spec)
        self.stretch = nn.Parameter(torch.ones(()))

    def choose_range(self, bits):
        quantized_pass, high = self.observer.range
        return quantized_pass * self.stretch, high * self.stretch


@pytest.fixture(scope="module", autouse=True)
def _registered():
    """Registered during these tests only."""
    ACTIVATIONS.register(NAME)(Stretched)
    yield
    del ACTIVATIONS._objects[NAME]


@pytest.fixture(scope="module")
def learned(toy, _registered, tmp_path_factory):
    """The folder of a whole run."""
    folder = tmp_path_factory.mktemp("learned")
    pretrain(config(toy, folder, **RUN))
    return folder


def ssql_of(method, bits, scheme):
    ssql = SSQL(method, FixedBits(bits), scheme=scheme).double()
    ssql.quantization.quantizers.double()
    return ssql


def stretches(ssql):
    """The factors, by the names that the network by hand uses."""
    points = [point for point in ssql.quantization.points if not point.is_weight]
    return {point.path if "layer" in point.path else "stem": ssql.quantization[point].stretch for point in points}


FIRST = "backbone.layer1.0.conv2:input/learned.stretch"


def stretches_in(checkpoint):
    return {name: value for name, value in checkpoint["quantizers"].items() if name.endswith("stretch")}


@pytest.mark.parametrize("bits", [Bits(2, 4), Bits(5, 8)], ids=str)
def test_a_step_and_its_gradients_equal_those_by_hand(bits):
    """Each quantizer has another factor, so that some clip and some do not use their whole range."""
    method, views = make_small_method("simsiam"), make_two_views()
    ssql = ssql_of(method, bits, Scheme(act=NAME))
    learned = stretches(ssql)
    for number, stretch in enumerate(learned.values()):
        stretch.data.fill_(0.6 + 0.08 * number)
    float_pass = EncoderPass(method.encoder.named_parameters())
    encoded = [float_pass.encode(view) for view in views]
    assert learned.keys() == float_pass.ranges.keys()
    ends = {place: tuple(end * learned[place] for end in observed) for place, observed in float_pass.ranges.items()}
    quantized_pass = EncoderPass(method.encoder.named_parameters(), bits, ends)
    targets = [each.detach() for each in encoded]
    losses = [cosine_loss(method, each, targets) for each in (encoded, [quantized_pass.encode(view) for view in views])]
    expected, loss = sum(losses) / 2, ssql(views, step=0)
    assert abs(loss - expected) < 1e-12
    assert abs(loss - ssql_of(make_small_method("simsiam"), bits, None)(views, step=0)) > 1e-4
    ours, theirs = (
        dict(zip(learned, torch.autograd.grad(each, list(learned.values()), retain_graph=True), strict=True))
        for each in (loss, expected)
    )
    assert_tensors_close(ours, theirs)
    assert all(gradient != 0 for gradient in ours.values())
    assert_tensors_close(compute_gradients(loss, method), compute_gradients(expected, method))


def test_it_is_in_the_optimizer(toy, tmp_path):
    cfg = config(toy, tmp_path, **RUN)
    network, _ = build_network(cfg)
    quantizers = QuantizerTraining(network.quantization, QuantizerOptim(lr_factor=0.5, weight_decay=0.25))
    weights, group = build_optimizer(cfg.optim, network, quantizers.make_groups(cfg.optim.lr)).param_groups
    assert {*map(id, weights["params"])} == {*map(id, network.method.parameters())}
    learned = stretches(network)
    assert len(learned) > 4
    assert {*map(id, group["params"])} == {*map(id, learned.values())}
    assert (group["lr"], group["weight_decay"]) == (0.5 * cfg.optim.lr, 0.25)


def test_it_changes_and_is_in_the_checkpoint(learned, whole):
    trained = stretches_in(content(learned))
    assert FIRST in trained
    assert all(value.isfinite() and value != 1 for value in trained.values())
    heads = content(learned)["heads"]
    assert heads.keys() == content(whole)["heads"].keys()
    assert "quantizers" not in content(whole)  # min-max has no parameters


def test_the_backbone_is_read_as_any_other(learned):
    checkpoint, trained = (
        read_checkpoint(learned / "checkpoint.pth"),
        read_pretrained_method(learned / "checkpoint.pth"),
    )
    assert checkpoint.metadata.method == f"SSQL, altered: FIXED_BITS 3w4a, SCHEME act={NAME}"
    assert torch.equal(trained.encoder.backbone.conv1.weight, content(learned)["online"]["conv1.weight"])
    assert trained.has_heads


def test_a_resumed_run_equals_the_whole_one(learned, toy, stop_after, tmp_path):
    stop_after(config(toy, tmp_path, **RUN), 4)
    stopped, trained = stretches_in(content(tmp_path)), stretches_in(content(learned))
    assert stopped.keys() == trained.keys()
    assert all(stopped[name] != value for name, value in trained.items())
    pretrain(config(toy, tmp_path, **RUN), resume=True)
    for name in ("checkpoint.pth", "quantization.safetensors"):
        assert sha256(tmp_path / name) == sha256(learned / name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda checkpoint: checkpoint.pop("quantizers"), "it has no quantizers"),
        (lambda checkpoint: checkpoint["quantizers"].pop(FIRST), "Missing key.*stretch"),
        (lambda checkpoint: checkpoint["quantizers"].update({FIRST: torch.ones(2)}), "size mismatch for"),
        (lambda checkpoint: checkpoint.update(quantizers=[1]), "cannot be resumed from"),
    ],
    ids=["none", "one less", "another shape", "a list"],
)
def test_a_checkpoint_with_other_quantizers_is_not_resumed(change, message, learned, toy, tmp_path):
    checkpoint = content(learned)
    change(checkpoint)
    tmp_path.joinpath("config.yaml").write_bytes((learned / "config.yaml").read_bytes())
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    with pytest.raises(UserError, match=message):
        pretrain(config(toy, tmp_path, **RUN), resume=True)


# ---- lsq, pact, dorefa ---------------------------------------------------------------------------------------------

SAMPLED = {"SSQL__SCHEME": "lsq", "OPTIM__EPOCHS": 2, "SSQL__QUANTIZER_WEIGHT_DECAY": 0.01}
AWARE = {  # quantization-aware training of SimSiam alone
    "SSQL__SCHEME": "weight=dorefa, act=pact",
    "SSQL__FIXED_BITS": "4w4a",
    "SSQL__QUANTIZE_TARGETS": True,
    "SSQL__AUXILIARY": False,
    "OPTIM__EPOCHS": 2,
}


@pytest.mark.parametrize("run", [SAMPLED, AWARE], ids=["lsq at sampled bits", "pact at fixed bits"])
def test_a_resumed_run_trains_the_same_steps_and_clips(run, toy, stop_after, tmp_path):
    pretrain(config(toy, tmp_path / "whole", **run))
    stop_after(config(toy, tmp_path / "stopped", **run), 2)
    pretrain(config(toy, tmp_path / "stopped", **run), resume=True)
    for name in ("checkpoint.pth", "quantization.safetensors"):
        assert sha256(tmp_path / "stopped" / name) == sha256(tmp_path / "whole" / name)
    backbone = read_backbone(tmp_path / "whole" / "checkpoint.pth").backbone.module
    quantization = Quantization.load(tmp_path / "whole" / "quantization.safetensors", backbone)
    assert quantization.points == quant_points(backbone)
    assert str(quantization.calibration) == "24 images of crops, seed 5"  # of the first step
    trained = [each for each in quantization.quantizers.modules() if isinstance(each, TrainedRangeQuantizer)]
    assert len(trained) > 4
    for quantizer in trained:
        is_trained = [bool(value != start) for value, start in zip(quantizer.trained, quantizer.initial, strict=True)]
        assert any(is_trained)
    with quantization.at(Bits(4, 4)), torch.no_grad():
        assert backbone.eval()(torch.randn(2, 3, 16, 16)).isfinite().all()


def test_parameters_for_all_bit_widths_need_fixed_bits(toy, tmp_path):
    message = f"act={NAME} at several bit-widths: its parameters are the same at all of them; set FIXED_BITS"
    with pytest.raises(UserError, match=message):
        config(toy, tmp_path, SSQL__SCHEME=f"act={NAME}")
    config(toy, tmp_path, SSQL__SCHEME=f"act={NAME}", SSQL__ACT_BITS="[4, 4]")
    with pytest.raises(UserError, match="cannot train with weight=brecq: rounding is learned afterwards"):
        config(toy, tmp_path, SSQL__SCHEME="weight=brecq")
    with pytest.raises(UserError, match="weight=lsq supports 2 to 8 bits, not 16"):
        config(toy, tmp_path, SSQL__SCHEME="lsq", SSQL__WEIGHT_BITS="[4, 16]")
    with pytest.raises(UserError, match="with act=pact all processes start from the same ranges"):
        build_network(config(toy, tmp_path, SSQL__SCHEME="act=pact", SSQL__PER_RANK=True))


def test_quantization_aware_training_needs_the_float_pass_once():
    """Its loss is that of the method, quantized; after the first step the float network is not run."""
    method, views = make_small_method("simsiam"), make_two_views()
    switches = {"quantize_targets": True, "auxiliary": False}
    scheme = Scheme.parse("weight=dorefa, act=pact")
    ssql = SSQL(method, FixedBits(Bits(4, 4)), scheme, **switches)
    with patch.object(method, "encode", side_effect=method.encode) as encode:
        for step, passes in enumerate((2, 3)):
            loss = ssql(views, step)
            assert encode.call_count == passes
    with ssql.quantization.at(Bits(4, 4)):
        assert loss == method(views)
