"""Evaluation in each of two processes: a file of its own, so that they can import it."""

import importlib
import json

from minid2.judged_data import DETECTIONS, batches, judged, registered

from ssql_det.core.ranks import barrier, rank


def judge(root, voc, coco, folder, images):
    """The results of both evaluators of the images that this process has seen."""

    def engine(package):
        return importlib.import_module(f"{root}.{package}")

    kit = engine("evaluation")
    with registered(engine, "half voc", **voc) as dataset:
        boxes = judged(kit.PascalVOCDetectionEvaluator(dataset), batches(engine, DETECTIONS["far"], images=images))
    with registered(engine, "half coco", **coco) as dataset:
        evaluator = kit.COCOEvaluator(dataset, output_dir=str(folder), use_fast_impl=False)
        masks = judged(evaluator, batches(engine, DETECTIONS["far"], masks=True, images=images, name=None))
    return [boxes, masks]


def run(root, voc, coco, folder, shares):
    """This rank's share of the images."""
    for name, images in shares.items():
        (folder / name).mkdir(exist_ok=True)
        results = judge(root, voc, coco, folder / name, images[rank()])
        (folder / f"{name} {rank()}.json").write_text(json.dumps(results))
    barrier()  # a rank that leaves while gloo's thread still holds what it has sent may abort
