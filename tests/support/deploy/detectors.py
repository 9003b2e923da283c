"""Small detectors of every kind that can be exported, with seeded weights that detect."""

import numpy as np
import torch
from PIL import Image
from support.detect.configs import C4, FPN, config
from support.minid2.modules import seed_weights

from ssql_det.convert import Checkpoint, Metadata, SourceFile
from ssql_det.deploy.exact_selection import exact_selection
from ssql_det.deploy.graph import DetectorGraph
from ssql_det.deploy.metadata import InputRule
from ssql_det.deploy.postprocess import RawDetections, finish_detections
from ssql_det.detect.detector import build_detector
from ssql_det.images.reading import to_rgb_array

SOURCE = SourceFile("weights.pth", "a" * 64, "ssql_det")
CHECKPOINT = Checkpoint("narrow_resnet", {}, Metadata(), source=SOURCE)
KINDS = {
    "C4": (C4, {}),
    "C4 with masks": (C4, {"MODEL.MASK_ON": True, "MODEL.ROI_MASK_HEAD.CONV_DIM": 8}),
    "the engine's own C4": (C4, {"MODEL.ROI_HEADS.NAME": "Res5ROIHeads", "MODEL.RESNETS.RES2_OUT_CHANNELS": 24}),
    "FPN with masks": (FPN, {}),
    "FPN": (FPN, {"MODEL.MASK_ON": False}),
    "class-agnostic": (
        FPN,
        {"MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": True},
    ),
    "one class": (FPN, {"MODEL.ROI_HEADS.NUM_CLASSES": 1}),
    "all detections": (FPN, {"TEST.DETECTIONS_PER_IMAGE": -1}),
    "more boxes than anchors": (FPN, {"MODEL.RPN.PRE_NMS_TOPK_TEST": 2000, "MODEL.RPN.POST_NMS_TOPK_TEST": 1000}),
    "large boxes": (FPN, {"MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 20}),
    "one region": (FPN, {"MODEL.RPN.POST_NMS_TOPK_TEST": 1}),
    "no region": (FPN, {"MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 2000}),
    "no detection": (FPN, {"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 1.0}),
    "other pooling": (
        FPN,
        {"MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlign", "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 2},
    ),
    "anchors off the centre": (FPN, {"MODEL.ANCHOR_GENERATOR.OFFSET": 0.3}),
    "convs and group norms": (
        FPN,
        {
            "MODEL.RPN.CONV_DIMS": [8, -1],
            "MODEL.FPN.NORM": "LN",
            "MODEL.ROI_MASK_HEAD.NORM": "BN",
            "MODEL.ROI_BOX_HEAD.NUM_CONV": 1,
            "MODEL.ROI_BOX_HEAD.CONV_DIM": 32,
            "MODEL.ROI_BOX_HEAD.NORM": "GN",
        },
    ),
    "frozen norms": (FPN, {"MODEL.RESNETS.NORM": "FrozenBN", "MODEL.FPN.NORM": "", "MODEL.FPN.FUSE_TYPE": "avg"}),
    "synchronized norms": (C4, {"MODEL.RESNETS.NORM": "SyncBN", "SSQL_DET.EXTRA_NORM": "SyncBN"}),
}


def make_detector(kind, **keys):
    """The config and the detector."""
    name, changes = KINDS[kind]
    cfg = config(name, **changes | keys)
    torch.manual_seed(0)
    return cfg, seed_weights(build_detector(cfg)).float().eval()


class GraphDetector:
    """The interface of ``deploy.Detector``, computed by torch; ``change`` is applied to what the network gives, and
    ``change_finished`` to what is made of it."""

    def __init__(self, cfg, model, change=lambda raw: raw, change_finished=lambda found: found):
        self.graph, self.change, self.change_finished = DetectorGraph(model), change, change_finished
        self.rule = InputRule(cfg.INPUT.FORMAT, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        self.classes = tuple(map(str, range(cfg.MODEL.ROI_HEADS.NUM_CLASSES)))

    def prepare(self, image):
        pixels = to_rgb_array(image)
        height, width = self.rule.get_size(*pixels.shape[:2])
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))

    @torch.no_grad()
    def detect_resized(self, resized):
        with exact_selection():
            outputs = [each.numpy() for each in self.graph(torch.from_numpy(resized.copy()))]
        masks = outputs[3] if len(outputs) == 4 else None
        return self.change(RawDetections(*outputs[:3], masks, resized.shape[:2]))

    def finish(self, raw, height, width):
        return self.change_finished(finish_detections(raw, height, width, self.classes))
