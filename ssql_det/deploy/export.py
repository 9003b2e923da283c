"""Write a detector or a backbone as one ONNX file, with its metadata."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssql_det.convert import IMAGENET, Checkpoint
from ssql_det.core.errors import UserError
from ssql_det.core.files import atomic_write
from ssql_det.core.rows import package_versions
from ssql_det.d2 import CfgNode
from ssql_det.deploy.graph import BackboneGraph, DetectorGraph
from ssql_det.deploy.integers import computing_integers
from ssql_det.deploy.metadata import METADATA_KEY, InputRule, ModelMetadata
from ssql_det.deploy.onnx_passes import keep_grids, pack_weights
from ssql_det.deploy.operators import make_translations
from ssql_det.deploy.session import INPUT_NAME
from ssql_det.deploy.tracing import make_traceable, translating_failures
from ssql_det.detect.predict import get_category_ids, get_class_names
from ssql_det.pretrain.checkpoint import PretrainedBackbone
from ssql_det.quant import Bits, Quantization
from ssql_det.quant.bits import format_bits
from ssql_det.quant.integer_form import IntegerForm, compute_integer_form

OPSET = 18
_EXAMPLE_SIZE = (128, 160)  # of the image that a detector is traced with; the file takes images of any size
_MAX_BYTES = 2**31 - 1  # of a file in protobuf's format
_SHAPES = {"boxes": ("detections", 4), "scores": ("detections",), "classes": ("detections",)}


@dataclass(frozen=True)
class Integers:
    """A detector's integers at a bit-width, and how they were found, as the file's metadata say."""

    form: IntegerForm
    bits: str
    scheme: str
    scope: str


def make_integers(
    quantization: Quantization, bits: Bits, scope: str, overrides: Mapping[str, Bits] | None = None
) -> Integers:
    """The integers of a calibrated quantization, whose points are those of ``scope``, with its repairs."""
    form = compute_integer_form(quantization, bits, overrides)
    return Integers(form, format_bits(bits, overrides), str(quantization.scheme), scope)


def export_detector(
    cfg: CfgNode,
    model: nn.Module,
    checkpoint: Checkpoint,
    config_label: str,
    path: Path,
    integers: Integers | None = None,
) -> list[str]:
    """Write a detector whose weights are those of ``checkpoint``, in float or in integers; ``model`` is not changed.

    Return the points of the quantized activations, in the order of a pass, see :func:`computing_integers`.
    """
    check_installed()
    network = make_traceable(model, folded=integers is None)
    graph = DetectorGraph(network)
    shapes: dict[str, Sequence[str | int]] = dict(_SHAPES)
    if "masks" in graph.output_names:
        shapes["masks"] = ("detections", "side", "side")
    rule = InputRule(cfg.INPUT.FORMAT, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    classes, ids = tuple(get_class_names(cfg)), tuple(get_category_ids(cfg))
    metadata = ModelMetadata("detector", classes, ids, rule, **_describe(checkpoint, config_label, integers))
    with ExitStack() as stack:
        keys = [] if integers is None else stack.enter_context(computing_integers(network, integers.form))
        export_graph(graph, shapes, metadata, path, _EXAMPLE_SIZE, torch.export.Dim.DYNAMIC)
    return keys


def make_backbone_graph(pretrained: PretrainedBackbone) -> BackboneGraph:
    """The graph of a pretrained backbone, on the CPU in evaluation mode."""
    return BackboneGraph(pretrained.backbone.module.cpu().eval(), pretrained.metadata.input or IMAGENET)


def export_backbone(
    pretrained: PretrainedBackbone, size: int, path: Path, integers: Integers | None = None
) -> list[str]:
    """Write a pretrained backbone, in float or in integers; the backbone is not changed.

    The file takes images of any size if the network does, else those of ``size`` x ``size`` pixels. Returns the points
    of the quantized activations, as :func:`export_detector`.
    """
    check_installed()
    graph = make_backbone_graph(replace(pretrained, backbone=copy.deepcopy(pretrained.backbone)))
    with torch.no_grad():
        features = graph(torch.zeros(size, size, 3, dtype=torch.uint8))
    if not isinstance(features, torch.Tensor):
        raise UserError(f"{pretrained.network} gives no single tensor of features, so it cannot be exported")
    channels = (pretrained.metadata.input or IMAGENET).channels
    metadata = ModelMetadata("backbone", (), (), InputRule(channels, 0, 0), **_describe(pretrained, integers=integers))
    with ExitStack() as stack:
        keys = [] if integers is None else stack.enter_context(computing_integers(graph.backbone, integers.form))
        export_graph(graph, {"features": features.shape}, metadata, path, (size, size), torch.export.Dim.AUTO)
    return keys


def _describe(
    source: Checkpoint | PretrainedBackbone, config_label: str = "", integers: Integers | None = None
) -> dict[str, Any]:
    import onnx

    file = source.source
    weights = {} if file is None else {"file": file.name, "sha256": file.sha256}
    return {
        "bits": str(Bits.FP) if integers is None else integers.bits,
        "scheme": "" if integers is None else integers.scheme,
        "scope": "" if integers is None else integers.scope,
        "weights": weights,
        "config": config_label,
        "versions": {**package_versions(), "onnx": onnx.__version__},
    }


def export_graph(
    graph: nn.Module,
    outputs: Mapping[str, Sequence[str | int]],
    metadata: ModelMetadata,
    path: Path,
    example_size: tuple[int, int],
    sides: Any,
) -> None:
    """Write a graph on the CPU to ``path``.

    ``outputs`` has the names of its outputs, in their order, and of their dimensions. ``example_size`` is the (height,
    width) of the image with which the graph is traced; ``sides`` says whether the file takes other sizes, as torch's
    ``Dim.DYNAMIC``, or decides it, as ``Dim.AUTO``.
    """
    image = torch.zeros(*example_size, 3, dtype=torch.uint8)
    with torch.no_grad(), translating_failures(graph):
        exported = torch.export.export(graph.eval(), (image,), dynamic_shapes=({0: sides, 1: sides},), strict=False)
        program: Any = torch.onnx.export(
            exported,
            dynamo=True,
            input_names=[INPUT_NAME],
            output_names=list(outputs),
            opset_version=OPSET,
            custom_translation_table=make_translations(),
            verbose=False,
        )
    model = program.model_proto
    _set_dimensions(model.graph.input[0], _name_sides(model.graph.input[0]))
    for value, dimensions in zip(model.graph.output, outputs.values(), strict=True):
        _set_dimensions(value, dimensions)
    keep_grids(model)
    pack_weights(model)
    _remove_traces(model.graph)
    model.metadata_props.add(key=METADATA_KEY, value=metadata.to_json())
    if model.ByteSize() > _MAX_BYTES:
        raise UserError(f"the network has {model.ByteSize() / 1e9:.1f} GB; an ONNX file has at most 2 GB")
    with atomic_write(path) as file:
        file.write(model.SerializeToString(deterministic=True))


def _remove_traces(graph: Any) -> None:
    """Remove how the graph was traced, with paths of this machine, and shapes in torch's symbols."""
    del graph.value_info[:]  # runtimes infer them again
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def check_installed() -> None:
    """Raise a ``UserError`` if a package that exporting needs is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as failure:
        raise UserError(f"exporting needs {failure.name}: pip install 'ssql_det[deploy]'") from failure


def _name_sides(image: Any) -> list[str | int]:
    """The dimensions of the input; those that the network fixes, torch has made numbers, or names such as "224"."""
    dimensions = image.type.tensor_type.shape.dim
    fixed = [each.dim_value or (int(each.dim_param) if each.dim_param.isdecimal() else 0) for each in dimensions]
    return [value or name for value, name in zip(fixed, ("height", "width", "channels"), strict=True)]


def _set_dimensions(value: Any, dimensions: Sequence[str | int]) -> None:
    shape = value.type.tensor_type.shape
    del shape.dim[:]
    for each in dimensions:
        shape.dim.add(**({"dim_param": each} if isinstance(each, str) else {"dim_value": each}))
