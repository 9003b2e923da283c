"""A user's images: which files are meant, and their pixels in RGB, as the engine's ``read_image(path, "RGB")``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ssql_det.core.errors import UserError
from ssql_det.core.files import check_regular_file

Pixels = NDArray[np.uint8]  # [height, width, 3], RGB

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")  # of the image files of a folder
_ORIENTATION = 0x0112  # EXIF's tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def find_images(paths: Sequence[str]) -> list[Path]:
    """The image files that ``paths`` name, in that order; a folder stands for its image files, sorted by name.

    >>> Image.new("RGB", (20, 10)).save("b.png")
    >>> Image.new("RGB", (20, 10)).save("a.jpg")
    >>> [str(path) for path in find_images(["."])]
    ['a.jpg', 'b.png']
    """
    images: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            images += sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
        elif path.is_file():
            images.append(path)
        else:
            raise UserError(f"there is no image {path}; name image files, or folders of {', '.join(SUFFIXES)}")
    if not images:
        raise UserError(f"there are no images in {', '.join(paths)}; supported are {', '.join(SUFFIXES)}")
    counts = Counter(path.stem for path in images)
    duplicate = next((path.stem for path in images if counts[path.stem] > 1), None)
    if duplicate is not None:
        raise UserError(
            f"two images are called {duplicate}: both outputs would be {duplicate}.png; give them to separate commands"
        )
    return images


def check_output_paths(output_folder: Path, images: Sequence[Path]) -> None:
    """Raise a UserError if an output picture would overwrite one of the input images."""
    inputs = {image.resolve() for image in images}
    for image in images:
        output = output_folder / f"{image.stem}.png"
        if output.resolve() in inputs:
            raise UserError(f"the output {output} would overwrite an input image; choose another --out")


def read_rgb(path: Path) -> Pixels:
    """Read an image file, turned upright by its EXIF tag.

    >>> Image.new("L", (20, 10), 128).save("gray.png")
    >>> read_rgb(Path("gray.png")).shape
    (10, 20, 3)
    """
    check_regular_file(path)  # to open a pipe would block forever
    try:
        with Image.open(path) as image:
            return _convert_to_rgb(image)
    except UnidentifiedImageError as failure:
        raise UserError(f"{path} cannot be read: it is not an image") from failure
    except MemoryError:
        raise
    except Exception as failure:  # a decoder can raise any exception for a damaged file
        reason = (failure.strerror if isinstance(failure, OSError) else None) or failure
        raise UserError(f"{path} cannot be read: {reason}") from failure


def to_rgb_array(image: Image.Image | NDArray[np.uint8]) -> Pixels:
    """The pixels of a PIL image, turned upright by its EXIF tag, or of an RGB array, which is only checked.

    >>> to_rgb_array(Image.new("CMYK", (20, 10))).shape
    (10, 20, 3)
    >>> to_rgb_array(np.zeros((10, 20)))
    Traceback (most recent call last):
    ssql_det.core.errors.UserError: an image must be uint8 [height, width, 3] in RGB, got float64 [10, 20]
    """
    if isinstance(image, Image.Image):
        try:
            return _convert_to_rgb(image)
        except MemoryError:
            raise
        except Exception as failure:  # PIL decodes a file only here
            raise UserError(f"the image cannot be decoded: {failure}") from failure
    if not isinstance(image, np.ndarray):
        raise UserError(f"an image must be a PIL image or an array, got {type(image).__name__}; a path: PIL.Image.open")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(
            f"an image must be uint8 [height, width, 3] in RGB, got {image.dtype} [{', '.join(map(str, image.shape))}]"
        )
    if not image.size:
        raise UserError(f"the image of {image.shape[1]}x{image.shape[0]} pixels is empty")
    return image


def _convert_to_rgb(image: Image.Image) -> Pixels:
    if image.format == "EPS":  # to decode it Pillow starts Ghostscript, whatever the file is called
        raise ValueError("PostScript is not supported")
    return np.asarray(_turn_upright(image).convert("RGB"))


def _turn_upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # broken EXIF does not make an image unreadable
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
