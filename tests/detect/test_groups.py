"""Groups of a detector's modules: every point is in one, and a group at a bit-width is as in the network at it."""

import json

import pytest
from support.detect.configs import C4, FPN, config

from ssql_det.cli.arguments import read_bits_file
from ssql_det.core.errors import UserError
from ssql_det.detect.detector import build_detector
from ssql_det.detect.groups import join_overrides, list_groups
from ssql_det.detect.points import detector_points
from ssql_det.quant import Bits, QuantPoint, Side
from ssql_det.quant.points import assign_bits

GROUPS = {
    C4: [
        *("backbone.stem*", "backbone.res2.*", "backbone.res3.*", "backbone.res4.*"),
        *("roi_heads.res5.*", "proposal_generator.*", "roi_heads.box_predictor.*"),
    ],
    FPN: [
        *(f"backbone.bottom_up.{stage}" for stage in ("stem*", "res2.*", "res3.*", "res4.*", "res5.*")),
        *("backbone.fpn_*", "proposal_generator.*"),
        *("roi_heads.box_head.*", "roi_heads.box_predictor.*", "roi_heads.mask_head.*"),
    ],
}
CASES = [(C4, "published"), (C4, "integer"), (FPN, "published"), (FPN, "integer"), (FPN, "per-level")]


@pytest.fixture(scope="module")
def points():
    return {
        name: {placement: detector_points(build_detector(config(name)), "all", placement) for placement in placements}
        for name, placements in ((C4, ["published", "integer"]), (FPN, ["published", "integer", "per-level"]))
    }


@pytest.mark.parametrize(("name", "placement"), CASES)
def test_every_point_is_in_one_part_of_the_detector(name, placement, points):
    groups = list_groups(points[name][placement])
    assert [group.pattern for group in groups] == GROUPS[name]
    inside = [point for group in groups for point in group.points]
    assert len(inside) == len(set(inside))
    assert set(inside) == set(points[name][placement])


@pytest.mark.parametrize(("name", "placement"), CASES)
def test_all_groups_at_a_bit_width_are_the_network_at_it(name, placement, points, tmp_path):
    """Whatever the other bits are, in a bits file too."""
    own = points[name][placement]
    groups = list_groups(own)
    for bits in (Bits(4, 4), Bits(2, 8), Bits(5, None)):
        overrides = join_overrides(groups, [group.list_choices([bits])[0] for group in groups])
        file = tmp_path / "bits.json"
        file.write_text(json.dumps({pattern: str(each) for pattern, each in overrides.items()}))
        for others in (bits, Bits(3, 3 if bits.act else None)):
            assert assign_bits(own, others, read_bits_file(file)) == assign_bits(own, bits)


@pytest.mark.parametrize(("name", "placement"), CASES)
def test_a_group_alone_leaves_the_others_float(name, placement, points):
    own = points[name][placement]
    for group in list_groups(own):
        assigned = assign_bits(own, Bits.FP, group.at(Bits(3, 3)))
        assert {point for point, bits in assigned.items() if bits is not None} == set(group.points)
        for point in group.points:
            has_own = point.bits is not None and group.own_bits is None
            assert assigned[point] == group.assign(Bits(3, 3))[point] == (point.bits if has_own else 3)


def test_groups_of_ones_own(points):
    own = points[C4]["published"]
    groups = list_groups(own, ["backbone.*", "roi_heads.*", "proposal_generator.*"])
    assert [group.pattern for group in groups] == ["backbone.*", "roi_heads.*", "proposal_generator.*"]
    assert [group.own_bits for group in groups] == [None] * 3
    overrides = join_overrides(groups, [Bits(4, 4)] * 3)
    assert overrides["backbone.stem"] == Bits(8, 8)
    assert assign_bits(own, Bits(2, 2), overrides) == assign_bits(own, Bits(4, 4))
    free = [point for point in own if point.bits is None]
    assert len(list_groups(own, [point.key for point in free])) == len(free)  # those with bits of their own in none


@pytest.mark.parametrize(
    ("patterns", "complaint"),
    [
        (["*", "bakbone.*"], r"no quantization point matches the group 'bakbone\.\*'"),
        (["*", "backbone.*"], r"backbone\.stem\.conv1:weight is in two groups, '\*' and 'backbone\.\*'"),
        (["roi_heads.*"], r"backbone\.res2\.0\.conv1:weight is in no group; add a pattern that matches it"),
    ],
)
def test_groups_that_do_not_divide_the_points_are_refused(patterns, complaint, points):
    with pytest.raises(UserError, match=complaint):
        list_groups(points[C4]["published"], patterns)


def test_a_network_without_the_parts_of_a_detector_needs_groups():
    with pytest.raises(UserError, match="layer1:weight is in no group; name the groups by --groups"):
        list_groups([QuantPoint("layer1", Side.WEIGHT)])
