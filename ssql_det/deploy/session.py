"""Opening an exported file with onnxruntime, on the CPU; every fault of the file is a ``UserError``."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssql_det.core.errors import UserError, printable
from ssql_det.core.files import check_regular_file
from ssql_det.deploy.cpu import describe_cpu, warn_without_vnni
from ssql_det.deploy.metadata import FLOAT_BITS, METADATA_KEY, ModelMetadata

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, SessionOptions

INPUT_NAME = "image"
_MAX_REASON_LENGTH = 300  # characters of a message of onnxruntime
_EXACT_PRODUCTS = "session.x64quantprecision"
_FATAL = 4  # of onnxruntime's log levels: what goes wrong is raised too


def open_session(path: str | os.PathLike[str], threads: int | None = None) -> tuple[InferenceSession, ModelMetadata]:
    """Open an exported file, a detector or a backbone.

    ``threads`` is the number of threads that compute one image; by default one per core.

    >>> open_session("missing.onnx")
    Traceback (most recent call last):
    ssql_det.core.errors.UserError: there is no file missing.onnx
    """
    if not Path(path).exists():
        raise UserError(f"there is no file {path}")
    check_regular_file(path)
    options = make_session_options(threads)
    try:
        session = make_session(os.fspath(path), options)
        texts = session.get_modelmeta().custom_metadata_map
    except Exception as failure:  # its exceptions have no common class
        raise UserError(
            f"{path} is not an ONNX file that onnxruntime {_import_onnxruntime().__version__} can open, or is damaged "
            f"or cut short: {describe_failure(failure)}"
        ) from None
    if METADATA_KEY not in texts:
        raise UserError(f"{path} was not written by `ssql-det export`: it has no metadata {METADATA_KEY!r}")
    metadata = ModelMetadata.from_json(texts[METADATA_KEY], path)
    _check_input(session, path)
    if metadata.bits != FLOAT_BITS:
        warn_without_vnni()
    return session, metadata


def make_session_options(threads: int | None = None) -> SessionOptions:
    """The options with which exported files are run; ``threads`` as in :func:`open_session`."""
    options = _import_onnxruntime().SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = _FATAL
    # It would replace two roundings, on the grids of two points, by one.
    options.add_session_config_entry("session.disable_double_qdq_remover", "1")
    # Other instructions, with which pairs of products do not saturate. Elsewhere they would only cost: with them
    # onnxruntime 1.32 cannot run a layer that it leaves in float.
    if describe_cpu().saturates:
        options.add_session_config_entry(_EXACT_PRODUCTS, "1")
    return options


def make_session(model: str | bytes, options: SessionOptions) -> InferenceSession:
    """Open a file, or the content of one, on the CPU."""
    open_model = partial(_import_onnxruntime().InferenceSession, model, options, providers=["CPUExecutionProvider"])
    try:
        return open_model()
    except Exception:  # its exceptions have no common class
        if not describe_cpu().saturates:
            raise
    # With the option onnxruntime 1.32 cannot convert the weights of a layer that is called several times.
    _import_onnxruntime().set_default_logger_severity(_FATAL)  # it warns of an option's second value
    options.add_session_config_entry(_EXACT_PRODUCTS, "0")
    return open_model()


def describe_failure(failure: Exception) -> str:
    """An exception of onnxruntime as part of a sentence."""
    return printable(" ".join(str(failure).split()), _MAX_REASON_LENGTH)


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as failure:
        raise UserError(
            "an exported file runs with onnxruntime, which cannot be imported; install it: pip install "
            "'ssql_det[deploy]', or without torch pip install onnxruntime"
        ) from failure
    return onnxruntime


def _check_input(session: InferenceSession, path: str | os.PathLike[str]) -> None:
    inputs = [(each.name, each.type, len(each.shape)) for each in session.get_inputs()]
    if inputs != [(INPUT_NAME, "tensor(uint8)", 3)]:
        raise UserError(
            f"{path} is damaged: its input must be {INPUT_NAME!r}, uint8 [height, width, 3]; export it again"
        )
