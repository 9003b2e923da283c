"""Models of minid2: what they save, freeze and refuse; what a batch, quantization or a copy leaves as it was."""

import copy
import importlib
import pickle

import numpy as np
import pytest
import torch
from support.minid2.detectors import FEW, NORMED, REFERENCES, build, full_config, inputs
from support.minid2.modules import SIZES, nms_of_doubles, seed_weights, small_config
from support.minid2.structures_and_layers import POLYGONS, random_boxes, random_tensor

from ssql_det.minid2.layers import FrozenBatchNorm2d
from ssql_det.minid2.modeling import build_backbone, build_model
from ssql_det.minid2.structures import BitMasks, Boxes, ImageList, Instances, PolygonMasks, ROIMasks
from ssql_det.minid2.utils.events import EventStorage
from ssql_det.quant import Bits, Quantization, Side, fake_quantize_weight

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda thing: pickle.loads(pickle.dumps(thing))}


def engine(package):
    return importlib.import_module(f"ssql_det.minid2.{package}")


def config(kind="FPN", *keys):
    cfg = small_config(engine, kind)
    cfg.merge_from_list([*FEW, *keys])
    return cfg


def seeded(kind="FPN", *keys):
    return seed_weights(build(engine, config(kind, *keys)))


def image(seed, height, width):
    return random_tensor(seed, 3, height, width, dtype=torch.float64).abs() * 100


def detect(model, *images):
    """Of each image, the detections as plain tensors."""
    with torch.no_grad(), nms_of_doubles():
        found = [each["instances"].get_fields() for each in model.eval()([{"image": each} for each in images])]
    return [{**fields, "pred_boxes": fields["pred_boxes"].tensor} for fields in found]


def losses_of(model, batch):
    with EventStorage(), nms_of_doubles():
        return sum(model.train()(batch).values())


def assert_same(found, expected):
    assert all(len(each["scores"]) for each in expected)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def differing(found, expected):
    """Names of the tensors in which the two differ at all."""
    assert list(found) == list(expected)
    return [name for name, value in expected.items() if not torch.equal(found[name], value)]


# ---- what they are -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("R18-C4", 110),
        ("R18-C4 normed", 130),  # each of 20 batch norms counts its batches
        ("R50-C4", 275),
        ("Mask R50-FPN", 307),
        ("Mask R50-FPN normed", 360),  # 53 of them
        ("Mask R50-FPN all normed", 392),  # the pyramid's 8 convs: five tensors of a norm instead of a bias
    ],
)
def test_a_reference_detector_saves_so_many_tensors(name, count):
    with torch.device("meta"):
        model = build(engine, full_config(engine, name, *REFERENCES[name], "MODEL.DEVICE", "meta"))
    assert len(model.state_dict()) == count


@pytest.mark.parametrize("stages", [0, 1, 2, 3])
def test_freezing_takes_the_first_stages_and_no_other(stages):
    frozen = ("stem", "res2", "res3")[:stages]
    net = build_backbone(config("C4", "MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", stages))
    for name, parameter in net.named_parameters():
        assert parameter.requires_grad != name.startswith(frozen), name
    norms = {name: type(each) for name, each in net.named_modules() if name.endswith("norm")}
    assert len(norms) == 43
    for name, kind in norms.items():
        assert kind is (FrozenBatchNorm2d if name.startswith(frozen) else torch.nn.BatchNorm2d), name


def test_what_is_frozen_does_not_learn_and_the_rest_does():
    model = seeded("FPN", "MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 2)
    before = copy.deepcopy(model.state_dict())
    losses_of(model, inputs(engine, SIZES, "polygons")).backward()
    torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=1e-3).step()
    frozen = ("backbone.bottom_up.stem", "backbone.bottom_up.res2")
    assert differing(model.state_dict(), before) == [name for name in before if not name.startswith(frozen)]


