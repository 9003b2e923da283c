"""A user's images: which are found, and that their pixels are those that the engine reads."""

import os
import random

import numpy as np
import pytest
from PIL import Image

from ssql_det.core.errors import UserError
from ssql_det.images.reading import check_output_paths, find_images, read_rgb, to_rgb_array
from ssql_det.minid2.data.detection_utils import read_image

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB")
SUFFIX = {"CMYK": "tif", "YCbCr": "tif", "LAB": "tif", "PA": "tif"}


def make_image(mode, size=(7, 5)):
    if mode in ("HSV", "PA"):
        return make_image("RGB" if mode == "HSV" else "P", size).convert(mode)
    if mode == "P":
        image = Image.fromarray(np.random.default_rng(0).integers(0, 200, size[::-1], np.uint8), "P")
        image.putpalette(np.random.default_rng(1).integers(0, 256, 768).tolist())
        return image
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], bands), np.uint8)
    return (
        Image.fromarray(pixels[..., 0]).convert("1") if mode == "1" else Image.frombytes(mode, size, pixels.tobytes())
    )


@pytest.mark.parametrize("mode", MODES)
def test_pixels_are_those_of_the_engine(mode, tmp_path):
    image = make_image(mode)
    try:
        image.save(path := tmp_path / f"a.{SUFFIX.get(mode, 'png')}")
    except (OSError, KeyError):  # no file has this mode
        assert to_rgb_array(image).tolist() == np.asarray(image.convert("RGB")).tolist()
        return
    pixels = read_rgb(path)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (5, 7, 3))
    assert pixels.tolist() == read_image(str(path), "RGB").tolist()
    with Image.open(path) as opened:
        assert to_rgb_array(opened).tolist() == pixels.tolist()


@pytest.mark.parametrize("orientation", range(10))
def test_an_image_is_turned_upright(orientation, tmp_path):
    image, exif = make_image("RGB"), Image.Exif()
    exif[0x0112] = orientation
    image.save(path := tmp_path / "a.png", exif=exif)
    pixels = np.asarray(image)
    by_turns = {  # of the stored image: quarter turns against the clock, after mirroring it left to right
        2: (0, True), 3: (2, False), 4: (2, True), 5: (1, True), 6: (3, False), 7: (3, True), 8: (1, False),
    }  # fmt: skip
    turns, is_mirrored = by_turns.get(orientation, (0, False))
    expected = np.rot90(pixels[:, ::-1] if is_mirrored else pixels, turns)
    assert read_rgb(path).tolist() == expected.tolist() == read_image(str(path), "RGB").tolist()
    with Image.open(path) as opened:
        assert to_rgb_array(opened).tolist() == expected.tolist()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_make_an_image_unreadable(tmp_path):
    make_image("RGB").save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert read_rgb(tmp_path / "a.jpg").shape == (5, 7, 3)


@pytest.mark.parametrize("kind", ["missing", "pipe", "folder", "truncated", "text", "empty", "bomb", "postscript"])
def test_what_cannot_be_read_is_named_with_the_reason(kind, tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    make_image("RGB", (200, 200)).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    reason = {
        "missing": "No such file", "pipe": "is a pipe", "folder": "is a directory", "truncated": "truncated",
        "text": "not an image", "empty": "not an image", "bomb": "bomb", "postscript": "PostScript",
    }[kind]  # fmt: skip
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "bomb":
        path.write_bytes(content)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    elif kind == "postscript":
        make_image("RGB").save(path, format="EPS")
    elif kind != "missing":
        path.write_bytes({"truncated": content[: len(content) // 2], "text": b"no image", "empty": b""}[kind])
    with pytest.raises(UserError, match=rf"a\.png.*{reason}"):
        read_rgb(path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # about damaged metadata
def test_no_damaged_file_raises_anything_else(tmp_path):
    draw = random.Random(0)
    for suffix in ("png", "jpg", "tif", "bmp", "webp", "gif"):
        make_image("RGB", (40, 30)).save(tmp_path / f"a.{suffix}")
        content = (tmp_path / f"a.{suffix}").read_bytes()
        for _ in range(30):
            damaged = bytearray(content[: draw.randrange(1, len(content) + 1)])
            for _ in range(draw.randrange(4)):
                damaged[draw.randrange(len(damaged))] = draw.randrange(256)
            (tmp_path / f"a.{suffix}").write_bytes(damaged)
            try:
                assert read_rgb(tmp_path / f"a.{suffix}").shape[2] == 3
            except UserError as refused:
                assert f"a.{suffix}" in str(refused)  # noqa: PT017


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 4), (0, 4, 3), (3, 4, 3, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_an_array_that_is_no_image_is_refused(shape, dtype):
    with pytest.raises(UserError, match="image"):
        to_rgb_array(np.zeros(shape, dtype))


def test_other_objects_and_broken_pil_images_are_refused(tmp_path):
    pixels = np.asarray(make_image("RGB"))
    assert to_rgb_array(pixels) is pixels
    with pytest.raises(UserError, match=r"got str; a path: PIL\.Image\.open"):
        to_rgb_array("a.png")
    make_image("RGB", (200, 200)).save(path := tmp_path / "a.png")
    path.write_bytes(path.read_bytes()[:1000])
    with Image.open(path) as image, pytest.raises(UserError, match="cannot be decoded"):
        to_rgb_array(image)


def test_many_images_are_found_in_linear_time(tmp_path, monkeypatch):
    compared = []
    original = type(tmp_path).stem.fget
    monkeypatch.setattr(type(tmp_path), "stem", property(lambda path: compared.append(path) or original(path)))
    for index in range(200):
        (tmp_path / f"{index}.png").touch()
    assert len(find_images([str(tmp_path)])) == 200
    assert len(compared) < 5 * 200


def test_an_output_never_replaces_an_input(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "b.jpg").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    check_output_paths(tmp_path / "out", [tmp_path / "a.png"])
    check_output_paths(tmp_path, [tmp_path / "b.jpg"])
    with pytest.raises(UserError, match=r"link/a\.png would overwrite an input"):
        check_output_paths(tmp_path / "link", [tmp_path / "b.jpg", tmp_path / "a.png"])
