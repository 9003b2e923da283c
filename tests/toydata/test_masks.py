"""Polygons and RLE decode to the mask they were made from, by COCO's own functions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from ssql_det.toydata.scenes import mask_to_polygons, mask_to_rle

MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9))


def rasterize(mask):
    polygons = mask_to_polygons(mask)
    return (
        coco.decode(coco.merge(coco.frPyObjects(polygons, *mask.shape))).astype(bool)
        if polygons
        else np.zeros_like(mask)
    )


@settings(max_examples=400, deadline=None)
@given(MASKS)
def test_polygons_rasterize_to_the_mask(mask):
    np.testing.assert_array_equal(rasterize(mask), mask)


@settings(max_examples=100, deadline=None)
@given(MASKS)
def test_run_lengths_decode_to_the_mask(mask):
    decoded = coco.decode(coco.frPyObjects(mask_to_rle(mask), *mask.shape))
    np.testing.assert_array_equal(decoded.astype(bool), mask)


@pytest.mark.parametrize("inner", [(3, 4), (2, 7)])
def test_a_ring_keeps_its_hole(inner):
    ring = np.ones((9, 9), bool)
    ring[slice(*inner), slice(*inner)] = False
    np.testing.assert_array_equal(rasterize(ring), ring)


def test_a_polygon_has_only_its_corners():
    assert mask_to_polygons(np.ones((3, 5), bool)) == [[0.0, 0.0, 5.0, 0.0, 5.0, 3.0, 0.0, 3.0]]
