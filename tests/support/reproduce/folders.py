"""What a run leaves, made up: rows, coverage, curves and pictures that no step has made."""

import itertools
import json
import re

from markdown_it import MarkdownIt
from support.analyze.analyses import make_analysis
from support.report.pages import Tags, png
from support.reproduce.plans import plan_of

from ssql_det.analyze.page import build_csv_files
from ssql_det.core import rows
from ssql_det.core.rows import Calibration, Row
from ssql_det.quant import parse_widths
from ssql_det.report.blocks import Paragraph, Table
from ssql_det.report.render_html import render_html
from ssql_det.report.render_markdown import collect_image_files, render_markdown
from ssql_det.reproduce.plan import RunResults
from ssql_det.reproduce.runner import DONE, StepOutcome

READER = MarkdownIt("commonmark").enable(["table"])  # an independent one
NAMES = {"random-init": "random init.", "simsiam": "SimSiam", "ssql": "SSQL (ours)"}  # in tables
IN_ROWS = NAMES | {"ssql": "SSQL"}
PROBED = {  # as checkpoints call themselves, by what their runs are called
    "simsiam": "SimSiam",
    "byol": "BYOL",
    "moco": "MoCo v2",
    "simclr": "SimCLR",
    "ssql": "SSQL",
    "ssql-byol": "SSQL-BYOL",
    "ssql-moco": "SSQL-MoCo v2",
    "ssql-simclr": "SSQL-SimCLR",
}

PROTOCOL = {  # of a probe
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


def average_precision(detector, method, seed, place):
    """A number of its own for each row."""
    return {"c4": 40, "fpn": 20}[detector] + 3 * list(NAMES).index(method) + 0.7 * seed**2 - 1.3 * place


def top1(name, seed, place):
    """A number of its own for each row."""
    return 50 + 2.3 * (sum(name.encode()) % 17) + 0.9 * seed**2 - 1.7 * place


def made_up(
    out, preset="mini", lost=None, methods=None, command="ssql-det reproduce --preset mini", asked=(), **choices
):
    """A reproduction in which all steps are done but those in ``lost``; ``methods`` call rows by other names, ``asked``
    are those of the plan."""
    lost = lost or {}
    plan = plan_of(preset, out, methods=asked, **choices)
    outcomes = {}
    for step in plan.steps:
        outcomes[step.name] = lost.get(step.name, StepOutcome(DONE, 60.0 if step.kind == "sweep" else 6.0))
        if step.name not in lost:
            step.folder.mkdir(parents=True)
            _MAKERS[step.kind](step, plan, IN_ROWS | (methods or {}))
    return RunResults(plan, outcomes, command, 8.9)


def _sweep(step, plan, names):
    detector, name = step.name.removeprefix("sweep-").split("-", 1)
    method, seed = name.rsplit("-", 1)
    (transfer,) = [each for each in plan.parts if each.name == detector]
    for place, bits in enumerate(map(str, parse_widths(plan.preset.bits))):
        box = average_precision(detector, method, int(seed), place)
        metrics = {"bbox/AP": box, "bbox/AP50": box + 10, "bbox/AP75": box + 1, "MB": 8.0 / (place + 1), "GFLOPs": 0.5}
        metrics |= {"GBOPs": 616.0 / (place + 1)}
        if detector == "fpn":
            metrics |= {"segm/AP": box - 2, "segm/AP50": box + 8, "segm/AP75": box - 3}
        config = transfer.config.rpartition("/")[2]
        said = {"method": names[method], "checkpoint": "model_final.pth", "config": config, "scope": "all"}
        _row(step, bits, metrics, seed, **said, dataset=transfer.dataset, engine="minid2", network="narrow_resnet")


def _row(step, bits, metrics, seed, **said):
    said |= {"scheme": "minmax", "calibration": Calibration(64), "checkpoint_hash": step.name, "seconds": 1.0}
    rows.append_row(step.outputs[0], Row(bits=bits, metrics=metrics, seed=int(seed), **said))


def _probe(step, plan, names):
    """``--method`` is obeyed; without it a checkpoint says its own."""
    network, data = ("narrow_resnet", "crops") if plan.preset.data else ("cifar_resnet18", "cifar10")
    name, seed = step.name.removeprefix("probe-").rsplit("-", 1)
    options = dict(itertools.pairwise(step.arguments))
    for place, bits in enumerate(map(str, parse_widths(options["--bits"]))):
        metrics = {"linear/top1": top1(name, int(seed), place), "MB": 2.0 / (place + 1), "GBOPs": 3.0 / (place + 1)}
        method = options.get("--method", PROBED.get(name, name))
        said = {"method": method, "checkpoint": "checkpoint.pth", "config": "", "scope": "backbone", "engine": ""}
        _row(step, bits, metrics, seed, **said, dataset=data, network=network, protocol=PROTOCOL)


def _train(step, plan, names):
    if "random-init" not in step.name:
        left_out = {"fc.weight": names.get("reason", "of the method's head"), "fc.bias": "of the method's head"}
        content = {"percent": 100.0, "used": ["conv1.weight"] * 20, "left_out": left_out}
        (step.folder / "coverage.json").write_text(json.dumps(content))


def _pretrain(step, plan, names):
    lines = [{"step": 0, "loss": -0.1, "spread": 0.5}, {"step": 149, "loss": -0.98765, "spread": 0.87}]
    lines += [{"step": 149, "knn/FP": 50.0}]
    (step.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _predict(step, plan, names):
    for path in step.outputs:
        path.write_bytes(png(2400, 90))


def _analyze(step, plan, names):
    terms, *maps = step.outputs
    found = [make_analysis(path.stem.removeprefix("tsne_")) for path in maps]
    terms.write_text(build_csv_files(found)["terms.csv"])
    for path in maps:
        path.write_bytes(png(640, 348, rgb=(90, 0, 90)))


_MAKERS = {
    "sweep": _sweep,
    "probe": _probe,
    "train": _train,
    "pretrain": _pretrain,
    "predict": _predict,
    "analyze": _analyze,
    "data": lambda *ignored: None,
    "convert": lambda *ignored: None,
}


def tables(document, first):
    return [block for block in document.iterate_blocks() if isinstance(block, Table) and block.header[0] == first]


def texts(document):
    return [block.text for block in document.blocks if isinstance(block, Paragraph)]


def checked(document):
    """Both renderings; what is true of any page."""
    html, markdown = render_html(document), render_markdown(document)
    html.encode()
    page, read = Tags(html), Tags(READER.render(markdown))
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    links = page.values("href")
    assert {each[1:] for each in links if each.startswith("#")} <= set(ids)
    assert not [each for each in links if not each.startswith(("#", "data:"))]
    assert all(re.match("data:image/(jpeg|png);base64,", src) for src in page.values("src"))
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "object", "form", "base"}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert all(image["alt"] for image in page.all("img"))
    assert set(read.values("src")) == set(collect_image_files(document))
    assert not read.values("href")
    assert not {tag for tag, _ in read.tags} & {"script", "iframe", "object", "form", "style"}
    headings = [tag for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert headings[0] == "h1"
    assert headings == [tag for tag, _ in read.tags if re.fullmatch(r"h\d", tag)]
    return page, read
