"""Scenarios of training, from files to weights in float64, which run in both engines; see ``record_answers.py``."""

import tempfile
from pathlib import Path

import numpy as np
from support.minid2.detectors import NORMED
from support.minid2.modules import add_prefix, nms_of_doubles, seed_weights, small_config, summarize_tensors

from ssql_det.toydata.dataset import ToyDataSettings, make_toy_data
from ssql_det.toydata.digits import CLASSES

STEPS = 20
trained_steps = STEPS  # fewer where only those are compared; the learning rates are of all steps
DETECTORS = {
    "FPN": ("coco", ["MODEL.FPN.NORM", "BN", "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"]),
    "C4": ("voc", ["SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.STEPS", (12,)]),
}


def register(engine, toy):
    """Register the toy data under names that no engine has, in place of an earlier registration."""
    kit = engine("data.datasets")
    catalog, metadata = engine("data").DatasetCatalog, engine("data").MetadataCatalog
    for name in ("steps_coco", "steps_voc"):
        if name in catalog:
            catalog.remove(name)
            metadata.remove(name)
    coco = toy / "coco"
    annotations = str(coco / "annotations/instances_train2017.json")
    kit.register_coco_instances("steps_coco", {}, annotations, str(coco / "train2017"))
    kit.register_pascal_voc("steps_voc", str(toy / "VOC2007"), "trainval", 2007, CLASSES)


def first_steps(engine):
    answers = {}
    with tempfile.TemporaryDirectory() as folder:
        toy = make_toy_data(Path(folder) / "toy", ToyDataSettings(scenes=24, crops=5, seed=2), workers=1)
        register(engine, toy)
        for kind, (data, keys) in DETECTORS.items():
            cfg = small_config(engine, kind)
            cfg.merge_from_list([*NORMED, "MODEL.ROI_HEADS.NUM_CLASSES", 10, "SEED", 3, "DATALOADER.NUM_WORKERS", 0])
            cfg.merge_from_list(["DATASETS.TRAIN", (f"steps_{data}",), "INPUT.MIN_SIZE_TRAIN", (64, 80, 96)])
            cfg.merge_from_list(["MODEL.RPN.POST_NMS_TOPK_TRAIN", 40, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16])
            cfg.merge_from_list(["SOLVER.IMS_PER_BATCH", 2, "SOLVER.BASE_LR", 0.01, "SOLVER.MAX_ITER", STEPS])
            cfg.merge_from_list(["SOLVER.WARMUP_ITERS", 4, *keys])
            answers |= add_prefix(kind, run(engine, cfg))
    return answers


def run(engine, cfg):
    """Losses and learning rates of every step, and a summary of how the weights changed."""
    engine("utils.env").seed_all_rng(5)
    model = seed_weights(engine("modeling").build_model(cfg))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = engine("solver").build_optimizer(cfg, model)
    schedule = engine("solver").build_lr_scheduler(cfg, optimizer)
    steps, rates = [], []
    with engine("utils.events").EventStorage() as storage, nms_of_doubles():
        batches = iter(engine("data").build_detection_train_loader(cfg))
        for step in range(STEPS):
            if step < trained_steps:
                losses = model.train()(next(batches))
                optimizer.zero_grad()
                sum(losses.values()).backward()
                optimizer.step()
                steps.append([losses[name].item() for name in sorted(losses)])
            rates.append(optimizer.param_groups[0]["lr"])
            schedule.step()
            storage.step()
    changes = [value - before[name] for name, value in model.state_dict().items() if value.dtype.is_floating_point]
    return {"losses": np.array(steps), "rates": np.array(rates), **summarize_tensors(changes)}


SCENARIOS = (first_steps,)
