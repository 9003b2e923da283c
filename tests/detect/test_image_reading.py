"""All that reads an image reads the same pixels: the engine's mapper, `predict`, `run`, and pretraining."""

import os

import numpy as np
import pytest
from PIL import Image
from support.detect.configs import C4, config

from ssql_det import d2
from ssql_det.detect.predict import load_image
from ssql_det.images.reading import read_rgb
from ssql_det.pretrain.data import open_images

SIDEWAYS = Image.Exif()
SIDEWAYS[0x0112] = 6
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
FILES = {  # name: (image, options of saving it, height and width as it is seen)
    "plain.jpg": (PIXELS, {}, (40, 60)),
    "turned.jpg": (PIXELS, {"exif": SIDEWAYS}, (60, 40)),
    "turned.tif": (PIXELS, {"exif": SIDEWAYS}, (60, 40)),
    "16-bit.png": (PIXELS[..., 0].astype(np.uint16) * 256, {}, (40, 60)),
    os.fsdecode(b"no text \xff.png"): (PIXELS, {}, (40, 60)),
}


@pytest.mark.parametrize("name", FILES, ids=ascii)
def test_all_readers_agree(name, tmp_path):
    image, options, size = FILES[name]
    path = tmp_path / name
    Image.fromarray(image).save(path, **options)
    cfg = config(C4, INPUT__MIN_SIZE_TEST=40, INPUT__MAX_SIZE_TEST=60)
    pixels = read_rgb(path)
    assert pixels.shape == (*size, 3)
    mapped = d2.DatasetMapper(cfg, is_train=False)({"file_name": str(path)})
    order = slice(None, None, -1 if cfg.INPUT.FORMAT == "BGR" else 1)
    for tensor in (mapped["image"], load_image(cfg, path)[0]["image"]):
        assert np.array_equal(tensor.permute(1, 2, 0)[..., [0, 1, 2][order]], pixels)
    assert np.array_equal(np.asarray(open_images(str(tmp_path))[0]), pixels)


@pytest.mark.parametrize("kind", ["TGA", "ICO", "EPS", "floats"])
def test_what_is_not_supported_is_refused_by_the_mapper_too(kind, tmp_path):
    image = Image.new("F" if kind == "floats" else "RGB", (60, 40))
    image.save(tmp_path / "a.tif", format="TIFF" if kind == "floats" else kind)
    with pytest.raises(ValueError, match=r"a\.tif cannot be decoded: (it is not an image|its pixels are floating)"):
        d2.DatasetMapper(config(C4), is_train=True)({"file_name": str(tmp_path / "a.tif"), "annotations": []})
