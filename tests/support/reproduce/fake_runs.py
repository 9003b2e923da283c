"""Runs whose steps were not run: their rows, coverage files, metrics and images are made up; and checks of a page."""

import itertools
import json
import re

import numpy as np
from markdown_it import MarkdownIt
from support.analyze.analyses import make_analysis
from support.report.pages import TagParser, make_png
from support.reproduce.plans import build_plan

from ssql_det.analyze.page import build_csv_files
from ssql_det.core import rows
from ssql_det.core.rows import Calibration, Row
from ssql_det.images.results import save_picture
from ssql_det.quant import parse_bit_widths
from ssql_det.report.blocks import Paragraph, Table
from ssql_det.report.page_script import SCRIPT
from ssql_det.report.render_html import render_html
from ssql_det.report.render_markdown import collect_image_files, render_markdown
from ssql_det.reproduce.plan import RunResults
from ssql_det.reproduce.runner import DONE, StepOutcome

MARKDOWN = MarkdownIt("commonmark").enable(["table"])  # an independent reader
NAMES = {"random-init": "random init.", "simsiam": "SimSiam", "ssql": "SSQL (ours)"}  # in tables
ROW_NAMES = NAMES | {"ssql": "SSQL"}
CHECKPOINT_METHODS = {  # the method that a checkpoint stores, by the name of its run
    "simsiam": "SimSiam",
    "byol": "BYOL",
    "moco": "MoCo v2",
    "simclr": "SimCLR",
    "ssql": "SSQL",
    "ssql-byol": "SSQL-BYOL",
    "ssql-moco": "SSQL-MoCo v2",
    "ssql-simclr": "SSQL-SimCLR",
}

PROBE_PROTOCOL = {
    "probes": ["linear"],
    "linear": "fast",
    "optimizer": "SGD",
    "rate": 30.0,
    "batch": 512,
    "epochs": 100,
    "recipe": "cifar",
    "size": 32,
    "train_images": 50000,
    "val_images": 10000,
}


def fake_average_precision(detector, method, seed, bits_index):
    """A different number for each row."""
    return {"c4": 40, "fpn": 20}[detector] + 3 * list(NAMES).index(method) + 0.7 * seed**2 - 1.3 * bits_index


def fake_top1(run, seed, bits_index):
    """A different number for each row."""
    return 50 + 2.3 * (sum(run.encode()) % 17) + 0.9 * seed**2 - 1.7 * bits_index


def make_fake_run(
    out, preset="mini", failed=None, names=None, command="ssql-det reproduce --preset mini", methods=(), **options
):
    """All steps are done but the ``failed`` ones (outcomes by name). ``names`` replace names of methods in rows;
    ``methods`` are those of the plan."""
    failed = failed or {}
    plan = build_plan(preset, out, methods=methods, **options)
    outcomes = {}
    for step in plan.steps:
        outcomes[step.name] = failed.get(step.name, StepOutcome(DONE, 60.0 if step.kind == "sweep" else 6.0))
        if step.name not in failed:
            step.folder.mkdir(parents=True)
            _WRITERS[step.kind](step, plan, ROW_NAMES | (names or {}))
    return RunResults(plan, outcomes, command, 8.9)


def _write_sweep(step, plan, names):
    detector, name = step.name.removeprefix("sweep-").split("-", 1)
    method, seed = name.rsplit("-", 1)
    (experiment,) = [each for each in plan.experiments if each.name == detector]
    for index, bits in enumerate(map(str, parse_bit_widths(plan.preset.bits))):
        box = fake_average_precision(detector, method, int(seed), index)
        metrics = {"bbox/AP": box, "bbox/AP50": box + 10, "bbox/AP75": box + 1, "MB": 8.0 / (index + 1), "GFLOPs": 0.5}
        metrics |= {"GBOPs": 616.0 / (index + 1)}
        if detector == "fpn":
            metrics |= {"segm/AP": box - 2, "segm/AP50": box + 8, "segm/AP75": box - 3}
        config = experiment.config.rpartition("/")[2]
        fields = {"method": names[method], "checkpoint": "model_final.pth", "config": config, "scope": "all"}
        fields |= {"dataset": experiment.dataset, "engine": "minid2", "network": "narrow_resnet"}
        _append_row(step, bits, metrics, seed, **fields)


