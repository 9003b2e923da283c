"""What lies between a detector's networks, against the engine's own: boxes, proposals, detections, pooling, NMS."""

from types import SimpleNamespace

import pytest
import torch
import torchvision
from support.deploy.detectors import make_detector
from torch import nn
from torchvision.ops import nms

from ssql_det import d2
from ssql_det.deploy.exact_selection import TiesByIndex, batched_nms, exact_selection
from ssql_det.deploy.operators import nms_rows
from ssql_det.deploy.selection import decode_boxes, pool_regions, select_detections, select_proposals

SIZE = (150, 190)
LIMITS = torch.tensor([190.0, 150.0, 190.0, 150.0])
NAN, INF = float("nan"), float("inf")


def draw(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def draw_boxes(count, seed=0, side=150.0):
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed)) * side
    return torch.cat([corners.amin(dim=1), corners.amax(dim=1) + 1], dim=1)


# ---- boxes


@pytest.mark.parametrize("per_region", [1, 5])
def test_boxes_are_decoded_as_by_the_engine(per_region):
    transform = make_detector("C4")[1].roi_heads.box_predictor.box2box_transform
    boxes, deltas = draw_boxes(20), draw(20, per_region * 4, scale=5.0)
    deltas[3, 2], deltas[4, 0], deltas[5, 1], deltas[6, 3] = 1e4, INF, NAN, -INF
    expected = transform.apply_deltas(deltas, boxes).reshape(20, per_region, 4)
    found = decode_boxes(transform, deltas.reshape(20, per_region, 4), boxes[:, None])
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert 0 < found.isfinite().all(dim=2).all(dim=1).sum() < 20


# ---- NMS


def test_nms_of_rows_is_nms_in_each_row():
    boxes, scores = torch.stack([draw_boxes(60, seed) for seed in range(3)]), draw(3, 60)
    scores[0, :5], scores[2] = -INF, -INF
    expected = []
    for row in range(3):
        kept = [index for index in nms(boxes[row], scores[row], 0.4).tolist() if scores[row, index] > -0.5]
        assert scores[row, kept].tolist() == sorted(scores[row, kept].tolist(), reverse=True)
        expected += [[row, index] for index in kept[:7]]
    found = nms_rows(boxes, scores, 0.4, -0.5, 7)
    assert found.tolist() == expected
    assert [(found[:, 0] == row).sum().item() for row in range(3)] == [7, 7, 0]
    assert nms_rows(boxes[:, :0], scores[:, :0], 0.4, -0.5, 7).shape == (0, 2)


def test_nms_of_classes_is_exact_where_torchvisions_is_rounded():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0002], [1200.0, 700.0, 1300.0, 800.0]])
    scores, classes = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([79, 79, 0])
    assert 10 * 5.0002 / 100 > 0.5  # IoU of the first two
    assert batched_nms(boxes, scores, classes, 0.5).tolist() == [0, 2]
    assert torchvision.ops.batched_nms(boxes, scores, classes, 0.5).tolist() == [0, 1, 2]
    apart = torch.arange(4.0)[:, None] * 9 + boxes[0]
    assert batched_nms(apart, torch.ones(4), torch.tensor([1, 0, 1, 0]), 0.5).tolist() == [0, 1, 2, 3]
    for seed in range(20):
        boxes, scores, classes = draw_boxes(300, seed), draw(300, seed=seed), draw(300, seed=seed).mul(9).long() % 4
        kept = batched_nms(boxes, scores, classes, 0.5)
        by_class = [nms(boxes[classes == each], scores[classes == each], 0.5) for each in range(4)]
        together = torch.cat([(classes == each).nonzero()[:, 0][rows] for each, rows in enumerate(by_class)])
        assert kept.sort().values.tolist() == together.sort().values.tolist()
        assert scores[kept].tolist() == sorted(scores[kept].tolist(), reverse=True)
        assert len(kept) < 300
    assert batched_nms(boxes[:0], scores[:0], classes[:0], 0.5).tolist() == []


def test_the_engine_selects_exactly_inside_the_context_alone():
    original = torchvision.ops.boxes.batched_nms
    with exact_selection():
        assert torchvision.ops.boxes.batched_nms is batched_nms
        assert torch.tensor([1.0, 2.0] * 50).sort(descending=True).indices[:50].tolist() == list(range(1, 100, 2))
    assert torchvision.ops.boxes.batched_nms is original


def test_ties_are_broken_by_index():
    x = torch.tensor([[1.0, 2.0, 1.0, 2.0, NAN]])
    with TiesByIndex():
        largest, smallest = x.topk(4), torch.topk(x, 2, largest=False)
        assert largest.indices.tolist() == [[4, 1, 3, 0]]
        assert smallest.indices.tolist() == [[0, 2]]
        assert x.T.sort(dim=0, descending=True)[1].T.tolist() == [[4, 1, 3, 0, 2]]
        assert largest.values[0, 1:].tolist() == [2, 2, 1]


