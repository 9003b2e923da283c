"""Every image decoded, on all cores, and its size compared with the annotated one."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

from PIL import EpsImagePlugin, Image

from ssql_det.checkdata.findings import Picture, SplitCheck
from ssql_det.core.console import track

_ORIENTATION = 0x0112  # the EXIF tag
EpsImagePlugin.gs_binary = False  # PostScript may come under any name, and Pillow would start Ghostscript for it


def check_images(split: SplitCheck, quick: bool = False, workers: int | None = None) -> None:
    """Add a finding for each image that is missing, cannot be decoded, or is of another size.

    ``quick`` reads the headers only, and so misses files that are cut short.
    """
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:  # decoders work without the interpreter's lock
        faults = pool.map(_fault, split.pictures, repeat(quick))
        for picture, fault in zip(track(split.pictures, f"reading images of {split.name}"), faults, strict=True):
            if fault:
                split.error(picture.path, fault)


def _fault(picture: Picture, quick: bool) -> str | None:
    if not picture.path.is_file():  # a pipe would be waited for without end
        return "the image is missing, or is no file"
    try:
        with Image.open(picture.path) as image:
            turned = image.getexif().get(_ORIENTATION, 1) >= 5  # readers turn such an image upright
            size = image.size[::-1] if turned else image.size
            if not quick:
                image.load()
    except Exception as failure:  # a damaged file can make a decoder fail in any way
        return f"the image cannot be read ({failure})"
    if picture.size is not None and size != picture.size:
        return f"the image is {size[0]}x{size[1]}, its annotation says {picture.size[0]}x{picture.size[1]}"
    return None
