"""The CSS of pages and charts: colours for light and dark themes as CSS variables, and rules for each kind of block.

The curves' colours started from those of Okabe and Ito (https://jfly.uni-koeln.de/color/) and were moved until each has
a contrast ratio of 3:1 to its background and all nine stay distinct with any kind of colour blindness; both are tested.

>>> print(make_theme_css("svg"))
svg{color-scheme:light dark;--background:#ffffff;...}
@media screen and (prefers-color-scheme:dark){svg{--background:#15181c;...}}
"""

from __future__ import annotations

from collections.abc import Mapping

_COLOURS_ON_LIGHT = (
    *("#2c7bd9", "#9c3604", "#006146", "#752a76", "#be8900"),
    *("#3e39ad", "#25a0b0", "#7b3320", "#6a887d"),
)
_COLOURS_ON_DARK = (
    *("#40daff", "#e3701b", "#46a06c", "#c876ac", "#f7e61e"),
    *("#9d86ff", "#9ed9d8", "#deb168", "#c7dcb7"),
)
NUM_CURVE_COLOURS = len(_COLOURS_ON_LIGHT)


def _name_curve_colours(colours: tuple[str, ...]) -> dict[str, str]:
    return {f"curve-{index}": colour for index, colour in enumerate(colours)}


LIGHT = {
    "background": "#ffffff",
    "raised": "#f5f6f7",  # the background of code and of the table row under the pointer
    "text": "#1c2024",
    "muted": "#5c6570",  # captions, table headers, axis labels
    "border": "#dfe3e7",
    "link": "#0b5ea8",
    "shadow": "#0000001f",
    **_name_curve_colours(_COLOURS_ON_LIGHT),
}
DARK = {
    "background": "#15181c",
    "raised": "#1e2227",
    "text": "#e4e7ea",
    "muted": "#9da6b0",
    "border": "#323840",
    "link": "#7cb8f2",
    "shadow": "#00000099",
    **_name_curve_colours(_COLOURS_ON_DARK),
}


def make_theme_css(selector: str) -> str:
    """CSS that sets the colour variables for a selector, in the reader's preferred theme; print is always light."""
    dark = f"{selector}{{{_define_variables(DARK)}}}"
    return (
        f"{selector}{{color-scheme:light dark;{_define_variables(LIGHT)}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{{dark}}}"
    )


def _define_variables(colours: Mapping[str, str]) -> str:
    return "".join(f"--{name}:{colour};" for name, colour in colours.items())


