"""What both engines are asked of evaluation; see ``ask.py``."""

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
from support.minid2.judged_data import (
    CLASSES,
    DETECTIONS,
    HALVES,
    IDS,
    TIED,
    batches,
    draw_objects,
    judged,
    registered,
    write_coco,
    write_voc,
)
from support.minid2.modules import letters, named


def as_arrays(results):
    """Results by task as names and numbers."""
    answers = {"tasks": letters(",".join(results))}
    for task, metrics in results.items():
        answers |= {f"{task} names": letters(",".join(metrics)), task: np.array(list(metrics.values()), dtype=float)}
    return answers


@contextmanager
def log_lines(module):
    """A list that has, after the block, the lines logged by a module inside."""
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
    """Both metrics, of the classes that have objects and of all; where there are none an AP is NaN, or 0."""
    kit, answers = engine("evaluation"), {}
    with tempfile.TemporaryDirectory() as folder:
        known = write_voc(Path(folder), draw_objects())
        for year, count in itertools.product((2007, 2012), (3, 4, 6)):
            known |= {"year": year, "thing_classes": CLASSES[:count]}
            with registered(engine, **known) as dataset:
                evaluator = kit.PascalVOCDetectionEvaluator(dataset)
                for name, detections in DETECTIONS.items():
                    results = judged(evaluator, batches(engine, detections))
                    answers |= named(f"{name} {year} {count}", as_arrays(results))
                    lines = "\n".join("\n".join(evaluator._predictions[label]) for label in range(count))
                    answers[f"{name} lines"] = letters(lines)
    return answers


def voc_ties(engine):
    """Live only: numpy orders equal scores as the processor's vectors have it."""
    with tempfile.TemporaryDirectory() as folder:
        known = write_voc(Path(folder), draw_objects()) | {"year": 2012, "thing_classes": CLASSES[:3]}
        with registered(engine, **known) as dataset:
            evaluator = engine("evaluation").PascalVOCDetectionEvaluator(dataset)
            return as_arrays(judged(evaluator, batches(engine, TIED)))


def voc_curves(engine):
    """Each class from files; average precisions of curves by hand; an annotation as it is read."""
    kit, answers = engine("evaluation.pascal_voc_evaluation"), {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_voc(folder, draw_objects())
        paths = [str(folder / each) for each in ("{}.txt", "Annotations/{}.xml", "ImageSets/Main/test.txt")]
        for kind, (label, name) in itertools.product(("far", "half"), enumerate(CLASSES)):
            things = HALVES if kind == "half" else DETECTIONS[kind]  # half an overlap is not more than .5
            (folder / f"{name}.txt").write_text(voc_lines(things, label))
            for overlap, is_2007 in itertools.product((0.5, 0.75), (False, True)):
                recall, precision, ap = kit.voc_eval(*paths, name, overlap, is_2007)
                curve = np.stack([recall, precision])[:, :40]
                answers |= {f"{name} {kind} {overlap}": curve, f"{name} {kind} {overlap} {is_2007}": ap}
        answers["read"] = letters(json.dumps(kit.parse_rec(paths[1].format("000003"))))
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


def voc_lines(things, label):
    """As a file of detections; corners from 1 on."""
    corners = [(each, np.add(each.box, (1, 1, 0, 0))) for each in things if each.label == label]
    return "\n".join(f"{each.image:06} {each.score} {' '.join(map(str, box))}" for each, box in corners)


def coco_results(engine):
    """Boxes and masks of the same detections, with everything that can be chosen."""
    answers = {}
    with tempfile.TemporaryDirectory() as folder:
        known = write_coco(Path(folder, "instances.json"), draw_objects())

        def ask(name, detections, masks=False, known=known, images=None, **options):
            with registered(engine, **known) as dataset:
                evaluator = engine("evaluation").COCOEvaluator(dataset, use_fast_impl=False, **options)
                pairs = batches(engine, detections, masks=masks, name=None)
                answers.update(named(name, as_arrays(judged(evaluator, pairs, img_ids=images))))

        for name, detections in {**DETECTIONS, "tied": TIED}.items():
            ask(name, detections, masks=True)
        for limit in (1, 5, 12, 100, 1000):
            ask(f"limit {limit}", DETECTIONS["many"], max_dets_per_image=limit)
        close = DETECTIONS["close"]
        ask("masks", close, masks=True, tasks=("segm",))
        ask("boxes", close, masks=True, tasks=["bbox"], distributed=False)
        ask("some images", close, images=[2, 5, 3])
        ask("one image", DETECTIONS["perfect"], masks=True, images=[2])
        ask("one class", close, known=known | {"thing_classes": ["thing"]})
        unnamed = {"json_file": known["json_file"]}
        ask("unnamed", [each._replace(label=IDS[each.label]) for each in close], known=unnamed)
        with registered(engine, **known) as dataset:
            answers |= named("nothing", as_arrays(judged(engine("evaluation").COCOEvaluator(dataset), [])))
    return answers


def coco_files(engine):
    """What is left in the output directory, also where there is nothing to judge by."""
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
                pairs = batches(engine, DETECTIONS["close"], masks=True, name=None)
                answers |= named(name, as_arrays(judged(evaluator, pairs)))
            answers[f"{name} results"] = letters((folder / name / "coco_instances_results.json").read_text())
            answers[f"{name} files"] = letters(",".join(sorted(path.name for path in (folder / name).iterdir())))
            predictions = torch.load(folder / name / "instances_predictions.pth", weights_only=True)
            answers[f"{name} predictions"] = letters(json.dumps(predictions)[:5000])
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
    return {"lines": letters("\n".join(lines)), "flat": letters(repr(list(flat))), "verified": np.array(outcomes)}


def loops(engine):
    """A model over 13 batches: what is called in which order, in which mode, what is logged (numbers aside)."""
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

    results, spoken = [], []
    keep = mock.patch.object(kit, "log_every_n_seconds", lambda level, text, n: spoken.append(f"{level} {text} {n}"))
    with log_lines(kit) as lines, keep:
        model = Model()
        run(model, 13, [Recorder("first"), Recorder("silent"), Recorder("second")])
        run(model, 1, Recorder("alone"))
        run(model.eval(), 2, Recorder("silent"))
        run(lambda inputs: inputs, 3, None)
        run(model, 0, Recorder("alone"))
    text = "\n".join([*events, *map(str, map(dict, results)), *spoken, *lines])
    return {"text": letters(re.sub(r"\d+\.\d+|\d+:[\d:.]+", "#", text)), "mode": np.array(model.training)}


SCENARIOS = (voc_results, voc_curves, coco_results, coco_files, texts, loops)
LIVE_ONLY = (voc_ties,)