# ---- what they refuse --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"), [("MODEL.KEYPOINT_ON", True), ("VIS_PERIOD", 10), ("MODEL.LOAD_PROPOSALS", True)]
)
def test_the_unsupported_is_refused_before_a_model_is_built(key, value):
    with pytest.raises(NotImplementedError, match=f"does not support {key}: leave the default"):
        build_model(config("FPN", key, value))


@pytest.mark.parametrize(
    ("key", "table"),
    [
        ("MODEL.META_ARCHITECTURE", "META_ARCH"),
        ("MODEL.BACKBONE.NAME", "BACKBONE"),
        ("MODEL.PROPOSAL_GENERATOR.NAME", "PROPOSAL_GENERATOR"),
        ("MODEL.RPN.HEAD_NAME", "RPN_HEAD"),
        ("MODEL.ANCHOR_GENERATOR.NAME", "ANCHOR_GENERATOR"),
        ("MODEL.ROI_HEADS.NAME", "ROI_HEADS"),
        ("MODEL.ROI_BOX_HEAD.NAME", "ROI_BOX_HEAD"),
        ("MODEL.ROI_MASK_HEAD.NAME", "ROI_MASK_HEAD"),
    ],
)
def test_an_unknown_name_is_refused_with_the_table_it_is_not_in(key, table):
    with pytest.raises(KeyError, match=f"No object named 'Unheard' found in '{table}' registry"):
        build_model(config("FPN", key, "Unheard"))


@pytest.mark.parametrize(
    ("key", "value", "needed"), [("RES2_OUT_CHANNELS", 256, 64), ("RES5_DILATION", 2, 1), ("NUM_GROUPS", 32, 1)]
)
def test_basic_blocks_refuse_what_only_bottlenecks_have(key, value, needed):
    cfg = full_config(engine, "R18-C4", f"MODEL.RESNETS.{key}", value)
    with pytest.raises(AssertionError, match=f"MODEL.RESNETS.{key} = {needed} for R18/R34"):
        build_model(cfg)


def test_a_pixel_that_is_no_number_ends_training_and_is_no_detection():
    model, batch = seeded(), inputs(engine, SIZES, "polygons")
    batch[0]["image"] = batch[0]["image"].double()
    batch[0]["image"][0, 5, 7] = float("nan")
    with pytest.raises(FloatingPointError, match="training has diverged"):
        losses_of(model, batch)
    good = image(1, 64, 96)
    nothing, found = detect(model, torch.full_like(good, float("nan")), good)
    assert {len(each) for each in nothing.values()} == {0}
    assert nothing["pred_masks"].shape == (0, 64, 96)
    assert_same([found], detect(model, good))


# ---- a batch -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("C4", [(64, 80), (64, 80)]),
        ("FPN", [(61, 83), (64, 96)]),  # which the pyramid pads to one size, alone or together
    ],
)
def test_images_are_detected_together_as_alone_and_in_any_order(kind, sizes):
    model = seeded(kind)
    first, second = (image(seed, *size) for seed, size in enumerate(sizes))
    alone = [*detect(model, first), *detect(model, second)]
    assert_same(detect(model, first, second), alone)
    assert_same(detect(model, second, first), alone[::-1])


def test_of_the_other_images_only_the_largest_size_matters():
    model = seeded("C4")  # pads to the largest image, and its convs see the border
    small, large, other = image(0, 48, 64), image(1, 64, 80), image(2, 64, 80)
    together = detect(model, small, large)
    assert_same(together[1:], detect(model, large))
    assert_same(together[:1], detect(model, small, other)[:1])
    assert not torch.equal(together[0]["scores"], detect(model, small)[0]["scores"])


# ---- quantization ------------------------------------------------------------------------------------------------


