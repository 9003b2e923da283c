"""Write a detector's or a backbone's graph as one ONNX file, with its metadata."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssql_det.core.errors import UserError
from ssql_det.core.files import atomic_write
from ssql_det.deploy.metadata import METADATA_KEY, ModelMetadata
from ssql_det.deploy.operators import make_translations

INPUT_NAME = "image"
OPSET = 18
_EXAMPLE_SIZE = (128, 160)  # of the image that the graph is traced with; the file takes images of any size
_MAX_BYTES = 2**31 - 1  # of a file in protobuf's format


def export_graph(
    graph: nn.Module, outputs: Mapping[str, Sequence[str | int]], metadata: ModelMetadata, path: Path
) -> None:
    """Write a :class:`DetectorGraph` or a :class:`BackboneGraph` on the CPU, in evaluation mode, to ``path``.

    ``outputs`` has the names of the graph's outputs and of their dimensions. Norms are folded into convs.
    """
    check_installed()
    image = torch.zeros(*_EXAMPLE_SIZE, 3, dtype=torch.uint8)
    sides = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with torch.no_grad(), _quiet():
        exported = torch.export.export(graph.eval(), (image,), dynamic_shapes=(sides,), strict=False)
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
    _set_dimensions(model.graph.input[0], ("height", "width", 3))
    for value, dimensions in zip(model.graph.output, outputs.values(), strict=True):
        _set_dimensions(value, dimensions)
    for node in model.graph.node:  # how it was traced, with paths of this machine
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    del model.graph.value_info[:]  # shapes in torch's symbols, which runtimes infer again
    model.metadata_props.add(key=METADATA_KEY, value=metadata.to_json())
    if model.ByteSize() > _MAX_BYTES:
        raise UserError(f"the network has {model.ByteSize() / 1e9:.1f} GB; an ONNX file has at most 2 GB")
    with atomic_write(path) as file:
        file.write(model.SerializeToString(deterministic=True))


def check_installed() -> None:
    """Raise a ``UserError`` if a package that exporting needs is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as failure:
        raise UserError(f"exporting needs {failure.name}: pip install 'ssql_det[deploy]'") from failure


def _set_dimensions(value: Any, dimensions: Sequence[str | int]) -> None:
    shape = value.type.tensor_type.shape
    del shape.dim[:]
    for each in dimensions:
        shape.dim.add(**({"dim_param": each} if isinstance(each, str) else {"dim_value": each}))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's warnings, none of which a user can do something about."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
