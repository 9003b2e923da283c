"""Scenarios of evaluation, which run in both engines; see ``record_answers.py``."""

import io
import itertools
import json
import logging
import re
import tempfile
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from support.minid2.evaluation_data import (
    CLASSES,
    DETECTIONS,
    HALVES,
    IDS,
    TIED,
    draw_objects,
    make_batches,
    registered,
    run_evaluator,
    write_coco,
    write_voc,
)
from support.minid2.modules import add_prefix, encode_text


def as_arrays(results):
    """Results by task as names and numbers."""
    answers = {"tasks": encode_text(",".join(results))}
    for task, metrics in results.items():
        answers |= {
            f"{task} names": encode_text(",".join(metrics)),
            task: np.array(list(metrics.values()), dtype=float),
        }
    return answers


@contextmanager
def log_lines(module):
    """A list that holds, after the block, the lines that the module logged inside."""
    lines, text = [], io.StringIO()
    handler, logger = logging.StreamHandler(text), logging.getLogger(module.__name__)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        lines += text.getvalue().splitlines()


def voc_results(engine):
    """Both metrics (2007 and 2012), of the classes that have objects and of all; without objects an AP is NaN, or 0."""
    kit, answers = engine("evaluation"), {}
    with tempfile.TemporaryDirectory() as folder:
        known = write_voc(Path(folder), draw_objects())
        for year, count in itertools.product((2007, 2012), (3, 4, 6)):
            known |= {"year": year, "thing_classes": CLASSES[:count]}
            with registered(engine, **known) as dataset:
                evaluator = kit.PascalVOCDetectionEvaluator(dataset)
                for name, detections in DETECTIONS.items():
                    results = run_evaluator(evaluator, make_batches(engine, detections))
                    answers |= add_prefix(f"{name} {year} {count}", as_arrays(results))
                    lines = "\n".join("\n".join(evaluator._predictions[label]) for label in range(count))
                    answers[f"{name} lines"] = encode_text(lines)
    return answers


def voc_ties(engine):
    """Live only: how NumPy sorts equal scores depends on the processor's vector instructions."""
    with tempfile.TemporaryDirectory() as folder:
        known = write_voc(Path(folder), draw_objects()) | {"year": 2012, "thing_classes": CLASSES[:3]}
        with registered(engine, **known) as dataset:
            evaluator = engine("evaluation").PascalVOCDetectionEvaluator(dataset)
            return as_arrays(run_evaluator(evaluator, make_batches(engine, TIED)))