# ---- proposals


class Given(nn.Module):
    """An RPN head that says what it was given."""

    def __init__(self, logits, deltas):
        super().__init__()
        self.outputs = logits, deltas

    def forward(self, maps):
        return self.outputs


def compare_proposals(kind, change=lambda logits, deltas: None, **keys):
    """The proposals, which are the engine's, and their number before anything is selected."""
    _, model = make_detector(kind, **keys)
    rpn = model.proposal_generator
    strides, anchors = rpn.anchor_generator.strides, rpn.anchor_generator.num_anchors
    sides = [(-(-SIZE[0] // stride), -(-SIZE[1] // stride)) for stride in strides]
    features = {name: torch.zeros(1, 1, *each) for name, each in zip(rpn.in_features, sides, strict=True)}
    maps = list(zip(anchors, sides, strict=True))
    logits = [draw(1, count, *each, seed=level) for level, (count, each) in enumerate(maps)]
    deltas = [draw(1, 4 * count, *each, seed=9 + level, scale=0.5) for level, (count, each) in enumerate(maps)]
    change(logits, deltas)
    rpn.rpn_head = Given(logits, deltas)
    images = d2.ImageList(torch.zeros(1, 3, *SIZE), [SIZE])
    with torch.no_grad(), exact_selection():
        (expected,), _ = rpn(images, features, None)
        found = select_proposals(rpn, features, LIMITS)
    torch.testing.assert_close(found, expected.proposal_boxes.tensor, rtol=0, atol=0)
    return found, sum(each.numel() for each in logits)


@pytest.mark.parametrize("kind", ["C4", "FPN", "anchors off the centre"])
def test_proposals_are_the_engines(kind):
    found, count = compare_proposals(kind)
    assert 0 < len(found) <= 12 < count


def test_fewer_anchors_than_proposals_before_nms():
    found, count = compare_proposals("more boxes than anchors")
    assert 1000 >= len(found) > 12
    found, count = compare_proposals("C4", **{"MODEL.RPN.PRE_NMS_TOPK_TEST": 5000})
    assert count < 5000
    assert len(found)


def test_equal_scores_are_taken_in_the_order_of_levels_and_anchors():
    def flatten(logits, deltas):
        for each in logits:
            each[:] = each.round()

    found, _ = compare_proposals("FPN", flatten)
    assert len(found) == 12


def test_proposals_that_are_not_finite_are_dropped():
    def spoil(logits, deltas):
        logits[0][0, 0, 3, 3:9] = NAN
        logits[1][0, :, 2] = INF
        logits[2][0, :, 1] = -INF
        deltas[0][0, 1, 5] = NAN
        deltas[1][0, 6] = INF
        deltas[3][0, 2] = -INF  # a width of 0

    everything, _ = compare_proposals("FPN", **{"MODEL.RPN.POST_NMS_TOPK_TEST": 1000})
    found, _ = compare_proposals("FPN", spoil, **{"MODEL.RPN.POST_NMS_TOPK_TEST": 1000})
    assert 0 < len(found) < len(everything)
    assert bool(found.isfinite().all())
    nothing, _ = compare_proposals("FPN", lambda logits, deltas: [each.fill_(NAN) for each in logits])
    assert nothing.shape == (0, 4)


@pytest.mark.parametrize(("least", "count"), [(20, 12), (180, 0)])
def test_small_proposals_are_dropped(least, count):
    found, _ = compare_proposals("FPN", **{"MODEL.PROPOSAL_GENERATOR.MIN_SIZE": least})
    assert len(found) == count
    assert bool((found[:, 2:] - found[:, :2] > least).all())


# ---- detections


def compare_detections(kind="FPN", regions=30, change=lambda logits, deltas: None, **keys):
    _, model = make_detector(kind, **keys)
    predictor = model.roi_heads.box_predictor
    boxes = draw_boxes(regions)
    logits = draw(regions, predictor.num_classes + 1, scale=2.0)
    deltas = draw(regions, predictor.bbox_pred.out_features, seed=1)
    change(logits, deltas)
    proposals = [d2.Instances(SIZE, proposal_boxes=d2.Boxes(boxes))]
    with exact_selection():
        (expected,), _ = predictor.inference((logits, deltas), proposals)
        found = select_detections(predictor, boxes, logits, deltas, LIMITS)
    expected = (expected.pred_boxes.tensor, expected.scores, expected.pred_classes)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    return found


@pytest.mark.parametrize("kind", ["C4", "FPN", "class-agnostic", "one class"])
def test_detections_are_the_engines(kind):
    boxes, scores, classes = compare_detections(kind)
    assert 5 < len(boxes) <= 20
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)
    assert (len(set(classes.tolist())) == 1) == (kind == "one class")


def test_without_a_limit_all_detections_remain():
    boxes, scores, _ = compare_detections(**{"TEST.DETECTIONS_PER_IMAGE": -1})
    assert len(boxes) > 200
    _, some, _ = compare_detections(**{"TEST.DETECTIONS_PER_IMAGE": -1, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.3})
    assert 0 < len(some) < len(scores)
    assert some.min() > 0.3


@pytest.mark.parametrize("kind", ["FPN", "class-agnostic"])
def test_a_region_with_a_value_that_is_not_finite_is_dropped(kind):
    def spoil(logits, deltas):
        logits[0, 3], logits[1, -1], deltas[2, 1], deltas[3, 0] = NAN, INF, NAN, -INF
        logits[4, 2] = -INF  # a probability of 0

    keys = {"TEST.DETECTIONS_PER_IMAGE": -1}
    boxes, _, _ = compare_detections(kind, change=spoil, **keys)
    assert 0 < len(boxes) < len(compare_detections(kind, **keys)[0])
    nothing = compare_detections(kind, change=lambda logits, deltas: logits.fill_(NAN))
    assert [tuple(each.shape) for each in nothing] == [(0, 4), (0,), (0,)]


@pytest.mark.parametrize("regions", [0, 1])
@pytest.mark.parametrize("kind", ["FPN", "class-agnostic"])
def test_few_regions(kind, regions):
    boxes, _, _ = compare_detections(kind, regions)
    assert len(boxes) == 10 * regions  # each of the classes


def test_a_predictor_may_have_a_sigmoid_of_each_class():
    transform = make_detector("FPN")[1].roi_heads.box_predictor.box2box_transform
    limits = {"test_topk_per_image": 5, "test_nms_thresh": 0.5, "test_score_thresh": 0.0}
    predictor = SimpleNamespace(num_classes=3, box2box_transform=transform, use_sigmoid_ce=True, **limits)
    logits = draw(2, 4)
    logits[1, 0] = NAN  # the region is dropped
    _, scores, classes = select_detections(predictor, draw_boxes(2), logits, torch.zeros(2, 12), LIMITS)
    best = logits[0, :3].sort(descending=True)
    assert classes.tolist() == best.indices.tolist()
    torch.testing.assert_close(scores, 1 / (1 + torch.exp(-best.values)))


# ---- pooling


def square(side):
    return [10.0, 10.0, 10.0 + side, 10.0 + side]


def test_each_region_is_pooled_once_at_the_engines_level():
    pooler = make_detector("FPN")[1].roi_heads.box_pooler
    maps = [draw(1, 3, 256 >> level, 256 >> level, seed=level) for level in range(4)]
    exact = torch.tensor([square(side) for side in (900, 448, 447.9, 224, 223.9, 112, 111.9, 3)])
    oblong = torch.tensor([[0.0, 0.0, 896.0, 224.0], [0.0, 5.0, 0.0, 9.0]])  # of a square's area; empty
    boxes = torch.cat([exact, oblong, draw_boxes(40, side=1000.0)])
    order, pooled = pool_regions(pooler, maps, boxes)
    assert sorted(order.tolist()) == list(range(len(boxes)))
    torch.testing.assert_close(pooled, pooler(maps, [d2.Boxes(boxes[order])]), rtol=0, atol=0)
    levels = [3, 3, 2, 2, 1, 1, 0, 0]  # of the squares
    assert [levels[index] for index in order.tolist() if index < 8] == sorted(levels)


@pytest.mark.parametrize("kind", ["C4", "FPN"])
def test_no_region(kind):
    heads = make_detector(kind)[1].roi_heads
    pooler = heads.pooler if kind == "C4" else heads.box_pooler
    maps = [draw(1, 3, 16, 16)] * len(pooler.level_poolers)
    order, pooled = pool_regions(pooler, maps, torch.zeros(0, 4))
    assert len(order) == 0
    assert pooled.shape == (0, 3, *pooler.output_size)


def test_regions_of_one_level_stay_in_their_order():
    pooler = make_detector("C4")[1].roi_heads.pooler
    maps, boxes = [draw(1, 3, 20, 20)], draw_boxes(30)
    order, pooled = pool_regions(pooler, maps, boxes)
    assert order.tolist() == list(range(30))
    torch.testing.assert_close(pooled, pooler(maps, [d2.Boxes(boxes)]), rtol=0, atol=0)