CHART_CSS = """
.chart{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
.chart text{fill:var(--text);font-variant-numeric:tabular-nums}
.chart .muted{fill:var(--muted)}
.chart .title{font-weight:600}
.chart .grid{stroke:var(--border);stroke-width:1}
.chart .line{fill:none;stroke:currentColor;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.chart .deviation{fill:none;stroke:currentColor;stroke-width:1.25;stroke-opacity:.75}
.chart .marker{fill:currentColor;stroke:var(--background);stroke-width:1}
@media (max-width:460px){.chart{font-size:16px}}
"""
_TEXT_CSS = """
*{box-sizing:border-box}
html{font:1.0625rem/1.6 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
-webkit-text-size-adjust:100%;text-size-adjust:100%;scroll-padding-top:1rem;background:var(--background);color:var(--text)}
body{margin:0}
main{max-width:60rem;margin:0 auto;padding:clamp(1.5rem,5vw,4rem) clamp(1rem,4vw,2.5rem) 5rem;overflow-wrap:anywhere}
h1,h2,h3{line-height:1.25;letter-spacing:-.012em;text-wrap:balance;font-weight:650}
h1{font-size:clamp(1.65rem,1.2rem + 2vw,2.4rem);margin:0 0 1.25rem}
h2{font-size:1.4rem;margin:3rem 0 1rem;padding-top:1.25rem;border-top:1px solid var(--border)}
h3{font-size:1.1rem;margin:2.25rem 0 .75rem}
p,ul,ol{max-width:44rem;margin:0 0 1rem}
ul,ol{padding-left:1.5rem}
li{margin:.25rem 0}
li::marker{color:var(--muted)}
a{color:var(--link);text-decoration-thickness:1px;text-underline-offset:.18em}
a:hover{text-decoration-thickness:2px}
:focus-visible{outline:2px solid var(--link);outline-offset:2px;border-radius:2px}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
code{font-size:.875em;background:var(--raised);border-radius:4px;padding:.12em .3em}
pre{font-size:.85rem;line-height:1.55;background:var(--raised);border:1px solid var(--border);border-radius:8px;
padding:.85rem 1rem;margin:0 0 1.25rem;overflow-x:auto;overflow-wrap:normal}
pre code{font-size:inherit;background:none;padding:0}
"""
_BLOCK_CSS = """
nav{margin:1.75rem 0 0;font-size:.95rem}
nav ul{list-style:none;display:flex;flex-wrap:wrap;gap:.3rem 1.5rem;padding:0;margin:0;max-width:none}
nav li{margin:0}
.scroll{overflow-x:auto;margin:1.25rem 0 1.75rem;
background:linear-gradient(to left,var(--background) 1.5rem,transparent) right/2.5rem 100% no-repeat local,
linear-gradient(to left,transparent 1px,var(--shadow) 1px,transparent) right/.75rem 100% no-repeat scroll}
table{border-collapse:collapse;font-size:.9rem;line-height:1.45;font-variant-numeric:tabular-nums;
overflow-wrap:normal;min-width:min(100%,24rem);border-bottom:1px solid var(--border)}
caption{text-align:left;padding:0 0 .6rem}
caption span{position:sticky;left:0;display:inline-block;max-width:min(44rem,100vw - 2rem)}
caption,figcaption{color:var(--muted);font-size:.9rem;line-height:1.5}
th,td{padding:.45rem .7rem;text-align:left;font-weight:400;vertical-align:baseline;border-top:1px solid var(--border)}
th:first-child,td:first-child{padding-left:0}
th:last-child,td:last-child{padding-right:.25rem}
thead th{color:var(--muted);font-size:.82rem;font-weight:600;vertical-align:bottom;border-top:0;
border-bottom:1px solid var(--muted)}
thead button{font:inherit;color:inherit;text-align:inherit;background:none;border:0;padding:0;cursor:pointer}
thead button:hover{color:var(--text)}
[aria-sort=ascending] button::after{content:" ▲"}
[aria-sort=descending] button::after{content:" ▼"}
tbody th{font-weight:500;min-width:clamp(6.75rem,14vw,8.5rem)}
tr>th:first-child{position:sticky;left:0;background:var(--background)}
.number{text-align:right;white-space:nowrap}
thead .number{white-space:normal}
tbody tr:hover>*,tbody tr:hover>th:first-child{background:var(--raised)}
.tiles{list-style:none;display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,15rem),1fr));gap:.75rem;padding:0;
margin:1.5rem 0;max-width:none}
.tiles li{margin:0;padding:.9rem 1.1rem;background:var(--raised);border:1px solid var(--border);border-radius:10px}
.tiles span{display:block;color:var(--muted);font-size:.9rem;line-height:1.45}
.tiles strong{display:block;font-size:1.7rem;line-height:1.3;font-weight:650;font-variant-numeric:tabular-nums}
figure{margin:1.5rem 0 2rem}
figure img{display:block;max-width:100%;height:auto;border-radius:6px}
figure .chart{display:block;width:100%;max-width:34rem;height:auto}
.slides{margin:1.5rem 0 2rem}
.slides p{margin:0 0 .4rem;font-weight:600}
.slides input{display:block;width:min(100%,34rem);margin:.6rem 0;accent-color:var(--link)}
.slides figure{margin:.5rem 0}
.slides img{width:min(100%,34rem)}
figcaption{max-width:44rem;margin-top:.6rem}
.chart-figure figcaption{margin:0 0 .4rem;color:var(--text);font-weight:600}
details{margin:1rem 0;border:1px solid var(--border);border-radius:8px;padding:0 1rem}
summary{cursor:pointer;padding:.65rem 0;font-weight:500}
details[open]>summary{margin-bottom:.5rem;border-bottom:1px solid var(--border)}
details>:last-child:not(summary){margin-bottom:1rem}
details h2{margin-top:1rem;border-top:0;padding-top:0}
"""
_PRINT_CSS = """
@media print{
html{font-size:10pt}
main{max-width:none;padding:0}
nav{display:none}
.scroll,pre{overflow:visible;background:none}
pre{white-space:pre-wrap}
h2,h3,caption{break-after:avoid}
figure,tr,li{break-inside:avoid}
thead{display:table-header-group}
.slides figure[hidden]{display:block}
.slides input{display:none}
a{color:inherit}
details{border:0;padding:0}
details::details-content{content-visibility:visible;block-size:auto}
}
"""
PAGE_CSS = make_theme_css(":root") + CHART_CSS + _TEXT_CSS + _BLOCK_CSS + _PRINT_CSS
