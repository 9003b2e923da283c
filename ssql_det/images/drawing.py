"""Boxes, masks and labels drawn on an image; a class has the same colour in every picture."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ssql_det.core.errors import printable
from ssql_det.images.changes import Changes, find_changes
from ssql_det.images.masks import Masks, decode_rle
from ssql_det.images.reading import Pixels
from ssql_det.images.results import Detection

Colour = tuple[int, int, int]
Box = tuple[int, int, int, int]  # the first and the last pixel

MAX_SIDE = 640  # pixels: a larger image is shrunk to this
ENLARGED_SIDE = 320  # pixels: a smaller image is enlarged by a whole factor, its longer side to this at most
_CAPTION_HEIGHT = 26  # pixels of the white bar above an image
_CAPTION_SIZE = 15
_FRAME = ((_CAPTION_HEIGHT, 4), (2, 2), (0, 0))  # pixels above and below, left and right
_MAX_TEXT_LENGTH = 80  # characters
_TINT = 0.25  # of a mask's colour in its pixels
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2  # steps of this size around the colour circle stay far from each other
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)


def get_class_colour(index: int) -> Colour:
    """The colour of a class in RGB.

    >>> get_class_colour(0), get_class_colour(1)
    ((242, 36, 36), (51, 96, 204))
    """
    brightness, saturation = ((0.95, 0.85), (0.8, 0.75), (0.65, 0.9), (1.0, 0.6))[index % 4]
    red, green, blue = colorsys.hsv_to_rgb(index * _GOLDEN_RATIO % 1, saturation, brightness)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_detections(
    image: Pixels,
    boxes: Sequence[Sequence[float]] | NDArray[Any],
    labels: Sequence[str],
    classes: Sequence[int],
    masks: Iterable[Masks | None] | None = None,
    enlarged_to: int = ENLARGED_SIDE,
    max_side: int = MAX_SIDE,
    dashed: Collection[int] = (),
) -> Pixels:
    """Draw boxes (x0, y0, x1, y1), their labels and their masks, each [height, width] of the image, on a copy.

    A large image is shrunk so that its longer side is ``max_side``; a small one is enlarged by a whole factor, to
    ``enlarged_to`` at most. What comes first lies on top. A label is placed where it neither leaves the image nor
    covers another one, if there is such a place at its box. The boxes with the indices ``dashed`` are dashed.
    """
    canvas = _resize(image, enlarged_to, max_side)
    scale = max(canvas.shape[:2]) / max(image.shape[:2])
    colours = [get_class_colour(index) for index in classes]
    texts = [printable(label, _MAX_TEXT_LENGTH) for label in labels]
    if masks is not None:
        _draw_masks(canvas, masks, colours)
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    side = max(picture.size)
    line_width = max(1, round(side / 320))
    font = _load_font(max(11, round(side / 45)))
    corners = [_scale_box(box, scale, side) for box in boxes]
    items = [
        (corner, text, colour, index in dashed)
        for index, (corner, text, colour) in enumerate(zip(corners, texts, colours, strict=True))
        if corner is not None
    ]
    for corner, _, colour, is_dashed in reversed(items):
        if is_dashed:
            _draw_dashed(draw, corner, colour, line_width)
        else:
            draw.rectangle(corner, outline=colour, width=line_width)
    labelled = [(corner, text, colour) for corner, text, colour, _ in items if text]
    bars = _place_labels([(corner, text) for corner, text, _ in labelled], picture.size, font)
    for bar, (_, text, colour) in reversed([*zip(bars, labelled, strict=True)]):
        draw.rectangle(bar, fill=colour)
        draw.text((bar[0] + 2, bar[1]), text, _choose_text_colour(colour), font)
    return np.array(picture)


def draw_panel(
    image: Pixels,
    detections: Sequence[Detection],
    class_names: Sequence[str],
    caption: str,
    reference: Sequence[Detection] | None = None,
    has_scores: bool = True,
) -> Pixels:
    """Draw the detections with their classes and, if they have some, scores, and a caption above the image. Panels of
    the same image have the same height, and can be put side by side.

    With a ``reference``, detections that it lacks are marked as new, and its own that are lost are drawn dashed,
    without their masks.
    """
    changes = Changes((), frozenset()) if reference is None else find_changes(reference, detections)
    shown = [*detections, *changes.lost]
    boxes = [(x, y, x + width, y + height) for x, y, width, height in (each.box for each in shown)]
    labels = [class_names[each.class_index] + (f" {each.score:.2f}" if has_scores else "") for each in detections]
    labels = [f"new: {label}" if index in changes.new else label for index, label in enumerate(labels)]
    labels += [f"lost: {class_names[each.class_index]}" for each in changes.lost]
    is_lost = range(len(detections), len(shown))
    masks = (  # one at a time in memory
        None if each.mask is None or index in is_lost else decode_rle(each.mask) for index, each in enumerate(shown)
    )
    drawn = draw_detections(image, boxes, labels, [each.class_index for each in shown], masks, dashed=is_lost)
    if reference is not None:
        counts = {"lost": len(changes.lost), "new": len(changes.new)}
        caption += f": {', '.join(f'{count} {name}' for name, count in counts.items() if count) or 'the same objects'}"
    return add_caption(drawn, caption)


def add_caption(image: Pixels, caption: str) -> Pixels:
    """The image in a white frame, below a caption that is cut at the image's width."""
    panel = Image.fromarray(np.pad(image, _FRAME, constant_values=255))
    text, font = printable(caption, _MAX_TEXT_LENGTH), _load_font(_CAPTION_SIZE)
    ImageDraw.Draw(panel).text((6, _CAPTION_HEIGHT // 2), text, _BLACK, font, anchor="lm")
    return np.array(panel)


def draw_legend(entries: Sequence[tuple[str, int]], width: int) -> Pixels:
    """The texts of entries in rows of this width, each behind a square in the colour of its class.

    >>> draw_legend([("cat", 0), ("dog", 1)], 200).shape
    (26, 200, 3)
    """
    font, square = _load_font(_CAPTION_SIZE), _CAPTION_SIZE
    places, x, y = [], 6, 0
    for text, index in entries:
        shown = printable(text, _MAX_TEXT_LENGTH)
        length = square + 5 + math.ceil(font.getlength(shown))
        if x > 6 and x + length > width:
            x, y = 6, y + _CAPTION_HEIGHT
        places.append((x, y, shown, index))
        x += length + 20
    legend = Image.new("RGB", (width, y + _CAPTION_HEIGHT), _WHITE)
    draw = ImageDraw.Draw(legend)
    for x, y, shown, index in places:
        middle = y + _CAPTION_HEIGHT // 2
        draw.rectangle((x, middle - square // 2, x + square, middle + square // 2), fill=get_class_colour(index))
        draw.text((x + square + 5, middle), shown, _BLACK, font, anchor="lm")
    return np.array(legend)


def _resize(image: Pixels, enlarged_to: int, max_side: int) -> Pixels:
    height, width = image.shape[:2]
    longer = max(height, width)
    if longer > max_side:
        size = (max(1, int(width * max_side / longer)), max(1, int(height * max_side / longer)))
        return np.array(Image.fromarray(image).resize(size, Image.Resampling.BOX))
    factor = max(1, min(enlarged_to, max_side) // longer)
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def _draw_masks(canvas: Pixels, masks: Iterable[Masks | None], colours: Sequence[Colour]) -> None:
    """Tint the masks' pixels, then draw all outlines over them."""
    height, width = canvas.shape[:2]
    resized = [
        (_resize_mask(mask, height, width), colour)
        for mask, colour in zip(masks, colours, strict=True)
        if mask is not None and mask.size
    ][::-1]
    for mask, colour in resized:
        canvas[mask] = np.rint((1 - _TINT) * canvas[mask] + _TINT * np.array(colour))
    for mask, colour in resized:
        canvas[find_outline(mask)] = colour


def find_outline(mask: Masks) -> Masks:
    """The pixels of a mask of which a neighbour to the left, right, top or bottom is not in it.

    >>> find_outline(np.ones((3, 3), bool)).astype(int).tolist()
    [[1, 1, 1], [1, 0, 1], [1, 1, 1]]
    """
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def _resize_mask(mask: Masks, height: int, width: int) -> Masks:
    rows = np.arange(height) * mask.shape[0] // height
    columns = np.arange(width) * mask.shape[1] // width
    return mask[rows][:, columns]


def _scale_box(box: Sequence[float], scale: float, side: int) -> Box | None:
    """The first and the last pixels of a box; its corners may come in any order. ``None`` for one with NaN."""
    values = [float(value) * scale for value in box]
    if any(math.isnan(value) for value in values):
        return None
    x0, y0, x1, y1 = (round(min(max(value, -side), 2 * side)) for value in values)
    (x0, x1), (y0, y1) = sorted((x0, x1)), sorted((y0, y1))
    return x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)


def _draw_dashed(draw: ImageDraw.ImageDraw, box: Box, colour: Colour, line_width: int) -> None:
    x0, y0, x1, y1 = box
    length = 4 * line_width
    for start in range(x0, x1 + 1, 2 * length):
        for y in (y0, y1 - line_width + 1):
            draw.rectangle((start, y, min(start + length - 1, x1), y + line_width - 1), fill=colour)
    for start in range(y0, y1 + 1, 2 * length):
        for x in (x0, x1 - line_width + 1):
            draw.rectangle((x, start, x + line_width - 1, min(start + length - 1, y1)), fill=colour)


def _place_labels(items: Sequence[tuple[Box, str]], size: tuple[int, int], font: ImageFont.FreeTypeFont) -> list[Box]:
    """The bars of the labels, each above its box if there is room, else inside at its top, below it, inside at its
    bottom; the first of these that is free, or if none is, the first. What comes first is placed first."""
    height, placed = sum(font.getmetrics()), list[Box]()
    bottom = size[1] - height
    for (x0, y0, _, y1), text in items:
        width = math.ceil(font.getlength(text)) + 4
        x = max(0, min(x0, size[0] - width))
        tops = [min(y0 - height, bottom)] if y0 >= height else []
        tops += [top for top in (y0, y1 + 1, y1 + 1 - height) if 0 <= top <= bottom]
        bars = [(x, top, x + width - 1, top + height - 1) for top in tops or [max(0, min(y0, bottom))]]
        placed.append(next((bar for bar in bars if not any(_overlap(bar, other) for other in placed)), bars[0]))
    return placed


def _overlap(one: Box, other: Box) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]


def _choose_text_colour(background: Colour) -> Colour:
    """Black or white, of which one has a contrast of 4.5 or more to any colour, by the luminance that WCAG defines."""
    red, green, blue = (channel / 255 for channel in background)
    luminance = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2
    return _BLACK if luminance > 0.18 else _WHITE


def _load_font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow has a bitmap font only for calls without a size
    return font
