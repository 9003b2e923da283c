"""Every value of every table is in its line and column in each format; all are parsed again, from the JSON files on."""

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

COLUMNS = {  # the section and metric of each printed heading
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
DATASETS = {1: "cifar10", 3: "imagenet", 6: "voc_2007_test", 7: "coco_2017_val", 8: "cifar10", 12: "cifar10"}
METHODS_IN_ROWS = {"(a)": "SimSiam", "(i)": "SSQL"}


def list_published_values(number):
    """Each value of the JSON file: (backbone, dataset, method), (section, metric, bits), value."""
    content = json.loads((files("ssql_det.report") / "published" / f"ssql_table{number}.json").read_text("utf-8"))
    for line in content["rows"]:
        for heading, value in zip(content["columns"], line["values"], strict=True):
            bits = next(
                word for word in heading.split() if word in ("FP", "Avg.") or (word[1:2] == "w" and "a" in word)
            )
            section, metric = COLUMNS[heading.replace(bits, "").strip()]
            backbone, dataset = (line.get(key, content.get(key, "")) for key in ("backbone", "dataset"))
            yield (backbone, dataset, line.get("method") or line["id"]), (section, metric, bits), value


def make_label(number, backbone, dataset, method):
    return f"{backbone} · {method}" if number in (1, 3, 4) else f"{dataset} · {method}" if number == 5 else method


def parse_markdown_tables(text):
    """Section, header and rows of each table, by an independent parser."""
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


def parse_markdown(table):
    return _collect_cells(parse_markdown_tables(render_markdown(Document("", build_comparison_blocks(table)))))


def parse_latex(table):
    """Without spaces: the parser drops them."""
    return _collect_cells(
        (g.heading, g.header, g.rows) for g in read_tables(render_latex(Document("", build_comparison_blocks(table))))
    )


def _collect_cells(tables):
    """The three columns of each metric, by line, section, metric and bits."""
    cells_by_key = {}
    for section, header, rows in tables:
        for cells in rows:
            for column in range(2, len(header), 3):
                metric = header[column].removesuffix("published").strip()
                key = (remove_spaces(cells[0]), remove_spaces(section), remove_spaces(metric), cells[1])
                assert key not in cells_by_key
                cells_by_key[key] = tuple(map(remove_spaces, cells[column : column + 3]))
    return cells_by_key


def remove_spaces(text):
    return "".join(text.split())


def parse_csv(table):
    cells_by_key = {}
    for record in csv.DictReader(io.StringIO(render_csv(table))):
        assert record["table"] == str(table.number)
        name = (record["backbone"], record["dataset"], record["method"])
        key = (*name, record["metric"], record["bits"])
        assert key not in cells_by_key
        cells_by_key[key] = record
    return cells_by_key


def make_value(value, index):
    """A value near the published one, different for each index."""
    return round((value or 50.0) + (index % 13 - 6) * 0.7, 3)


def make_rows(number):
    """A row for each published line and bit-width, and the values in them."""
    by_row, values = {}, {}
    for index, (name, (section, metric, bits), value) in enumerate(list_published_values(number)):
        key = (name, section, metric, bits)
        if bits == "Avg.":
            values[key] = (
                sum(values[name, section, metric, other] for other in ("FP", "6w6a", "4w4a", "3w3a", "2w4a")) / 5
            )
            continue
        values[key] = make_value(value, index)
        by_row.setdefault((name, bits), {})[f"{TASKS[section]}/{metric}"] = values[key]
    rows = []
    for ((backbone, _, method), bits), metrics in by_row.items():
        fields = {
            "method": METHODS_IN_ROWS.get(method, method),
            "bits": bits,
            "dataset": DATASETS[number],
            "metrics": metrics,
        }
        network = backbone.lower().replace("-", "")
        make = make_row if number in (6, 7) else make_probe_row
        fields |= {} if make is make_row else {"network": network if number == 3 else f"cifar_{network}"}
        rows.append(make(checkpoint_hash=f"{backbone} {method}", **fields))
    return rows, values


@pytest.mark.parametrize("number", TABLE_NUMBERS)
def test_every_published_value_is_in_its_cell(number):
    table = compare_with_published(number, [])
    markdown, latex, records = parse_markdown(table), parse_latex(table), parse_csv(table)
    count = 0
    for (backbone, dataset, method), (section, metric, bits), value in list_published_values(number):
        key = tuple(map(remove_spaces, (make_label(number, backbone, dataset, method), section, metric, bits)))
        text = "-" if value is None else f"{value:.1f}"
        assert (markdown[key][0], latex[key][0]) == (text, text)
        assert markdown[key] == latex[key]
        names = ("" if number in (6, 7) else backbone, DATASETS.get(number, dataset), method)
        record = records[(*names, f"{TASKS[section]}/{metric}", bits)]
        assert record["published"] == ("" if value is None else str(value))
        is_published_only = record["state"] == "published only"
        assert is_published_only == (markdown[key][1] == "publishedonly")
        assert is_published_only == (value is not None and not record["filled_by"])
        count += 1
    assert len(markdown) == len(latex) == len(records) == count


@pytest.mark.parametrize("number", [1, 3, 6, 7, 12])
def test_every_measured_value_is_beside_it_with_the_difference(number):
    rows, values = make_rows(number)
    table = compare_with_published(number, rows)
    markdown, latex, records = parse_markdown(table), parse_latex(table), parse_csv(table)
    for (backbone, dataset, method), (section, metric, bits), value in list_published_values(number):
        measured = values[(backbone, dataset, method), section, metric, bits]
        difference = None if value is None else measured - value
        key = tuple(map(remove_spaces, (make_label(number, backbone, dataset, method), section, metric, bits)))
        expected = (f"{measured:.1f}", "-" if difference is None else f"{round(difference, 1) + 0.0:+.1f}")
        assert markdown[key][1:] == latex[key][1:] == expected
        names = ("" if number in (6, 7) else backbone, DATASETS[number], method)
        record = records[(*names, f"{TASKS[section]}/{metric}", bits)]
        assert (float(record["measured"]), record["state"], record["filled_by"]) == (
            pytest.approx(measured),
            "measured",
            "",
        )
        assert (record["difference"] == "") == (difference is None)
        assert difference is None or float(record["difference"]) == pytest.approx(difference)
    assert len(markdown) == len(values)


def test_rows_of_simsiam_and_ssql_fill_the_first_and_last_row_of_the_ablation():
    """Their rows name the method, not the letter; the average is over the bit-widths."""
    rows, values = make_rows(8)
    table = compare_with_published(8, [each for each in rows if each.method in ("SimSiam", "SSQL")])
    markdown = parse_markdown(table)
    for (backbone, dataset, method), (section, metric, bits), value in list_published_values(8):
        _, measured, difference = markdown[method, remove_spaces(section), metric, bits]
        if method not in METHODS_IN_ROWS:
            assert (measured[0], difference) == ("[", "-")  # the number of the command that fills it
            continue
        own_value = values[(backbone, dataset, method), section, metric, bits]
        assert (measured, difference) == (f"{own_value:.1f}", f"{round(own_value - value, 1) + 0.0:+.1f}")
    assert {line.settings for line in table.lines if line.method == "(a)"} == {"nothing quantized"}


def test_several_tables_are_one_csv():
    tables = [compare_with_published(number, []) for number in (1, 6)]
    text = render_csv(*tables)
    assert text == render_csv(tables[0]) + render_csv(tables[1]).partition("\n")[2]
