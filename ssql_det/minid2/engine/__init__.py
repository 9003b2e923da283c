"""What a program does around its training loop: arguments, set-up, writers, processes. The loop is its own."""

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
