"""Masks in NumPy: pasted as Detectron2 pastes them, encoded as pycocotools encodes them."""

from itertools import groupby

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from ssql_det.images import masks as masks_module
from ssql_det.images.masks import decode_rle, encode_rle, paste_masks
from ssql_det.minid2.layers.mask_ops import _sample, paste_masks_in_image

# ---- pasting ------------------------------------------------------------------------------------------------------


def make_boxes(count, height, width, generator):
    """Boxes of all sizes that overlap the image; some exceed it."""
    centres = generator.uniform(0, 1, (count, 2)) * (width, height)
    sides = np.exp(generator.uniform(np.log(0.3), np.log(3 * max(height, width)), (count, 2)))
    return np.concatenate([centres - sides / 2, centres + sides / 2], axis=1).astype(np.float32)


@pytest.mark.parametrize("size", [1, 14, 28])
@pytest.mark.parametrize("threshold", [0.5, 0.2])
def test_pasted_masks_are_those_of_the_engine(size, threshold):
    generator = np.random.default_rng(size)
    height, width = 61, 97
    masks = generator.random((200, size, size), np.float32)
    boxes = make_boxes(200, height, width, generator)
    found = paste_masks(masks, boxes, height, width, threshold)
    expected = paste_masks_in_image(
        torch.from_numpy(masks), torch.from_numpy(boxes), (height, width), threshold
    ).numpy()
    soft = _sample(torch.from_numpy(masks), torch.from_numpy(boxes), range(height), range(width)).numpy()
    assert (found.dtype, found.shape) == (np.bool_, (200, height, width))
    assert 0.01 < expected.mean() < 0.5
    assert not ((found != expected) & (np.abs(soft - threshold) > 1e-5)).any()


def test_a_pixel_has_the_interpolated_probability_at_its_centre():
    """The mask's cells have their centres at x = 11 and 13, the pixels at 10.5, 11.5, 12.5 and 13.5."""
    mask = np.array([[[0.2, 0.8], [0.2, 0.8]]], np.float32)
    box = np.array([[10, 5, 14, 9]], np.float32)
    at_centres = [0.2 * 0.75, 0.2 + 0.6 * 0.25, 0.2 + 0.6 * 0.75, 0.8 * 0.75]  # beyond the last centre towards 0
    for threshold in (0.1, 0.3, 0.62, 0.7):
        pasted = paste_masks(mask, box, 20, 20, threshold)[0]
        assert pasted[6:8, 10:14].tolist() == [[value >= threshold for value in at_centres]] * 2
        assert not np.delete(pasted, slice(4, 10), axis=0).any()


def test_no_mask_an_empty_box_and_a_hostile_one():
    assert paste_masks(np.zeros((0, 28, 28)), np.zeros((0, 4)), 5, 6).shape == (0, 5, 6)
    boxes = np.array([[2, 2, 2, 4], [4, 4, 2, 2], [50, 50, 60, 60], [-9, -9, -1, -1], [-3e37, -3e37, 3e37, 3e37]])
    pasted = paste_masks(np.ones((5, 28, 28)), boxes, 5, 6)
    assert [mask.any() for mask in pasted] == [False, False, False, False, True]
    with pytest.raises(ValueError, match="not finite"):
        paste_masks(np.ones((1, 28, 28)), np.array([[0, 0, np.nan, 3]]), 5, 6)
    with pytest.raises(ValueError, match="must be"):
        paste_masks(np.ones((2, 28, 28)), np.zeros((1, 4)), 5, 6)


# ---- RLE ----------------------------------------------------------------------------------------------------------


def make_masks():
    generator = np.random.default_rng(0)
    yield from (np.zeros((5, 7), bool), np.ones((5, 7), bool), np.ones((1, 1), bool), np.zeros((0, 3), bool))
    for density in (0.01, 0.5, 0.99):
        for shape in ((1, 40), (40, 1), (23, 31)):
            yield generator.random(shape) < density
    for start, end in ((0, 15), (1, 16), (3, 40_000), (90_000, 2_000_000)):  # counts of one to five digits
        wide = np.zeros((2000, 1500), bool)
        wide.T.reshape(-1)[start:end] = True
        yield wide


@pytest.mark.parametrize("mask", list(make_masks()), ids=lambda mask: f"{mask.shape}")
def test_an_rle_is_that_of_pycocotools(mask):
    expected = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    rle = encode_rle(mask)
    assert rle == {"size": list(mask.shape), "counts": expected["counts"].decode()}
    assert np.array_equal(decode_rle(rle), mask)
    assert np.array_equal(decode_rle(expected), mask)  # bytes
    if mask.size < 5000:
        runs = [(value, len(list(group))) for value, group in groupby(mask.T.ravel().tolist())]
        counts = [0] * bool(not runs or runs[0][0]) + [count for _, count in runs]
        assert np.array_equal(decode_rle({"size": list(mask.shape), "counts": counts}), mask)


BAD = {
    "no size": {"counts": "13"},
    "size of three": {"size": [2, 2, 2], "counts": "13"},
    "negative size": {"size": [-2, -2], "counts": [1, 3]},
    "size of text": {"size": ["2", 2], "counts": "13"},
    "boolean size": {"size": [True, 4], "counts": [1, 3]},
    "huge size": {"size": [10**9, 10**9], "counts": [10**18]},
    "no counts": {"size": [2, 2]},
    "counts of another kind": {"size": [2, 2], "counts": {"a": 1}},
    "too few pixels": {"size": [2, 2], "counts": [1, 2]},
    "too many pixels": {"size": [2, 2], "counts": [1, 4]},
    "negative count": {"size": [2, 2], "counts": [5, -1]},
    "count beyond 64 bits": {"size": [2, 2], "counts": [2**64, 4 - 2**64]},
    "fraction": {"size": [2, 2], "counts": [1.0, 3]},
    "boolean count": {"size": [2, 2], "counts": [True, 3]},
    "text, too few pixels": {"size": [2, 2], "counts": "12"},
    "text, negative": {"size": [2, 2], "counts": "5O"},
    "text within a number": {"size": [2, 2], "counts": "13Q"},
    "text, too long a number": {"size": [2, 2], "counts": "P" * 40 + "0"},
    "text, sums that overflow": {"size": [2, 2], "counts": "oooooo1" * 1000},
    "text of other characters": {"size": [2, 2], "counts": "1 3"},
    "text that is not ASCII": {"size": [2, 2], "counts": "1é"},
    "empty text": {"size": [2, 2], "counts": ""},
}


@pytest.mark.parametrize("rle", BAD.values(), ids=BAD)
def test_an_invalid_rle_is_a_value_error(rle):
    with pytest.raises(ValueError):  # noqa: PT011
        decode_rle(rle)


def test_random_texts_decode_as_with_pycocotools_or_not_at_all(monkeypatch):
    monkeypatch.setattr(masks_module, "MAX_PIXELS", 10_000)
    generator = np.random.default_rng(0)
    decoded = 0
    for _ in range(3000):
        text = bytes(generator.integers(48, 56 if generator.random() < 0.9 else 112, generator.integers(1, 5)).tolist())
        rle = {"size": [2, int(generator.integers(1, 9))], "counts": text}
        try:
            found = decode_rle(rle)
        except ValueError:
            continue
        decoded += 1
        assert np.array_equal(found, coco_mask.decode(rle))
    assert decoded > 50


def test_only_a_boolean_mask_is_encoded():
    with pytest.raises(ValueError, match="boolean"):
        encode_rle(np.zeros((2, 2), np.uint8))
