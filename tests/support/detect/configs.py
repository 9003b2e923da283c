"""Small versions of the repository's configs, and detectors and images for tests."""

from pathlib import Path

import torch
import yaml
from torch import nn

import ssql_det
from ssql_det.d2 import FrozenBatchNorm2d, read_config
from ssql_det.detect import SSQL_DET_DEFAULTS

CONFIGS = Path(ssql_det.__file__).parents[1] / "configs" / "detection"
C4, FPN = "toy_voc_narrow_c4.yaml", "toy_coco_narrow_fpn.yaml"
PERIOD, LAST = 3, 8  # the checkpoint period and the last iteration of every shrunk config
_TINY = {
    "MODEL.DEVICE": "cpu",
    "SEED": 3,
    "INPUT.MIN_SIZE_TRAIN": (64, 72),
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.RANDOM_FLIP": "horizontal",
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 100,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 30,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 100,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 12,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 8,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "TEST.DETECTIONS_PER_IMAGE": 20,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.BASE_LR": 0.005,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
    "SOLVER.MAX_ITER": LAST + 1,
    "SOLVER.STEPS": (6,),
    "SOLVER.WARMUP_ITERS": 3,
    "SOLVER.CHECKPOINT_PERIOD": PERIOD,
    "TEST.PRECISE_BN.NUM_ITER": 2,
}


def as_overrides(keys):
    """KEY VALUE pairs of a command line."""
    return [str(each) for key, value in keys.items() for each in (key, value)]


def tiny_overrides(**keys):
    """KEY VALUE pairs that shrink a training; ``SOLVER__MAX_ITER=4`` is ``SOLVER.MAX_ITER 4``."""
    return as_overrides(_TINY | {key.replace("__", "."): value for key, value in keys.items()})


def write_tiny_config(path, name, **keys):
    """Write them as a file that inherits from a config of the repository."""
    keys = {key: list(value) if isinstance(value, tuple) else value for key, value in (_TINY | keys).items()}
    path.write_text(yaml.safe_dump({"_BASE_": str(CONFIGS / name), **keys}))


def config(name, out="", **keys):
    """A config of the repository, shrunk."""
    return read_config(CONFIGS / name, tiny_overrides(OUTPUT_DIR=out, **keys), SSQL_DET_DEFAULTS)


def full_config(name, **keys):
    """A config of the repository with only these keys changed."""
    keys = {"MODEL.DEVICE": "cpu"} | {key.replace("__", "."): value for key, value in keys.items()}
    return read_config(CONFIGS / name, as_overrides(keys), SSQL_DET_DEFAULTS)


def randomize_norms(model, seed=0):
    """The network with random norms and biases, as after a training."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)):
            module.running_mean.data.normal_(0, 0.2, generator=generator)
            module.running_var.data.uniform_(0.5, 2, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.2, generator=generator)
        elif isinstance(getattr(module, "bias", None), nn.Parameter):
            module.bias.data.normal_(0, 0.1, generator=generator)
    return model.eval()


def select_boxes_in_float32(model):
    """A float64 detector that selects boxes in float32, the type of the engine's boxes."""
    generator, predictor = model.proposal_generator, model.roi_heads.box_predictor
    predict_proposals, inference = generator.predict_proposals, predictor.inference

    def chosen_proposals(anchors, logits, deltas, sizes):
        return predict_proposals(anchors, [each.float() for each in logits], deltas, sizes)

    def chosen_detections(predictions, proposed):
        return inference(tuple(each.float() for each in predictions), proposed)

    generator.predict_proposals, predictor.inference = chosen_proposals, chosen_detections
    return model


def random_images(count, sides=((90, 96), (96, 80), (70, 96)), seed=0):
    """Smooth random images of several sizes, as a dataset mapper returns them."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for index in range(count):
        height, width = sides[index % len(sides)]
        coarse = torch.rand(1, 3, 6, 6, generator=generator, dtype=torch.float64) * 255
        image = nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
        found.append({"image": image.round().to(torch.uint8), "height": height, "width": width})
    return found
