"""Every figure of every table stands in its line and column, in each format: all is read anew, from the files on."""

import csv
import io
import json
from importlib.resources import files

import pytest
from markdown_it import MarkdownIt
from support.report.latex import read_tables
from support.report.rows import make_probe_row, make_row

from ssql_det.report.comparison import compare_with_published
from ssql_det.report.comparison_blocks import build_comparison_blocks
from ssql_det.report.document import Document
from ssql_det.report.published import TABLE_NUMBERS
from ssql_det.report.render_csv import render_csv
from ssql_det.report.render_latex import render_latex
from ssql_det.report.render_markdown import render_markdown

COLUMNS = {  # where a printed heading's figures stand: section, metric
    "": ("Linear probe", "top1"),
    "1%": ("Fine-tuning", "top5 at 1%"),
    "10%": ("Fine-tuning", "top5 at 10%"),
    "linear": ("Linear probe", "top1"),
    "finetune": ("Fine-tuning", "top1"),
    **{name: ("Boxes", name) for name in ("AP50", "AP", "AP75")},
    **{f"bbox {name}": ("Boxes", name) for name in ("AP50", "AP", "AP75")},
    **{f"mask {name}": ("Masks", name) for name in ("AP50", "AP", "AP75")},
}
TASKS = {"Linear probe": "linear", "Fine-tuning": "finetune", "Boxes": "bbox", "Masks": "segm"}
PRODUCED = {1: "cifar10", 3: "imagenet", 6: "voc_2007_test", 7: "coco_2017_val", 8: "cifar10", 12: "cifar10"}
ROWS_CALL = {"(a)": "SimSiam", "(i)": "SSQL"}


def printed(number):
    """Each figure of the file: backbone, data set, method, section, metric, bits, figure."""
    content = json.loads((files("ssql_det.report") / "published" / f"ssql_table{number}.json").read_text("utf-8"))
    for line in content["rows"]:
        for heading, figure in zip(content["columns"], line["values"], strict=True):
            bits = next(
                word for word in heading.split() if word in ("FP", "Avg.") or (word[1:2] == "w" and "a" in word)
            )
            section, metric = COLUMNS[heading.replace(bits, "").strip()]
            backbone, dataset = (line.get(key, content.get(key, "")) for key in ("backbone", "dataset"))
            yield (backbone, dataset, line.get("method") or line["id"]), (section, metric, bits), figure


def label(number, backbone, dataset, method):
    return f"{backbone} · {method}" if number in (1, 3, 4) else f"{dataset} · {method}" if number == 5 else method


def markdown_tables(text):
    """Section, header and rows of each table, as another program reads them."""
    section, rows, cell = "", [], None
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "inline":
            words = "".join(each.content for each in token.children)
            section, cell = (words, cell) if cell is None and not rows else (section, words)
        if token.type == "tr_open":
            rows.append([])
        if token.type in ("td_open", "th_open"):
            cell = ""
        if token.type in ("td_close", "th_close"):
            rows[-1].append(cell)
        if token.type == "table_close":
            yield section, rows[0], rows[1:]
            rows, cell = [], None


def of_markdown(table):
    return _shown(markdown_tables(render_markdown(Document("", build_comparison_blocks(table)))))


def of_latex(table):
    """Without spaces: the reader gives none."""
    return _shown(
        (g.heading, g.header, g.rows) for g in read_tables(render_latex(Document("", build_comparison_blocks(table))))
    )


def _shown(tables):
    """What stands in the three columns of each metric."""
    found = {}
    for section, header, rows in tables:
        for cells in rows:
            for place in range(2, len(header), 3):
                metric = header[place].removesuffix("published").strip()
                key = (squeezed(cells[0]), squeezed(section), squeezed(metric), cells[1])
                assert key not in found
                found[key] = tuple(map(squeezed, cells[place : place + 3]))
    return found


def squeezed(text):
    return "".join(text.split())


def of_csv(table):
    found = {}
    for record in csv.DictReader(io.StringIO(render_csv(table))):
        assert record["table"] == str(table.number)
        name = (record["backbone"], record["dataset"], record["method"])
        key = (*name, record["metric"], record["bits"])
        assert key not in found
        found[key] = record
    return found


def measured(number, figure, place):
    """Something near the figure, another one in each place."""
    return round((figure or 50.0) + (place % 13 - 6) * 0.7, 3)


