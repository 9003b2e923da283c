"""Contrast and distinctness of the colours."""

import itertools

import numpy as np
import pytest

from ssql_det.report.stylesheet import DARK, LIGHT, NUM_CURVE_COLOURS, make_theme_css

COLOUR_VISION = {  # maps linear RGB to what dichromats see: Machado, Oliveira, Fernandes 2009, at full severity
    "all": np.eye(3),
    "no red": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no green": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "no blue": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def to_linear(colour):
    channels = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def contrast(first, second):
    """The contrast ratio of WCAG 2, the guidelines for accessible pages."""
    dark, light = sorted(float(XYZ[1] @ to_linear(each)) for each in (first, second))
    return (light + 0.05) / (dark + 0.05)


def to_lab(rgb):
    x, y, z = (XYZ @ np.clip(rgb, 0, 1)) / XYZ.sum(1)
    x, y, z = (np.cbrt(each) if each > 0.008856 else 7.787 * each + 16 / 116 for each in (x, y, z))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_curves_contrast_with_the_background(theme):
    assert all(
        contrast(theme[name], theme[background]) >= 4.5
        for name in ("text", "muted", "link")
        for background in BACKGROUNDS
    )
    assert all(contrast(theme[f"curve-{number}"], theme["background"]) >= 3 for number in range(NUM_CURVE_COLOURS))


BACKGROUNDS = ("background", "raised")


@pytest.mark.parametrize("vision", COLOUR_VISION)
@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_curve_colours_are_distinct_with_any_colour_blindness(theme, vision):
    colours = [
        to_lab(COLOUR_VISION[vision] @ to_linear(theme[f"curve-{number}"])) for number in range(NUM_CURVE_COLOURS)
    ]
    assert all(np.linalg.norm(first - second) > 12 for first, second in itertools.combinations(colours, 2))
    assert all(np.linalg.norm(first - second) > 20 for first, second in itertools.combinations(colours[:5], 2))


def test_both_themes_have_the_same_names_and_print_stays_light():
    assert LIGHT.keys() == DARK.keys()
    assert "@media screen and (prefers-color-scheme:dark)" in make_theme_css(":root")
