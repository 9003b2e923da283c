"""The engine facade: classes and functions of the engine, which is Detectron2 or its stand-in, minid2.

The engine is chosen once per process, when the first name is imported from here:

- an installed ``detectron2`` is used, unless the environment variable ``SSQL_DET_ENGINE`` is ``minid2``;
- a ``detectron2`` that cannot be imported, or is too old, is an error: minid2 never replaces it silently;
- a folder called ``detectron2`` without a package in it does not count as installed.

>>> from ssql_det.d2 import Instances
>>> from ssql_det import d2
>>> d2.engine_name() in ("detectron2", "minid2")
True
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ssql_det.core import console
from ssql_det.core.errors import UserError
from ssql_det.d2_bounds import BOUNDS
from ssql_det.images import reading
from ssql_det.toydata.digits import CLASSES

if TYPE_CHECKING:  # both engines have these names; the types are those of minid2, which is always installed
    from ssql_det.minid2.checkpoint import *
    from ssql_det.minid2.config import *
    from ssql_det.minid2.config import CfgNode
    from ssql_det.minid2.data import *
    from ssql_det.minid2.data.datasets import *
    from ssql_det.minid2.data.detection_utils import *
    from ssql_det.minid2.data.samplers import *
    from ssql_det.minid2.data.transforms import *
    from ssql_det.minid2.engine import *
    from ssql_det.minid2.evaluation import *
    from ssql_det.minid2.layers import *
    from ssql_det.minid2.modeling import *
    from ssql_det.minid2.modeling.backbone.fpn import LastLevelMaxPool
    from ssql_det.minid2.modeling.backbone.resnet import *
    from ssql_det.minid2.modeling.roi_heads import *
    from ssql_det.minid2.solver import *
    from ssql_det.minid2.structures import *
    from ssql_det.minid2.utils import comm
    from ssql_det.minid2.utils.events import *

NODE = "SSQL_DET"  # the config node that this package adds to the engine's config
ENGINE_VARIABLE = "SSQL_DET_ENGINE"
DETECTRON2, MINID2 = "detectron2", "minid2"

_ROOTS = {  # root package of each engine
    DETECTRON2: "detectron2",
    MINID2: "ssql_det.minid2",
}
_NAMES = {  # names to import, by sub-package of the engine
    "checkpoint": ("DetectionCheckpointer",),
    "config": ("CfgNode", "configurable", "get_cfg"),
    "data": (
        *("DatasetCatalog", "DatasetMapper", "MetadataCatalog", "get_detection_dataset_dicts"),
        *("build_detection_test_loader", "build_detection_train_loader"),
    ),
    "data.datasets": ("register_coco_instances", "register_pascal_voc"),
    "data.detection_utils": ("convert_PIL_to_numpy", "read_image"),
    "data.samplers": ("InferenceSampler", "TrainingSampler"),
    "data.transforms": ("ResizeShortestEdge",),
    "engine": ("default_argument_parser", "default_setup", "default_writers"),
    "evaluation": (
        *("COCOEvaluator", "DatasetEvaluator", "DatasetEvaluators", "PascalVOCDetectionEvaluator"),
        *("inference_on_dataset", "print_csv_format", "verify_results"),
    ),
    "layers": ("CNNBlockBase", "Conv2d", "FrozenBatchNorm2d", "ShapeSpec", "get_norm"),
    "modeling": (
        *("BACKBONE_REGISTRY", "META_ARCH_REGISTRY", "ROI_HEADS_REGISTRY", "Backbone", "FPN", "ResNet"),
        *("GeneralizedRCNN", "StandardROIHeads", "build_backbone", "build_model", "detector_postprocess"),
    ),
    "modeling.backbone.fpn": ("LastLevelMaxPool",),
    "modeling.backbone.resnet": ("BasicBlock", "BasicStem", "BottleneckBlock"),
    "modeling.roi_heads": ("FastRCNNOutputLayers", "Res5ROIHeads"),
    "solver": ("build_lr_scheduler", "build_optimizer"),
    "structures": ("BitMasks", "BoxMode", "Boxes", "ImageList", "Instances", "PolygonMasks", "pairwise_iou"),
    "utils": ("comm",),
    "utils.events": (
        *("CommonMetricPrinter", "EventStorage", "JSONWriter", "TensorboardXWriter", "get_event_storage"),
    ),
}
_logger = logging.getLogger(__name__)


@functools.cache
def engine_name() -> str:
    """Choose the engine of this process, ``"detectron2"`` or ``"minid2"``, without importing it."""
    forced = os.environ.get(ENGINE_VARIABLE, "")
    if forced not in ("", *_ROOTS):
        raise UserError(f"{ENGINE_VARIABLE} must be detectron2 or minid2, got {forced!r}")
    if forced == MINID2:
        return MINID2
    spec = importlib.util.find_spec(DETECTRON2)
    if spec is not None and spec.origin is not None:
        return DETECTRON2
    folder = "" if spec is None else next(iter(spec.submodule_search_locations or ()), "")
    reason = f"; {folder} is a folder without a package" if folder else ""
    if forced == DETECTRON2:
        raise UserError(
            f"{ENGINE_VARIABLE}=detectron2, but detectron2 is not installed{reason}; "
            "install it as docs/engine.md describes, or unset the variable"
        )
    if reason:
        _logger.warning("detectron2 is not installed%s: minid2 is used instead", reason)
    return MINID2


def read_config(
    file: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    node_defaults: Mapping[str, Any] | None = None,
) -> CfgNode:
    """Read and freeze a detection config: the engine's defaults, overridden by the file, then by ``KEY VALUE`` pairs.

    ``node_defaults`` are the defaults of the ``SSQL_DET`` node. Each value is checked, see :mod:`ssql_det.d2_bounds`.
    Without a GPU, ``MODEL.DEVICE`` becomes ``cpu``.

    >>> read_config(None, ["SOLVER.BASE_LR", "0.01"], {"EVAL_BITS": ["4w4a"]}).SSQL_DET.EVAL_BITS
    ['4w4a']
    """
    from ssql_det.core.config import load_config
    from ssql_det.core.devices import resolve_device
    from ssql_det.core.registry import import_config_plugins

    import_config_plugins(f"{NODE}.PLUGINS", file, overrides)
    defaults = get_default_config(node_defaults or {})
    cfg = load_config(defaults, file, overrides, map_former_keys(node_defaults or {}), BOUNDS)
    device = str(resolve_device(cfg.MODEL.DEVICE, "MODEL.DEVICE"))
    if device != cfg.MODEL.DEVICE:
        cfg.defrost()
        cfg.MODEL.DEVICE = device
        cfg.freeze()
    return cfg


def get_default_config(node_defaults: Mapping[str, Any]) -> CfgNode:
    """The engine's default config, with the ``SSQL_DET`` node."""
    names = _load_names()
    defaults: CfgNode = names["get_cfg"]()
    defaults[NODE] = names["CfgNode"](dict(node_defaults))
    return defaults


