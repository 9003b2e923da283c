"""A quantizer that learns is trained with the network under SSQL: in the optimizer, in the checkpoint, resumed."""

import pytest
import torch
from support.methods import gradients, same, small, two_views
from support.methods_by_hand import Pass, cosine_loss
from support.pretrain.runs import config, content
from torch import nn

from ssql_det.convert import read_checkpoint
from ssql_det.core.errors import UserError
from ssql_det.core.files import sha256
from ssql_det.pretrain.checkpoint import read_pretrained_method
from ssql_det.pretrain.config import build_network
from ssql_det.pretrain.loop import pretrain
from ssql_det.pretrain.optim import build_optimizer
from ssql_det.quant import ACTIVATIONS, Bits, FixedBits, RangeQuantizer, Scheme
from ssql_det.ssl import SSQL

NAME = "stretched"
RUN = {"SSQL__SCHEME": f"act={NAME}", "OPTIM__EPOCHS": 3}

pytestmark = pytest.mark.usefixtures("logging_as_it_was")


class Stretched(RangeQuantizer):
    """The range that was observed, times what is learned."""

    def __init__(self, spec):
        super().__init__(spec)
        self.stretch = nn.Parameter(torch.ones(()))

    def choose_range(self, bits):
        low, high = self.observer.range
        return low * self.stretch, high * self.stretch


@pytest.fixture(scope="module", autouse=True)
def _registered():
    """While these tests run: in other modules the table is the package's own."""
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
    return SSQL(method, FixedBits(bits), scheme=scheme).double()


def stretches(ssql):
    """By the place, as the network by hand calls it."""
    points = [point for point in ssql.quantization.points if not point.is_weight]
    return {point.path if "layer" in point.path else "stem": ssql.quantization[point].stretch for point in points}


@pytest.mark.parametrize("bits", [Bits(2, 4), Bits(5, 8)], ids=str)
def test_a_step_and_its_gradients_are_those_written_out_by_hand(bits):
    """Each quantizer at another stretch: some clip, some do not reach as far as they might."""
    method, views = small("simsiam"), two_views()
    ssql = ssql_of(method, bits, Scheme(act=NAME))
    learned = stretches(ssql)
    for number, stretch in enumerate(learned.values()):
        stretch.data.fill_(0.6 + 0.08 * number)
    plain = Pass(method.encoder.named_parameters())
    encoded = [plain.encode(view) for view in views]
    assert learned.keys() == plain.ranges.keys()
    ends = {place: tuple(end * learned[place] for end in observed) for place, observed in plain.ranges.items()}
    low = Pass(method.encoder.named_parameters(), bits, ends)
    targets = [each.detach() for each in encoded]
    losses = [cosine_loss(method, each, targets) for each in (encoded, [low.encode(view) for view in views])]
    expected, loss = sum(losses) / 2, ssql(views, step=0)
    assert abs(loss - expected) < 1e-12
    assert abs(loss - ssql_of(small("simsiam"), bits, None)(views, step=0)) > 1e-4
    ours, theirs = (
        dict(zip(learned, torch.autograd.grad(each, list(learned.values()), retain_graph=True), strict=True))
        for each in (loss, expected)
    )
    same(ours, theirs)
    assert all(gradient != 0 for gradient in ours.values())
    same(gradients(loss, method), gradients(expected, method))


def test_it_is_in_the_optimizer(toy, tmp_path):
    cfg = config(toy, tmp_path, **RUN)
    network, _ = build_network(cfg)
    (group,) = build_optimizer(cfg.optim, network).param_groups
    trained = {id(parameter) for parameter in group["params"]}
    learned = stretches(network)
    assert len(learned) > 4
    assert all(id(stretch) in trained for stretch in learned.values())
    assert len(trained) == len(group["params"]) == len(list(network.method.parameters())) + len(learned)


def test_it_moves_and_is_in_the_checkpoint_beside_the_network(learned, whole):
    found = content(learned)["quantizers"]
    assert {name.rpartition(".")[2] for name in found} == {"stretch"}
    assert "backbone/layer1/0/conv2:input.stretch" in found
    assert all(value.isfinite() and value != 1 for value in found.values())
    heads = content(learned)["heads"]
    assert heads.keys() == content(whole)["heads"].keys()
    assert "quantizers" not in content(whole)  # min-max learns nothing


def test_others_read_the_backbone_as_any(learned):
    checkpoint, trained = (
        read_checkpoint(learned / "checkpoint.pth"),
        read_pretrained_method(learned / "checkpoint.pth"),
    )
    assert checkpoint.metadata.method == f"SSQL, altered: SCHEME act={NAME}"
    assert torch.equal(trained.encoder.backbone.conv1.weight, content(learned)["online"]["conv1.weight"])
    assert trained.has_heads


def test_a_stopped_and_resumed_run_is_the_whole_one(learned, toy, stop_after, tmp_path):
    stop_after(config(toy, tmp_path, **RUN), 6)
    stopped = content(tmp_path)["quantizers"]
    assert stopped.keys() == content(learned)["quantizers"].keys()
    assert all(stopped[name] != value for name, value in content(learned)["quantizers"].items())
    pretrain(config(toy, tmp_path, **RUN), resume=True)
    assert sha256(tmp_path / "checkpoint.pth") == sha256(learned / "checkpoint.pth")


FIRST = "backbone/layer1/0/conv2:input.stretch"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda found: found.pop("quantizers"), "it has no quantizers"),
        (lambda found: found["quantizers"].pop(FIRST), rf"Missing key.*{FIRST}"),
        (lambda found: found["quantizers"].update({FIRST: torch.ones(2)}), "size mismatch for"),
        (lambda found: found.update(quantizers=[1]), "cannot resume from"),
    ],
    ids=["none", "one less", "another shape", "a list"],
)
def test_without_what_was_learned_it_is_not_resumed(damage, said, learned, toy, tmp_path):
    found = content(learned)
    damage(found)
    tmp_path.joinpath("config.yaml").write_bytes((learned / "config.yaml").read_bytes())
    torch.save(found, tmp_path / "checkpoint.pth")
    with pytest.raises(UserError, match=said):
        pretrain(config(toy, tmp_path, **RUN), resume=True)
