"""Images of a user: which files are meant, and their pixels. All that reads an image file uses ``read_image``."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ssql_det.core.errors import UserError
from ssql_det.core.files import check_regular_file

Pixels = NDArray[np.uint8]  # [height, width, 3], RGB

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")  # of the image files of a folder
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # of a file's content, whatever its suffix
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
_SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height


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


def read_image(path: str | Path) -> Image.Image:
    """Decode an image file in RGB, turned upright by its EXIF tag; of 16-bit gray the upper 8 bits are used.

    A decoder may raise any exception for a damaged file. Other formats than ``_FORMATS`` are not tried.

    >>> Image.new("I;16", (20, 10), 0x8000).save("gray.png")
    >>> read_image("gray.png").getpixel((0, 0))
    (128, 128, 128)
    """
    with _opening(path) as image:
        return _convert_to_rgb(image)


def read_size(path: str | Path) -> tuple[int, int]:
    """The width and the height of an image file that is turned upright, from its header alone."""
    with _opening(path) as image:
        _check_kind(image)
        is_turned = image.format != "TIFF" and _read_orientation(image) in _SIDEWAYS  # Pillow turns TIFF itself
        return image.size[::-1] if is_turned else image.size


def read_rgb(path: Path) -> Pixels:
    """The pixels of an image file; a ``UserError`` if it cannot be read.

    >>> Image.new("L", (20, 10), 128).save("gray.png")
    >>> read_rgb(Path("gray.png")).shape
    (10, 20, 3)
    """
    try:
        return np.asarray(read_image(path))
    except (MemoryError, UserError):
        raise
    except Exception as failure:
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
            return np.asarray(_convert_to_rgb(image))
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


@contextmanager
def _opening(path: str | Path) -> Iterator[Image.Image]:
    check_regular_file(path)  # to open a pipe would block forever
    # Not opened by its name: then Pillow maps an uncompressed TIFF into memory, and scrambles one that it turns.
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about damaged metadata, often in large data sets
        try:
            image = Image.open(file, formats=_FORMATS)
        except UnidentifiedImageError:
            raise UnidentifiedImageError(f"it is not an image; supported are {', '.join(_FORMATS)}") from None
        yield image


def _check_kind(image: Image.Image) -> None:
    if image.format == "EPS":  # to decode it Pillow starts Ghostscript, whatever the file is called
        raise ValueError("PostScript is not supported")
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range; save it with 8 bits")
    if 0 in image.size:
        raise ValueError("it has no pixels")


def _convert_to_rgb(image: Image.Image) -> Image.Image:
    _check_kind(image)
    image.load()  # turns a TIFF, and removes its tag
    turn = _UPRIGHT.get(_read_orientation(image))
    if image.mode.startswith("I"):  # Pillow would turn all values above 255 white
        image = Image.fromarray((np.asarray(image).clip(0, 0xFFFF) >> 8).astype(np.uint8))
    return (image if turn is None else image.transpose(turn)).convert("RGB")


def _read_orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken EXIF does not make an image unreadable
        return 1
