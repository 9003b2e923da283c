"""The config tree, and ``configurable``, which lets a class take either explicit arguments or a config."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from typing import Any

from fvcore.common.config import CfgNode as _CfgNode

VERSION = 2


class CfgNode(_CfgNode):
    """fvcore's config tree. Unlike in Detectron2, unsafe YAML is not loaded unless ``allow_unsafe`` is set."""

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = False) -> None:
        """Merge a config file of version 2, which is also assumed if the file has no version, and its bases."""
        assert os.path.isfile(cfg_filename), f"Config file '{cfg_filename}' does not exist!"
        loaded = type(self)(self.load_yaml_with_base(cfg_filename, allow_unsafe=allow_unsafe))
        version = loaded.get("VERSION", VERSION)
        assert version == VERSION, f"{cfg_filename} is a config of version {version}; only version {VERSION} is read"
        self.merge_from_other_cfg(loaded)


def get_cfg() -> CfgNode:
    """A copy of the default config.

    >>> get_cfg().MODEL.RESNETS.DEPTH
    50
    """
    from .defaults import DEFAULTS  # which imports CfgNode from here

    return DEFAULTS.clone()


def configurable(init_func: Any = None, *, from_config: Callable[..., dict[str, Any]] | None = None) -> Any:
    """Let an ``__init__`` (of a class with a ``from_config`` method) or a function also be called with a config.

    Then ``from_config`` makes the arguments. Further arguments that it does not accept override these.

    >>> class Head:
    ...     @configurable
    ...     def __init__(self, width, depth=2):
    ...         self.width, self.depth = width, depth
    ...     @classmethod
    ...     def from_config(cls, cfg):
    ...         return {"width": cfg.WIDTH}
    >>> vars(Head(CfgNode({"WIDTH": 64}), depth=3))
    {'width': 64, 'depth': 3}
    """
    if init_func is None and from_config is None:
        return configurable  # @configurable() means @configurable
    if from_config is not None:
        assert inspect.isfunction(from_config), "from_config argument of configurable must be a function!"
        return functools.partial(_configurable_function, from_config=from_config)
    assert inspect.isfunction(init_func), "Incorrect use of @configurable: it decorates __init__"
    assert init_func.__name__ == "__init__", "Incorrect use of @configurable: it decorates __init__"

    @functools.wraps(init_func)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        maker = getattr(type(self), "from_config", None)
        if maker is None:
            raise AttributeError("Class with @configurable must have a 'from_config' classmethod.")
        if not inspect.ismethod(maker):
            raise TypeError("Class with @configurable must have a 'from_config' classmethod.")
        if _has_config(args, kwargs):
            init_func(self, **_explicit_arguments(maker, args, kwargs))
        else:
            init_func(self, *args, **kwargs)

    return init


def _configurable_function(function: Any, from_config: Callable[..., dict[str, Any]]) -> Any:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if _has_config(args, kwargs):
            return function(**_explicit_arguments(from_config, args, kwargs))
        return function(*args, **kwargs)

    vars(call)["from_config"] = from_config
    return call


def _explicit_arguments(maker: Callable[..., dict[str, Any]], args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(maker).parameters
    if next(iter(parameters), None) != "cfg":
        raise TypeError(f"{getattr(maker, '__qualname__', maker)} must take 'cfg' as the first argument!")
    if any(each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD) for each in parameters.values()):
        return maker(*args, **kwargs)
    known = {name: value for name, value in kwargs.items() if name in parameters}
    others = {name: value for name, value in kwargs.items() if name not in parameters}
    return {**maker(*args, **known), **others}


def _has_config(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an argument is a config of fvcore, or of OmegaConf, which need not be installed."""
    first = args[0] if args else kwargs.get("cfg")
    return isinstance(first, _CfgNode) or type(first).__name__ == "DictConfig"
