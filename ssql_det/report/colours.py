"""The colours of pages and charts, in light and in dark, as variables of CSS.

The curves' began as those of Okabe and Ito (https://jfly.uni-koeln.de/color/) and were moved until each has a contrast
of 3 to its paper and all nine are told apart with any kind of colour blindness; the tests measure both.

>>> print(themed("svg"))
svg{color-scheme:light dark;--paper:#ffffff;...}
@media screen and (prefers-color-scheme:dark){svg{--paper:#15181c;...}}
"""

from __future__ import annotations

from collections.abc import Mapping

_CURVES_ON_LIGHT = (
    *("#2c7bd9", "#9c3604", "#006146", "#752a76", "#be8900"),
    *("#3e39ad", "#25a0b0", "#7b3320", "#6a887d"),
)
_CURVES_ON_DARK = (
    *("#40daff", "#e3701b", "#46a06c", "#c876ac", "#f7e61e"),
    *("#9d86ff", "#9ed9d8", "#deb168", "#c7dcb7"),
)
CURVES = len(_CURVES_ON_LIGHT)


def _named(curves: tuple[str, ...]) -> dict[str, str]:
    return {f"curve-{number}": colour for number, colour in enumerate(curves)}


LIGHT = {
    "paper": "#ffffff",
    "raised": "#f5f6f7",
    "ink": "#1c2024",
    "quiet": "#5c6570",
    "rule": "#dfe3e7",
    "link": "#0b5ea8",
    "shade": "#0000001f",
    **_named(_CURVES_ON_LIGHT),
}
DARK = {
    "paper": "#15181c",
    "raised": "#1e2227",
    "ink": "#e4e7ea",
    "quiet": "#9da6b0",
    "rule": "#323840",
    "link": "#7cb8f2",
    "shade": "#00000099",
    **_named(_CURVES_ON_DARK),
}


def themed(selector: str) -> str:
    """The variables on what is selected, by what the reader prefers. Paper is light for everyone."""
    dark = f"{selector}{{{_variables(DARK)}}}"
    return (
        f"{selector}{{color-scheme:light dark;{_variables(LIGHT)}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{{dark}}}"
    )


def _variables(colours: Mapping[str, str]) -> str:
    return "".join(f"--{name}:{colour};" for name, colour in colours.items())
