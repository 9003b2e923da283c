"""Names for classes and functions that a config chooses among: fvcore's registry."""

from fvcore.common.registry import Registry

__all__ = ["Registry"]
