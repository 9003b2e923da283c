"""fvcore's registry, which maps names in a config to classes and functions."""

from fvcore.common.registry import Registry

__all__ = ["Registry"]
