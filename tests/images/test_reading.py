"""A user's images: which are found, and which pixels are read: those of Detectron2's reader, if it reads them well."""

import os
import random
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
from PIL import Image

from ssql_det.core.errors import UserError
from ssql_det.images.reading import check_output_paths, find_images, read_rgb, read_size, to_rgb_array

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
def test_pixels_are_those_that_pillow_decodes(mode, tmp_path):
    image = make_image(mode)
    try:
        image.save(path := tmp_path / f"a.{SUFFIX.get(mode, 'png')}")
    except (OSError, KeyError):  # no file has this mode
        assert to_rgb_array(image).tolist() == np.asarray(image.convert("RGB")).tolist()
        return
    pixels = read_rgb(path)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (5, 7, 3))
    with Image.open(path) as opened:
        assert pixels.tolist() == np.asarray(opened.convert("RGB")).tolist()  # what Detectron2 and torchvision do
        assert to_rgb_array(opened).tolist() == pixels.tolist()


@pytest.mark.parametrize(("mode", "suffix"), [("RGB", "png"), ("RGB", "tif"), ("L", "tif")])  # Pillow itself turns TIFF
@pytest.mark.parametrize("orientation", range(10))
def test_an_image_is_turned_upright_once(orientation, mode, suffix, tmp_path):
    image, exif = make_image(mode), Image.Exif()
    exif[0x0112] = orientation
    image.save(path := tmp_path / f"a.{suffix}", exif=exif)
    pixels = np.asarray(image.convert("RGB"))
    by_turns = {  # of the stored image: quarter turns against the clock, after mirroring it left to right
        2: (0, True), 3: (2, False), 4: (2, True), 5: (1, True), 6: (3, False), 7: (3, True), 8: (1, False),
    }  # fmt: skip
    turns, is_mirrored = by_turns.get(orientation, (0, False))
    expected = np.rot90(pixels[:, ::-1] if is_mirrored else pixels, turns)
    assert read_rgb(path).tolist() == expected.tolist()
    assert read_size(path) == expected.shape[1::-1]
    with open(path, "rb") as file, Image.open(file) as opened:
        assert to_rgb_array(opened).tolist() == expected.tolist()
        assert to_rgb_array(opened).tolist() == expected.tolist()  # now it is decoded


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_gray_keeps_its_upper_bits_and_is_turned(order, tmp_path):
    tones, exif = np.arange(0, 65536, 97, dtype=f"{order}u2").reshape(26, 26), Image.Exif()
    exif[0x0112] = 6
    for name in ("a.tif", "a.png", "a.pgm"):
        is_turned = name != "a.pgm"  # a format without EXIF
        Image.fromarray(tones.astype(tones.dtype if is_turned else "<u2")).save(
            tmp_path / name, **({"exif": exif} if is_turned else {})
        )
        expected = np.rot90(tones // 256, 3) if is_turned else tones // 256
        assert read_rgb(tmp_path / name)[..., 1].tolist() == expected.tolist()


def test_32_bit_gray_is_read_as_16_bit(tmp_path):
    Image.fromarray(np.array([[-5, 256, 70000]], dtype=np.int32)).save(tmp_path / "a.tif")
    assert read_rgb(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 1, 255]


def test_the_suffix_of_a_file_does_not_matter(tmp_path):
    for kind in ("GIF", "WEBP", "BMP", "TIFF", "PPM"):
        Image.new("L", (4, 4), 50).save(tmp_path / "b.jpg", kind)
        assert read_rgb(tmp_path / "b.jpg")[1, 1].tolist() == [50, 50, 50]


def test_metadata_warnings_are_suppressed(tmp_path):
    image = Image.new("P", (4, 4), 2)
    image.putpalette(range(12))
    image.save(tmp_path / "a.png", transparency=b"\x00\x80\x10")
    with pytest.warns(UserWarning, match="Transparency"), Image.open(tmp_path / "a.png") as opened:
        opened.convert("RGB")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        read_rgb(tmp_path / "a.png")
    assert not said


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_make_an_image_unreadable(tmp_path):
    make_image("RGB").save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert read_rgb(tmp_path / "a.jpg").shape == (5, 7, 3)


@pytest.mark.parametrize(
    "kind", ["missing", "pipe", "folder", "truncated", "text", "empty", "bomb", "eps", "tga", "ico", "floats"]
)
def test_what_cannot_be_read_is_named_with_the_reason(kind, tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    make_image("RGB", (200, 200)).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    reason = {
        "missing": "No such file", "pipe": "is a pipe", "folder": "is a directory", "truncated": "truncated",
        "text": "not an image", "empty": "not an image", "bomb": "bomb", "floats": "floating-point",
        "eps": "not an image; supported are BMP", "tga": "not an image", "ico": "not an image",
    }[kind]  # fmt: skip
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "bomb":
        path.write_bytes(content)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    elif kind in ("eps", "tga", "ico"):
        make_image("RGB").save(path, format=kind)
    elif kind == "floats":
        Image.new("F", (4, 4)).save(path, format="TIFF")
    elif kind != "missing":
        path.write_bytes({"truncated": content[: len(content) // 2], "text": b"no image", "empty": b""}[kind])
    with pytest.raises(UserError, match=rf"a\.png.*{reason}"):
        read_rgb(path)
    with pytest.raises(Exception, match=reason) if kind != "truncated" else nullcontext():
        read_size(path)


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