def map_former_keys(node_defaults: Mapping[str, Any]) -> Mapping[str, Sequence[str]]:
    """Map the keys of earlier versions, which called the node ``SSQL``, to the current keys."""
    from ssql_det.core.config import config_keys

    return {f"SSQL.{key}": [f"{NODE}.{key}"] for key in config_keys(_load_names()["CfgNode"](dict(node_defaults)))}


def is_raised_by_engine(failure: Exception) -> bool:
    """Whether the engine or fvcore itself raised the exception, and not code that it called, such as a plug-in."""
    *_, (frame, _) = traceback.walk_tb(failure.__traceback__)
    return str(frame.f_globals.get("__name__")).startswith((f"{_ROOTS[engine_name()]}.", "fvcore."))


def set_up_logging(level: int = logging.INFO) -> None:
    """Send the log lines of this package, of Detectron2 and of fvcore to the same handler, each line once.

    Of the engine's and fvcore's lines only warnings and training progress are shown, unless ``--verbose`` is given.
    """
    console.set_up_logging(level, ("ssql_det", DETECTRON2, "fvcore"))
    levels = dict.fromkeys((*_ROOTS.values(), "fvcore"), logging.WARNING)
    console.quiet_loggers(levels | {f"{root}.utils.events": level for root in _ROOTS.values()})