def _append_row(step, bits, metrics, seed, **fields):
    fields |= {"scheme": "minmax", "calibration": Calibration(64), "checkpoint_hash": step.name, "seconds": 1.0}
    rows.append_row(step.outputs[0], Row(bits=bits, metrics=metrics, seed=int(seed), **fields))


def _write_probe(step, plan, names):
    """The method is that of ``--method`` or else of the checkpoint."""
    network, dataset = ("narrow_resnet", "crops") if plan.preset.data else ("cifar_resnet18", "cifar10")
    run, seed = step.name.removeprefix("probe-").rsplit("-", 1)
    options = dict(itertools.pairwise(step.arguments))
    method = options.get("--method", CHECKPOINT_METHODS.get(run, run))
    fields = {"method": method, "checkpoint": "checkpoint.pth", "config": "", "scope": "backbone", "engine": ""}
    fields |= {"dataset": dataset, "network": network, "protocol": PROBE_PROTOCOL}
    for index, bits in enumerate(map(str, parse_bit_widths(options["--bits"]))):
        metrics = {"linear/top1": fake_top1(run, int(seed), index), "MB": 2.0 / (index + 1), "GBOPs": 3.0 / (index + 1)}
        _append_row(step, bits, metrics, seed, **fields)


def _write_training(step, plan, names):
    if "random-init" not in step.name:
        left_out = {"fc.weight": names.get("reason", "of the method's head"), "fc.bias": "of the method's head"}
        content = {"percent": 100.0, "used": ["conv1.weight"] * 20, "left_out": left_out}
        (step.folder / "coverage.json").write_text(json.dumps(content))


def _write_pretraining(step, plan, names):
    lines = [{"step": 0, "loss": -0.1, "spread": 0.5}, {"step": 149, "loss": -0.98765, "spread": 0.87}]
    lines += [{"step": 149, "knn/FP": 50.0}]
    (step.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _write_detections(step, plan, names):
    for path in step.outputs:
        save_picture(path, [np.full((90, 400, 3), (0, 114, 178), np.uint8)] * 2, ["annotated", "FP"])


def _write_analysis(step, plan, names):
    terms, *maps = step.outputs
    analyses = [make_analysis(path.stem.removeprefix("tsne_")) for path in maps]
    terms.write_text(build_csv_files(analyses)["terms.csv"])
    for path in maps:
        path.write_bytes(make_png(640, 348, rgb=(90, 0, 90)))


_WRITERS = {
    "sweep": _write_sweep,
    "probe": _write_probe,
    "train": _write_training,
    "pretrain": _write_pretraining,
    "predict": _write_detections,
    "analyze": _write_analysis,
    "data": lambda *ignored: None,
    "convert": lambda *ignored: None,
}


def find_tables(document, first_column):
    """Those whose first column has that title."""
    tables = [block for block in document.iterate_blocks() if isinstance(block, Table)]
    return [table for table in tables if table.header[0] == first_column]


def list_paragraphs(document):
    return [block.text for block in document.blocks if isinstance(block, Paragraph)]


def check_page(document):
    """Check what is true of any page, as HTML and as Markdown; the tags of both."""
    html_text, markdown_text = render_html(document), render_markdown(document)
    html_text.encode()
    html, markdown = TagParser(html_text), TagParser(MARKDOWN.render(markdown_text))
    ids = html.values("id")
    assert len(ids) == len(set(ids))
    links = html.values("href")
    assert {each[1:] for each in links if each.startswith("#")} <= set(ids)
    assert not [each for each in links if not each.startswith(("#", "data:"))]
    assert all(re.match("data:image/(jpeg|png);base64,", src) for src in html.values("src"))
    assert not {tag for tag, _ in html.tags} & {"iframe", "object", "form", "base"}
    assert [html_text.count(text) for text in ("<script", SCRIPT)] == [1, 1]
    assert not [name for _, attributes in html.tags for name in attributes if name.startswith("on")]
    assert all(image["alt"] for image in html.all("img"))
    assert set(markdown.values("src")) == set(collect_image_files(document))
    assert not markdown.values("href")
    assert not {tag for tag, _ in markdown.tags} & {"script", "iframe", "object", "form", "style"}
    headings = [tag for tag, _ in html.tags if re.fullmatch(r"h\d", tag)]
    assert headings[0] == "h1"
    assert headings == [tag for tag, _ in markdown.tags if re.fullmatch(r"h\d", tag)]
    return html, markdown
