"""Evaluation in each of two processes, in a separate file, which the processes can import."""

import importlib
import json

from support.minid2.evaluation_data import DETECTIONS, make_batches, registered, run_evaluator

from ssql_det.core.distributed import rank


def evaluate_images(root, voc, coco, folder, images):
    """The results of all evaluators, to which this process passes the given images."""

    def engine(package):
        return importlib.import_module(f"{root}.{package}")

    kit, results = engine("evaluation"), []
    for year in (2007, 2012):
        with registered(engine, "half voc", year=year, **voc) as dataset:
            pairs = make_batches(engine, DETECTIONS["far"], images=images)
            results.append(run_evaluator(kit.PascalVOCDetectionEvaluator(dataset), pairs))
    with registered(engine, "half coco", **coco) as dataset:
        evaluator = kit.COCOEvaluator(dataset, output_dir=str(folder), use_fast_impl=False)
        results.append(
            run_evaluator(evaluator, make_batches(engine, DETECTIONS["far"], masks=True, images=images, name=None))
        )
    return results


def run(root, voc, coco, folder, shares):
    """Evaluate this rank's share of the images; ``shares`` has, by name, the images of each rank."""
    for name, images in shares.items():
        (folder / name).mkdir(exist_ok=True)
        results = evaluate_images(root, voc, coco, folder / name, images[rank()])
        (folder / f"{name} {rank()}.json").write_text(json.dumps(results))
