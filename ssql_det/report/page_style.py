"""How a page looks: one sheet of CSS, without anything from elsewhere, for light, dark, narrow, wide and paper.

>>> "<style>" + CSS + "</style>"
"""

from __future__ import annotations

from ssql_det.report.charts import STYLE as CHARTS
from ssql_det.report.colours import themed

_LETTERS = """
*{box-sizing:border-box}
html{font:1.0625rem/1.6 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
-webkit-text-size-adjust:100%;text-size-adjust:100%;scroll-padding-top:1rem;background:var(--paper);color:var(--ink)}
body{margin:0}
main{max-width:60rem;margin:0 auto;padding:clamp(1.5rem,5vw,4rem) clamp(1rem,4vw,2.5rem) 5rem;overflow-wrap:anywhere}
h1,h2,h3{line-height:1.25;letter-spacing:-.012em;text-wrap:balance;font-weight:650}
h1{font-size:clamp(1.65rem,1.2rem + 2vw,2.4rem);margin:0 0 1.25rem}
h2{font-size:1.4rem;margin:3rem 0 1rem;padding-top:1.25rem;border-top:1px solid var(--rule)}
h3{font-size:1.1rem;margin:2.25rem 0 .75rem}
p,ul,ol{max-width:44rem;margin:0 0 1rem}
ul,ol{padding-left:1.5rem}
li{margin:.25rem 0}
li::marker{color:var(--quiet)}
a{color:var(--link);text-decoration-thickness:1px;text-underline-offset:.18em}
a:hover{text-decoration-thickness:2px}
:focus-visible{outline:2px solid var(--link);outline-offset:2px;border-radius:2px}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
code{font-size:.875em;background:var(--raised);border-radius:4px;padding:.12em .3em}
pre{font-size:.85rem;line-height:1.55;background:var(--raised);border:1px solid var(--rule);border-radius:8px;
padding:.85rem 1rem;margin:0 0 1.25rem;overflow-x:auto;overflow-wrap:normal}
pre code{font-size:inherit;background:none;padding:0}
"""
_PARTS = """
nav{margin:1.75rem 0 0;font-size:.95rem}
nav ul{list-style:none;display:flex;flex-wrap:wrap;gap:.3rem 1.5rem;padding:0;margin:0;max-width:none}
nav li{margin:0}
.scroll{overflow-x:auto;margin:1.25rem 0 1.75rem;
background:linear-gradient(to left,var(--paper) 1.5rem,transparent) right/2.5rem 100% no-repeat local,
linear-gradient(to left,transparent 1px,var(--shade) 1px,transparent) right/.75rem 100% no-repeat scroll}
table{border-collapse:collapse;font-size:.9rem;line-height:1.45;font-variant-numeric:tabular-nums;
overflow-wrap:normal;min-width:min(100%,24rem);border-bottom:1px solid var(--rule)}
caption{text-align:left;padding:0 0 .6rem}
caption span{position:sticky;left:0;display:inline-block;max-width:min(44rem,100vw - 2rem)}
caption,figcaption{color:var(--quiet);font-size:.9rem;line-height:1.5}
th,td{padding:.45rem .7rem;text-align:left;font-weight:400;vertical-align:baseline;border-top:1px solid var(--rule)}
th:first-child,td:first-child{padding-left:0}
th:last-child,td:last-child{padding-right:.25rem}
thead th{color:var(--quiet);font-size:.82rem;font-weight:600;vertical-align:bottom;border-top:0;
border-bottom:1px solid var(--quiet)}
tbody th{font-weight:500;min-width:clamp(6.75rem,14vw,8.5rem)}
tr>th:first-child{position:sticky;left:0;background:var(--paper)}
.figure{text-align:right;white-space:nowrap}
thead .figure{white-space:normal}
tbody tr:hover>*,tbody tr:hover>th:first-child{background:var(--raised)}
figure{margin:1.5rem 0 2rem}
figure img{display:block;max-width:100%;height:auto;border-radius:6px}
figure .chart{display:block;width:100%;max-width:34rem;height:auto}
figcaption{max-width:44rem;margin-top:.6rem}
.drawn figcaption{margin:0 0 .4rem;color:var(--ink);font-weight:600}
details{margin:1rem 0;border:1px solid var(--rule);border-radius:8px;padding:0 1rem}
summary{cursor:pointer;padding:.65rem 0;font-weight:500}
details[open]>summary{margin-bottom:.5rem;border-bottom:1px solid var(--rule)}
details>:last-child:not(summary){margin-bottom:1rem}
details h2{margin-top:1rem;border-top:0;padding-top:0}
"""
_PAPER = """
@media print{
html{font-size:10pt}
main{max-width:none;padding:0}
nav{display:none}
.scroll,pre{overflow:visible;background:none}
pre{white-space:pre-wrap}
h2,h3,caption{break-after:avoid}
figure,tr,li{break-inside:avoid}
thead{display:table-header-group}
a{color:inherit}
details{border:0;padding:0}
details::details-content{content-visibility:visible;block-size:auto}
}
"""
CSS = themed(":root") + CHARTS + _LETTERS + _PARTS + _PAPER
