"""Arguments, set-up, writers and processes of a training program, which has its own loop."""

from .defaults import create_ddp_model, default_argument_parser, default_setup, default_writers
from .launch import DEFAULT_TIMEOUT, launch

__all__ = [
    "DEFAULT_TIMEOUT",
    "create_ddp_model",
    "default_argument_parser",
    "default_setup",
    "default_writers",
    "launch",
]
