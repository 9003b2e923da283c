"""The script of a page: a click on a heading sorts a table, and a slider shows one of several figures. Without it the
page is complete.

The Content-Security-Policy of the page allows it by its hash, so that no other script, such as one in a text of an
untrusted file, can run.

>>> SCRIPT_CSP_HASH[:7]
'sha256-'
"""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256

_LEAST_ROWS = 3  # that are worth sorting
SCRIPT = f"""
for (const table of document.querySelectorAll("table")) {{
  const body = table.tBodies[0], rows = [...body.rows], cells = [...table.tHead.rows[0].cells];
  if (rows.length < {_LEAST_ROWS}) continue;
  const read = (row, column) => row.cells[column].textContent.trim();
  cells.forEach((cell, column) => {{
    const isNumber = cell.classList.contains("number"), button = document.createElement("button");
    button.append(...cell.childNodes);
    cell.append(button);
    button.addEventListener("click", () => {{
      const first = isNumber ? "descending" : "ascending", last = isNumber ? "ascending" : "descending";
      const former = cell.getAttribute("aria-sort");
      for (const each of cells) each.removeAttribute("aria-sort");
      const order = former === null ? first : former === first ? last : null;  // then as it was
      if (order === null) return body.append(...rows);
      cell.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const compare = (a, b) => {{
        const [x, y] = [read(a, column), read(b, column)];
        if (!isNumber) return sign * x.localeCompare(y, "en", {{numeric: true}});
        const [m, n] = [parseFloat(x), parseFloat(y)];
        return isNaN(m) ? (isNaN(n) ? 0 : 1) : isNaN(n) ? -1 : sign * (m - n);  // what was not measured comes last
      }};
      body.append(...[...rows].sort(compare));
    }});
  }});
}}
for (const group of document.querySelectorAll(".slides")) {{
  const figures = [...group.querySelectorAll("figure")], slider = document.createElement("input");
  if (figures.length < 2) continue;
  Object.assign(slider, {{type: "range", min: 0, max: figures.length - 1, value: 0}});
  slider.setAttribute("aria-label", group.getAttribute("aria-label"));
  const show = () => {{
    figures.forEach((figure, index) => figure.hidden = index !== slider.valueAsNumber);
    slider.setAttribute("aria-valuetext", figures[slider.valueAsNumber].textContent);
  }};
  slider.addEventListener("input", show);
  figures[0].before(slider);
  show();
}}
"""
SCRIPT_CSP_HASH = f"sha256-{b64encode(sha256(SCRIPT.encode()).digest()).decode()}"