def test_a_backbone_is_quantized_as_any_resnet():
    net = seeded("FPN").backbone.eval()
    quantization = Quantization(net)
    points = quantization.points
    counts = {side: sum(point.side is side for point in points) for side in Side}
    assert counts == {Side.WEIGHT: 53, Side.INPUT: 32, Side.OUTPUT: 17}
    assert [point.key for point in points][:8] == [
        *("bottom_up.stem.conv1:weight", "bottom_up.stem:output", "bottom_up.res2.0.shortcut:weight"),
        *("bottom_up.res2.0.conv1:weight", "bottom_up.res2.0.conv2:input", "bottom_up.res2.0.conv2:weight"),
        *("bottom_up.res2.0.conv3:input", "bottom_up.res2.0.conv3:weight"),
    ]
    x, twin = image(0, 64, 96)[None] / 50, copy.deepcopy(net)
    for layer, width in ((twin.get_submodule(point.path), point.bits or 4) for point in points if point.is_weight):
        layer.weight.data = fake_quantize_weight(layer.weight.data, width)
    before, coarse, saved = net(x), twin(x), copy.deepcopy(net.state_dict())
    assert differing(coarse, before) == list(before)
    with quantization.at(Bits(4, None)):
        assert not differing(net(x), coarse)
    with quantization.observing():
        assert not differing(net(x), before)
    with quantization.at(Bits(4, 4)):
        assert differing(net(x), coarse) == list(before)
        assert not differing(net.state_dict(), saved)
    assert not differing(net(x), before)
    assert not differing(net.state_dict(), saved)


def test_a_whole_detector_trains_quantized_also_in_the_stage_that_regions_go_through():
    model = seeded("C4", *NORMED)
    quantization = Quantization(model)
    assert "roi_heads.res5.2.conv3:input" in [point.key for point in quantization.points]
    batch = inputs(engine, SIZES, None)
    with quantization.observing(), torch.no_grad():
        losses_of(model, batch)
    with quantization.at(Bits(4, 4)):
        loss = losses_of(model, batch)
    loss.backward()
    assert loss.isfinite()
    for point in quantization.points:
        if point.is_weight:
            assert model.get_submodule(point.path).weight.grad.abs().sum() > 0, point.path


# ---- copies ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_structures_are_copied_whole_and_apart(copied):
    polygons = [[np.array(each, float) for each in instance] for instance in POLYGONS]
    count = len(polygons)
    original = Instances((40, 50), boxes=Boxes(random_boxes(0, count)), scores=random_tensor(1, count))
    original.polygons = PolygonMasks(polygons)
    original.bits = BitMasks.from_polygon_masks(polygons, 40, 50)
    original.soft = ROIMasks(random_tensor(2, count, 7, 7).sigmoid())
    original.names = list(range(count))
    twin = copied(original)
    assert (twin.image_size, len(twin), list(twin.get_fields())) == ((40, 50), count, list(original.get_fields()))
    for name, value in original.get_fields().items():
        assert type(twin.get(name)) is type(value)
    assert torch.equal(twin.boxes.tensor, original.boxes.tensor)
    assert torch.equal(twin.scores, original.scores)
    assert torch.equal(twin.polygons.area(), original.polygons.area())
    assert torch.equal(twin.bits.tensor, original.bits.tensor)
    assert torch.equal(twin.soft.tensor, original.soft.tensor)
    assert twin[1:].names == [*range(1, count)]
    twin.boxes.scale(2, 2)
    twin.remove("scores")
    assert torch.equal(original.boxes.tensor, random_boxes(0, count))
    assert original.has("scores")
    images = copied(ImageList.from_tensors([random_tensor(3, 3, 5, 6), random_tensor(4, 3, 7, 4)]))
    assert images.image_sizes == [(5, 6), (7, 4)]
    assert torch.equal(images[1], random_tensor(4, 3, 7, 4))


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_models_are_copied_whole_and_apart(copied):
    model, x = seeded(), image(0, 64, 96)
    expected = detect(model, x)
    twin = copied(model)
    assert_same(detect(twin, x), expected)
    with torch.no_grad():  # convs that a backbone also keeps in lists
        twin.backbone.fpn_output5.weight.zero_()
        twin.backbone.bottom_up.res3[0].conv1.weight.zero_()
    for level in ("p3", "p5"):
        assert not torch.equal(twin.backbone(x[None])[level], model.backbone(x[None])[level])
    assert not twin.backbone(x[None])["p5"].std((2, 3)).any()
    assert_same(detect(model, x), expected)
