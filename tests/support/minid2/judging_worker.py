"""Evaluation in each of two processes: a file of its own, so that they can import it."""

import importlib
import json

from support.minid2.judged_data import DETECTIONS, batches, judged, registered

from ssql_det.core.distributed import rank


def judge(root, voc, coco, folder, images):
    """The results of all evaluators of the images that this process has seen."""

    def engine(package):
        return importlib.import_module(f"{root}.{package}")

    kit, results = engine("evaluation"), []
    for year in (2007, 2012):
        with registered(engine, "half voc", year=year, **voc) as dataset:
            pairs = batches(engine, DETECTIONS["far"], images=images)
            results.append(judged(kit.PascalVOCDetectionEvaluator(dataset), pairs))
    with registered(engine, "half coco", **coco) as dataset:
        evaluator = kit.COCOEvaluator(dataset, output_dir=str(folder), use_fast_impl=False)
        results.append(judged(evaluator, batches(engine, DETECTIONS["far"], masks=True, images=images, name=None)))
    return results


def run(root, voc, coco, folder, shares):
    """This rank's share of the images."""
    for name, images in shares.items():
        (folder / name).mkdir(exist_ok=True)
        results = judge(root, voc, coco, folder / name, images[rank()])
        (folder / f"{name} {rank()}.json").write_text(json.dumps(results))