def rows_of(number):
    """A row for each line and bit-width that this project can have rows of."""
    by_row, values = {}, {}
    for place, (name, (section, metric, bits), figure) in enumerate(printed(number)):
        key = (name, section, metric, bits)
        if bits == "Avg.":
            values[key] = (
                sum(values[name, section, metric, other] for other in ("FP", "6w6a", "4w4a", "3w3a", "2w4a")) / 5
            )
            continue
        values[key] = measured(number, figure, place)
        by_row.setdefault((name, bits), {})[f"{TASKS[section]}/{metric}"] = values[key]
    rows = []
    for ((backbone, _, method), bits), metrics in by_row.items():
        more = {"method": ROWS_CALL.get(method, method), "bits": bits, "dataset": PRODUCED[number], "metrics": metrics}
        network = backbone.lower().replace("-", "")
        make = make_row if number in (6, 7) else make_probe_row
        more |= {} if make is make_row else {"network": network if number == 3 else f"cifar_{network}"}
        rows.append(make(checkpoint_hash=f"{backbone} {method}", **more))
    return rows, values


@pytest.mark.parametrize("number", TABLE_NUMBERS)
def test_every_published_figure_stands_in_its_place(number):
    table = compare_with_published(number, [])
    markdown, latex, records = of_markdown(table), of_latex(table), of_csv(table)
    count = 0
    for (backbone, dataset, method), (section, metric, bits), figure in printed(number):
        key = tuple(map(squeezed, (label(number, backbone, dataset, method), section, metric, bits)))
        shown = "-" if figure is None else f"{figure:.1f}"
        assert (markdown[key][0], latex[key][0]) == (shown, shown)
        assert markdown[key] == latex[key]
        names = ("" if number in (6, 7) else backbone, PRODUCED.get(number, dataset), method)
        record = records[(*names, f"{TASKS[section]}/{metric}", bits)]
        assert record["published"] == ("" if figure is None else str(figure))
        only = record["state"] == "published only"
        assert only == (markdown[key][1] == "publishedonly")
        assert only == (figure is not None and not record["filled_by"])
        count += 1
    assert len(markdown) == len(latex) == len(records) == count


@pytest.mark.parametrize("number", [1, 3, 6, 7, 12])
def test_every_measured_figure_stands_beside_with_its_difference(number):
    rows, values = rows_of(number)
    table = compare_with_published(number, rows)
    markdown, latex, records = of_markdown(table), of_latex(table), of_csv(table)
    for (backbone, dataset, method), (section, metric, bits), figure in printed(number):
        ours = values[(backbone, dataset, method), section, metric, bits]
        difference = None if figure is None else ours - figure
        key = tuple(map(squeezed, (label(number, backbone, dataset, method), section, metric, bits)))
        expected = (f"{ours:.1f}", "-" if difference is None else f"{round(difference, 1) + 0.0:+.1f}")
        assert markdown[key][1:] == latex[key][1:] == expected
        names = ("" if number in (6, 7) else backbone, PRODUCED[number], method)
        record = records[(*names, f"{TASKS[section]}/{metric}", bits)]
        assert (float(record["measured"]), record["state"], record["filled_by"]) == (
            pytest.approx(ours),
            "measured",
            "",
        )
        assert (record["difference"] == "") == (difference is None)
        assert difference is None or float(record["difference"]) == pytest.approx(difference)
    assert len(markdown) == len(values)


def test_the_ablation_is_measured_at_its_ends():
    """Here those without a letter of their own; the average is over the bit-widths."""
    rows, values = rows_of(8)
    table = compare_with_published(8, [each for each in rows if each.method in ("SimSiam", "SSQL")])
    markdown = of_markdown(table)
    for (backbone, dataset, method), (section, metric, bits), figure in printed(8):
        _, ours, difference = markdown[method, squeezed(section), metric, bits]
        if method not in ROWS_CALL:
            assert (ours[0], difference) == ("[", "-")  # the number of the command that fills it
            continue
        value = values[(backbone, dataset, method), section, metric, bits]
        assert (ours, difference) == (f"{value:.1f}", f"{round(value - figure, 1) + 0.0:+.1f}")
    assert {line.settings for line in table.lines if line.method == "(a)"} == {"nothing quantized"}


def test_several_tables_are_one_csv():
    tables = [compare_with_published(number, []) for number in (1, 6)]
    text = render_csv(*tables)
    assert text == render_csv(tables[0]) + render_csv(tables[1]).partition("\n")[2]
