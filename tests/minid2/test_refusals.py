"""What minid2 does not take, it refuses as Detectron2 does."""

import pytest
import torch

from ssql_det.minid2.layers import ROIAlign, get_norm
from ssql_det.minid2.structures import BitMasks, Boxes, BoxMode, ImageList, Instances, PolygonMasks, ROIMasks


def test_boxes():
    with pytest.raises(AssertionError):
        Boxes(torch.zeros(3, 5))
    with pytest.raises(AssertionError, match="infinite or NaN"):
        Boxes([[0, 0, float("nan"), 1]]).clip((5, 5))
    with pytest.raises(AssertionError, match="does not choose boxes"):
        Boxes(torch.zeros(3, 4))[0, 0]
    with pytest.raises(NotImplementedError):
        BoxMode.convert([0, 0, 1, 1], BoxMode.XYXY_ABS, BoxMode.XYXY_REL)


def test_instances():
    one = Instances((4, 5), scores=torch.zeros(3))
    with pytest.raises(AssertionError, match="length 2 in Instances of length 3"):
        one.classes = torch.zeros(2)
    with pytest.raises(AttributeError, match="no field 'boxes'"):
        _ = one.boxes
    with pytest.raises(IndexError):
        one[3]
    with pytest.raises(NotImplementedError):
        len(Instances((4, 5)))
    with pytest.raises(NotImplementedError):
        iter(one)
    with pytest.raises(AssertionError):
        Instances.cat([one, Instances((4, 6), scores=torch.zeros(3))])


def test_masks():
    with pytest.raises(ValueError, match="5 numbers are not a polygon"):
        PolygonMasks([[[1, 2, 3, 4, 5]]])
    with pytest.raises(ValueError, match="list of lists"):
        PolygonMasks(torch.zeros(3))
    with pytest.raises(ValueError, match=r"dtype=torch\.float32"):
        PolygonMasks([])[torch.zeros(1)]
    with pytest.raises(AssertionError):
        BitMasks(torch.zeros(4, 5))
    with pytest.raises(ValueError, match=r"must be \[N, M, M\]"):
        ROIMasks(torch.zeros(4, 5))


def test_layers():
    with pytest.raises(KeyError):
        get_norm("BatchNorm", 8)
    with pytest.raises(AssertionError):
        ROIAlign((7, 7), 1.0, 0)(torch.zeros(1, 1, 8, 8), torch.zeros(1, 4))
    with pytest.raises(AssertionError):
        ImageList.from_tensors([])
    assert get_norm("", 8) is None
    assert get_norm(lambda channels: torch.nn.Identity(), 8).__class__ is torch.nn.Identity
