"""An exported detector, run by OpenVINO on the CPU, in place of onnxruntime. Imports no torch."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssql_det.core.errors import UserError
from ssql_det.core.files import check_regular_file
from ssql_det.deploy.detector import Detector
from ssql_det.deploy.metadata import METADATA_KEY, ModelMetadata
from ssql_det.deploy.session import describe_failure


class OpenVINOSession:
    """What :class:`Detector` uses of onnxruntime's ``InferenceSession``, computed by OpenVINO."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._request = compiled.create_infer_request()
        self._lock = threading.Lock()  # a request is for one thread at a time

    def get_outputs(self) -> Sequence[Any]:
        return [_Output(each.get_any_name()) for each in self._compiled.outputs]

    def run(self, names: Sequence[str], inputs: Mapping[str, Any]) -> list[Any]:
        with self._lock:
            self._request.infer(dict(inputs))
            return [self._request.get_tensor(name).data.copy() for name in names]


class _Output:
    def __init__(self, name: str) -> None:
        self.name = name


def open_openvino(path: str | os.PathLike[str], threads: int | None = None) -> tuple[OpenVINOSession, ModelMetadata]:
    """Open an exported file; ``threads`` is the number of threads that compute one image, by default one per core.

    Floats are computed in float32: by default OpenVINO computes them in bfloat16 where the CPU can. Of equal scores,
    those of lower indices come first, as ONNX defines it; by default their order is not defined.
    """
    openvino = import_openvino()
    if not Path(path).exists():
        raise UserError(f"there is no file {path}")
    check_regular_file(path)
    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads or 0, "PERFORMANCE_HINT": "LATENCY"}
    try:
        model = core.read_model(os.fspath(path))
        for operation in model.get_ops():
            if operation.get_type_name() == "TopK":
                operation.set_attribute("stable", True)
        text = _read_metadata(model)
        session = OpenVINOSession(core.compile_model(model, "CPU", options))
    except RuntimeError as failure:
        raise UserError(f"{path} cannot be opened with OpenVINO: {describe_failure(failure)}") from None
    if text is None:
        raise UserError(f"{path} was not written by `ssql-det export`: it has no metadata {METADATA_KEY!r}")
    return session, ModelMetadata.from_json(text, path)


def _read_metadata(model: Any) -> str | None:
    names = ["framework", METADATA_KEY]  # where OpenVINO puts the metadata of an ONNX file
    return str(model.get_rt_info(names).astype(str)) if model.has_rt_info(names) else None


class OpenVINODetector(Detector):
    """A :class:`Detector` that OpenVINO computes.

    >>> from PIL import Image
    >>> detector = OpenVINODetector("detector.onnx")  # doctest: +SKIP
    >>> found = detector(Image.open("photo.jpg"), min_score=0.5)  # doctest: +SKIP
    """

    _open = staticmethod(open_openvino)


def has_openvino() -> bool:
    """Whether OpenVINO is installed."""
    try:
        import_openvino()
    except UserError:
        return False
    return True


def import_openvino() -> Any:
    try:
        import openvino
    except ImportError as failure:
        raise UserError(
            "OpenVINO cannot be imported; install it: pip install 'ssql_det[openvino]', or without torch pip install "
            "openvino"
        ) from failure
    return openvino