def voc_curves(engine):
    """Each class from files; average precisions of curves by hand; an annotation as it is read."""
    kit, answers = engine("evaluation.pascal_voc_evaluation"), {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_voc(folder, draw_objects())
        paths = [str(folder / each) for each in ("{}.txt", "Annotations/{}.xml", "ImageSets/Main/test.txt")]
        for kind, (label, name) in itertools.product(("far", "half"), enumerate(CLASSES)):
            things = HALVES if kind == "half" else DETECTIONS[kind]  # half an overlap is not more than .5
            (folder / f"{name}.txt").write_text(format_voc_detections(things, label))
            for overlap, is_2007 in itertools.product((0.5, 0.75), (False, True)):
                recall, precision, ap = kit.voc_eval(*paths, name, overlap, is_2007)
                curve = np.stack([recall, precision])[:, :40]
                answers |= {f"{name} {kind} {overlap}": curve, f"{name} {kind} {overlap} {is_2007}": ap}
        answers["read"] = encode_text(json.dumps(kit.parse_rec(paths[1].format("000003"))))
    tenths = np.arange(1, 11) / 10
    curves = {
        "tenths": (tenths, 1 - tenths / 2),
        "waves": (tenths.repeat(3)[5:], 0.5 + 0.4 * np.sin(np.arange(25))),
        "short": (tenths[:3], np.array([0.5, 1, 0.75])),
        "none": (np.zeros(0), np.zeros(0)),
        "absent": (np.full(3, np.nan), np.zeros(3)),
    }
    for (name, curve), is_2007 in itertools.product(curves.items(), (False, True)):
        answers[f"AP of {name} {is_2007}"] = kit.voc_ap(*curve, is_2007)
    return answers


def format_voc_detections(things, label):
    """A class's detections as lines of a results file, with coordinates from 1."""
    corners = [(each, np.add(each.box, (1, 1, 0, 0))) for each in things if each.label == label]
    return "\n".join(f"{each.image:06} {each.score} {' '.join(map(str, box))}" for each, box in corners)


def coco_results(engine):
    """Boxes and masks of the same detections, with all options of the evaluator."""
    answers = {}
    with tempfile.TemporaryDirectory() as folder:
        known = write_coco(Path(folder, "instances.json"), draw_objects())

        def evaluate(name, detections, masks=False, known=known, images=None, **options):
            with registered(engine, **known) as dataset:
                evaluator = engine("evaluation").COCOEvaluator(dataset, use_fast_impl=False, **options)
                pairs = make_batches(engine, detections, masks=masks, name=None)
                answers.update(add_prefix(name, as_arrays(run_evaluator(evaluator, pairs, img_ids=images))))

        for name, detections in {**DETECTIONS, "tied": TIED}.items():
            evaluate(name, detections, masks=True)
        for limit in (1, 5, 12, 100, 1000):
            evaluate(f"limit {limit}", DETECTIONS["many"], max_dets_per_image=limit)
        close = DETECTIONS["close"]
        evaluate("masks", close, masks=True, tasks=("segm",))
        evaluate("boxes", close, masks=True, tasks=["bbox"], distributed=False)
        evaluate("some images", close, images=[2, 5, 3])
        evaluate("one image", DETECTIONS["perfect"], masks=True, images=[2])
        evaluate("one class", close, known=known | {"thing_classes": ["thing"]})
        unnamed = {"json_file": known["json_file"]}
        evaluate("unnamed", [each._replace(label=IDS[each.label]) for each in close], known=unnamed)
        with registered(engine, **known) as dataset:
            answers |= add_prefix("nothing", as_arrays(run_evaluator(engine("evaluation").COCOEvaluator(dataset), [])))
    return answers


def coco_files(engine):
    """What the evaluator writes into its output directory, also if the annotation file has no annotations."""
    answers = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        known = write_coco(folder / "instances.json", draw_objects())
        bare = json.loads((folder / "instances.json").read_text())
        del bare["annotations"]
        (folder / "bare.json").write_text(json.dumps(bare))
        for name in ("instances", "bare"):
            known["json_file"] = str(folder / f"{name}.json")
            with registered(engine, **known) as dataset:
                evaluator = engine("evaluation").COCOEvaluator(dataset, output_dir=str(folder / name))
                pairs = make_batches(engine, DETECTIONS["close"], masks=True, name=None)
                answers |= add_prefix(name, as_arrays(run_evaluator(evaluator, pairs)))
            answers[f"{name} results"] = encode_text((folder / name / "coco_instances_results.json").read_text())
            answers[f"{name} files"] = encode_text(",".join(sorted(path.name for path in (folder / name).iterdir())))
            predictions = torch.load(folder / name / "instances_predictions.pth", weights_only=True)
            answers[f"{name} predictions"] = encode_text(json.dumps(predictions)[:5000])
    return answers


def texts(engine):
    """Results as they are logged, flattened and verified."""
    kit = engine("evaluation.testing")
    metrics = {"AP": 41.23456, "AP50": np.float64(60.5), "APs": float("nan"), "AP-dog": 12.0}
    results = {"bbox": metrics, "segm": {}, "seconds": 12, "deep": {"er": {"AP": 1.0}}}
    with log_lines(kit) as lines:
        kit.print_csv_format({name: results[name] for name in ("bbox", "segm", "seconds")})
    flat = kit.flatten_results_dict(results)
    cfg = engine("config").get_cfg()
    outcomes = []
    for expected in (
        [],
        [["bbox", "AP", 41, 0.5]],
        [["bbox", "AP", 41, 0.5], ["bbox", "AP50", 60.5, 0]],
        [["bbox", "AP", 41, 0.5], ["bbox", "AP50", 60, 0.25]],
        [["bbox", "APs", 10, 100]],
        [["bbox", "APm", 10, 100]],
    ):
        cfg.TEST.EXPECTED_RESULTS = expected
        try:
            outcomes.append(int(kit.verify_results(cfg, results)))
        except SystemExit as end:
            outcomes.append(10 + end.code)
    return {
        "lines": encode_text("\n".join(lines)),
        "flat": encode_text(repr(list(flat))),
        "verified": np.array(outcomes),
    }


def loops(engine):
    """Inference loops: what is called in which order and mode, and what is logged, without the numbers."""
    kit, events = engine("evaluation.evaluator"), []

    class Recorder(kit.DatasetEvaluator):
        def __init__(self, name):
            self.name = name

        def reset(self):
            events.append(f"{self.name} reset")

        def process(self, inputs, outputs):
            events.append(f"{self.name} {inputs} {outputs}")

        def evaluate(self):
            return {self.name: len(events)} if self.name != "silent" else None

    class Model(torch.nn.Module):
        def forward(self, inputs):
            events.append(f"training {self.training} gradient {torch.is_grad_enabled()}")
            return inputs + 1

    def run(model, count, evaluator):
        steps = ("on_start", "before_inference", "after_inference", "on_end")
        callbacks = {step: lambda step=step: events.append(step) for step in steps}
        results.append(kit.inference_on_dataset(model, range(count), evaluator, callbacks))

    results, progress = [], []
    record = mock.patch.object(
        kit, "log_every_n_seconds", lambda level, text, n: progress.append(f"{level} {text} {n}")
    )
    with log_lines(kit) as lines, record:
        model = Model()
        run(model, 13, [Recorder("first"), Recorder("silent"), Recorder("second")])
        run(model, 1, Recorder("alone"))
        run(model.eval(), 2, Recorder("silent"))
        run(lambda inputs: inputs, 3, None)
        run(model, 0, Recorder("alone"))
    text = "\n".join([*events, *map(str, map(dict, results)), *progress, *lines])
    return {"text": encode_text(re.sub(r"\d+\.\d+|\d+:[\d:.]+", "#", text)), "mode": np.array(model.training)}


SCENARIOS = (voc_results, voc_curves, coco_results, coco_files, texts, loops)
LIVE_ONLY = (voc_ties,)