def create_local_group() -> None:
    """Create the engine's process group of the ranks on this machine, unless it exists. Every rank must call it.

    ``LOCAL_WORLD_SIZE``, which ``torchrun`` sets, is the number of these ranks.
    """
    comm = _load_names()["comm"]
    if comm.get_world_size() > 1 and comm._LOCAL_PROCESS_GROUP is None:
        local_world_size = os.environ.get("LOCAL_WORLD_SIZE")
        if local_world_size is None:
            raise UserError("LOCAL_WORLD_SIZE is not set: start several processes with torchrun or --num-gpus")
        comm.create_local_process_group(int(local_world_size))


def register_toy_data() -> None:
    """Register the data of ``ssql-det make-toy-data`` under ``$DETECTRON2_DATASETS`` as ``toy_voc_*``, ``toy_coco_*``.

    The names differ from the engine's ``voc_*`` and ``coco_*``, because toy data have other classes. Names that are
    already registered are not changed.
    """
    root = os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    names = _load_names()
    catalog, metadata = names["DatasetCatalog"], names["MetadataCatalog"]
    for split in ("trainval", "test"):
        name = f"toy_voc_2007_{split}"
        if name not in catalog:
            names["register_pascal_voc"](name, os.path.join(root, "VOC2007"), split, 2007, CLASSES)
            metadata.get(name).evaluator_type = "pascal_voc"
    for split in ("train", "val"):
        name = f"toy_coco_2017_{split}"
        if name not in catalog:
            annotations = os.path.join(root, "coco", "annotations", f"instances_{split}2017.json")
            images = os.path.join(root, "coco", f"{split}2017")
            names["register_coco_instances"](name, {}, annotations, images)
            metadata.get(name).thing_classes = list(CLASSES)


def __getattr__(name: str) -> Any:
    """Import all names of ``_NAMES`` from the engine when the first one is used."""
    if not any(name in names for names in _NAMES.values()):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals().update(_load_names())
    register_toy_data()
    return globals()[name]


def __dir__() -> Iterator[str]:
    yield from globals()
    for names in _NAMES.values():
        yield from names


@functools.cache
def _load_names() -> dict[str, Any]:
    """Import all names at once, so that a missing one fails at startup and not in the middle of a run."""
    loaded, missing = {}, []
    for package, names in _NAMES.items():
        module = _import_package(package, names)
        for name in names:
            if hasattr(module, name):
                loaded[name] = getattr(module, name)
            else:
                missing.append(f"{package}.{name}")
    if missing:
        raise UserError(
            f"{engine_name()} is too old: it lacks {', '.join(missing)}; install the current version as docs/engine.md "
            f"describes, or set {ENGINE_VARIABLE}=minid2"
        )
    detection_utils = _import_package("data.detection_utils", ("read_image",))  # where its mapper finds it
    loaded["read_image"] = functools.partial(_read_image, loaded["read_image"], loaded["convert_PIL_to_numpy"])
    detection_utils.read_image = loaded["read_image"]
    if engine_name() == MINID2:  # without arbitrary unpickling; Detectron2's own reader is never used
        from ssql_det.core.unpickler import read_tensors

        loaded["DetectionCheckpointer"].read_file = staticmethod(read_tensors)
    return loaded


def _read_image(
    read: Callable[[str], Any], convert: Callable[..., Any], file_name: str, format: str | None = None
) -> Any:
    """The engine's ``read_image`` with this package's reader: both engines and all commands read alike.

    Only without a format, for the pixels as they are in the file, it is the engine's own, ``read``.
    """
    if format is None:
        return read(file_name)
    if not os.path.isfile(file_name):
        raise FileNotFoundError(f"the image {file_name} is missing or not a regular file")
    try:
        image = reading.read_image(file_name)
    except Exception as failure:  # each decoder raises its own
        raise ValueError(f"the image {file_name} cannot be decoded: {failure}") from failure
    return convert(image, format)


def _import_package(package: str, names: Sequence[str]) -> Any:
    """Import a sub-package of the engine, with the modules among ``names``."""
    name = f"{_ROOTS[engine_name()]}.{package}"
    try:
        return __import__(name, fromlist=names)
    except Exception as failure:
        if engine_name() == MINID2:
            raise
        spec = importlib.util.find_spec(DETECTRON2)
        raise UserError(
            f"detectron2 is installed ({spec.origin if spec else '?'}) but {name} cannot be imported "
            f"({type(failure).__name__}: {failure}); repair it, or set {ENGINE_VARIABLE}=minid2"
        ) from failure
