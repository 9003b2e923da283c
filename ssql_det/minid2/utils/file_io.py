"""iopath's path manager, which refuses paths that need a network."""

from __future__ import annotations

from typing import NoReturn

from iopath.common.file_io import PathHandler  # type: ignore[import-untyped]
from iopath.common.file_io import PathManager as PathManagerBase

__all__ = ["PathHandler", "PathManager"]


class _NetworkHandler(PathHandler):
    def _get_supported_prefixes(self) -> list[str]:
        return ["detectron2://", "catalog://", "http://", "https://", "ftp://"]

    def _get_local_path(self, path: str, *args: object, **kwargs: object) -> NoReturn:
        raise ValueError(
            f"Cannot read {path}, which needs a network: download it and give the path of a local file instead "
            "(of weights a converted one, .pth)"
        )

    _open = _get_local_path


PathManager = PathManagerBase()
PathManager.register_handler(_NetworkHandler())
