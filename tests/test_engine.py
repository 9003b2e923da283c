"""Two detectors of the engine from data to results, through the engine facade: data sets by name,
mapper and loader, optimizer and schedule, writers, checkpoint, evaluation."""

import json
import math

import pytest
import torch
from support.toy_datasets import toy_names_at

from ssql_det import d2

pytestmark = pytest.mark.slow

ITERATIONS = 30
FPN = {
    "BACKBONE": {"NAME": "build_resnet_fpn_backbone"},
    "RESNETS": {"OUT_FEATURES": ["res2", "res3", "res4", "res5"]},
    "FPN": {"IN_FEATURES": ["res2", "res3", "res4", "res5"], "OUT_CHANNELS": 32},
    "ANCHOR_GENERATOR": {"SIZES": [[16], [32], [64], [128], [256]]},
    "RPN": {"IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"]},
    "ROI_HEADS": {"NAME": "StandardROIHeads", "IN_FEATURES": ["p2", "p3", "p4", "p5"]},
    "ROI_BOX_HEAD": {"NAME": "FastRCNNConvFCHead", "NUM_FC": 2, "FC_DIM": 64, "POOLER_RESOLUTION": 7},
    "ROI_MASK_HEAD": {"NAME": "MaskRCNNConvUpsampleHead", "NUM_CONV": 4, "CONV_DIM": 32, "POOLER_RESOLUTION": 14},
    "MASK_ON": True,
}
SMALL = {
    "ROI_HEADS": {"NUM_CLASSES": 10, "BATCH_SIZE_PER_IMAGE": 8},
    "RPN": {"POST_NMS_TOPK_TRAIN": 50, "POST_NMS_TOPK_TEST": 20, "PRE_NMS_TOPK_TEST": 200},
    "RESNETS": {"NORM": "BN", "STEM_OUT_CHANNELS": 16, "RES2_OUT_CHANNELS": 64, "WIDTH_PER_GROUP": 16},  # a quarter
    "BACKBONE": {"FREEZE_AT": 0},
}
DETECTORS = {
    "R50-C4": ({"ANCHOR_GENERATOR": {"SIZES": [[16, 32, 64, 128]]}}, "toy_voc_2007_trainval", "toy_voc_2007_test"),
    "Mask R50-FPN": (FPN, "toy_coco_2017_train", "toy_coco_2017_val"),
}


@pytest.fixture(scope="module", autouse=True)
def toy_data_in_place(toy):
    """The toy names, registered again under the folder that was just made."""
    with toy_names_at(toy):
        yield


def config(name, out):
    model, train, test = DETECTORS[name]
    cfg = d2.get_cfg()
    for part in (model, SMALL, {"DEVICE": "cpu", "PIXEL_STD": [57.0, 57.0, 57.0]}):
        cfg.merge_from_other_cfg(d2.CfgNode({"MODEL": part}))
    cfg.merge_from_list(["DATASETS.TRAIN", (train,), "DATASETS.TEST", (test,), "OUTPUT_DIR", str(out), "SEED", 1])
    cfg.merge_from_list(["INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64, "DATALOADER.NUM_WORKERS", 0])
    cfg.merge_from_list(["SOLVER.MAX_ITER", ITERATIONS, "SOLVER.STEPS", (20,), "SOLVER.IMS_PER_BATCH", 2])
    cfg.merge_from_list(["SOLVER.BASE_LR", 0.002, "SOLVER.WARMUP_ITERS", 5])
    cfg.freeze()
    return cfg


def train(cfg, model):
    optimizer = d2.build_optimizer(cfg, model)
    schedule = d2.build_lr_scheduler(cfg, optimizer)
    writers = d2.default_writers(cfg.OUTPUT_DIR, ITERATIONS)
    totals = []
    with d2.EventStorage() as storage:
        for batch, _ in zip(d2.build_detection_train_loader(cfg), range(ITERATIONS), strict=False):
            losses = model.train()(batch)
            total = sum(losses.values())
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            storage.put_scalars(total_loss=total.item(), **{name: loss.item() for name, loss in losses.items()})
            storage.put_scalar("lr", optimizer.param_groups[0]["lr"], smoothing_hint=False)
            schedule.step()
            totals.append(total.item())
            if storage.iter % 10 == 9:
                for writer in writers:
                    writer.write()
            storage.step()
    for writer in writers:
        writer.close()
    return totals


def evaluator(cfg):
    (name,) = cfg.DATASETS.TEST
    if d2.MetadataCatalog.get(name).evaluator_type == "pascal_voc":
        return d2.PascalVOCDetectionEvaluator(name)
    return d2.COCOEvaluator(name, output_dir=cfg.OUTPUT_DIR)


@pytest.mark.parametrize("name", DETECTORS)
def test_train_save_load_evaluate(name, tmp_path):
    cfg = config(name, tmp_path)
    torch.manual_seed(0)
    model = d2.build_model(cfg)
    totals = train(cfg, model)
    assert all(map(math.isfinite, totals))
    assert sum(totals[-10:]) < sum(totals[:10])  # it learns

    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [9, 19, 29]
    assert lines[-1]["lr"] == pytest.approx(0.0002)
    assert any(path.name.startswith("events.out") for path in tmp_path.iterdir())

    d2.DetectionCheckpointer(model, str(tmp_path)).save("last")
    again = d2.build_model(cfg)
    d2.DetectionCheckpointer(again, str(tmp_path)).resume_or_load("", resume=True)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items())

    (test,) = cfg.DATASETS.TEST
    results = d2.inference_on_dataset(again, d2.build_detection_test_loader(cfg, test), evaluator(cfg))
    assert list(results) == (["bbox", "segm"] if cfg.MODEL.MASK_ON else ["bbox"])
    assert all(0 <= task["AP"] <= 100 for task in results.values())
