"""Checkpoints of detectors, and fvcore's classes around them."""

from fvcore.common.checkpoint import Checkpointer, PeriodicCheckpointer

from .detection_checkpoint import DetectionCheckpointer

__all__ = ["Checkpointer", "DetectionCheckpointer", "PeriodicCheckpointer"]
