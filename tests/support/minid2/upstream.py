"""Run Detectron2's unit tests on minid2, whose modules are imported under Detectron2's name.

Arguments are test files of a checkout of Detectron2, or its folder of tests, of which those in ``TESTS`` are run; then
options of pytest::

    python tests/support/minid2/upstream.py detectron2/tests -rs
    python tests/support/minid2/upstream.py detectron2/tests/structures/test_boxes.py -k iou

Modules that minid2 lacks are imported from the checkout. A test that uses a name which a module of minid2 leaves out
is skipped, with that name; TorchScript and tracing, which it leaves out too, fail. Ends with pytest's exit code.
Nothing is written into the checkout.
"""

import importlib
import importlib.util
import os
import sys
from importlib.abc import Loader, MetaPathFinder
from pathlib import Path

import pytest

NAME, STAND_IN = "detectron2", "ssql_det.minid2"

TESTS = (
    *("structures/test_boxes.py", "structures/test_imagelist.py", "structures/test_instances.py"),
    *("structures/test_masks.py", "layers/test_blocks.py", "layers/test_mask_ops.py", "layers/test_nms.py"),
    *("layers/test_roi_align.py", "modeling/test_anchor_generator.py", "modeling/test_backbone.py"),
    *("modeling/test_box2box_transform.py", "modeling/test_fast_rcnn.py", "modeling/test_matcher.py"),
    *("modeling/test_model_e2e.py", "modeling/test_roi_heads.py", "modeling/test_roi_pooler.py"),
    *("modeling/test_rpn.py", "config/test_yacs_config.py", "test_events.py", "test_registry.py"),
)


class LeftOutType(type):
    """The type of names that minid2 leaves out: a call or an attribute of one skips the test."""

    def __call__(cls, *args, **kwargs):
        pytest.skip(f"minid2 leaves out {cls.__name__}")

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        pytest.skip(f"minid2 leaves out {cls.__name__}")


class Alias(MetaPathFinder, Loader):
    """Imports minid2's modules (the same objects) under Detectron2's names; those it lacks from the checkout."""

    def __init__(self, checkout):
        self.checkout = checkout

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] != NAME:
            return None
        if is_module(STAND_IN + fullname.removeprefix(NAME)):
            return importlib.util.spec_from_loader(fullname, self)
        file = self.checkout.joinpath(*fullname.split("."))
        file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
        return importlib.util.spec_from_file_location(fullname, file) if file.is_file() else None

    def exec_module(self, module):
        name = module.__name__
        sys.modules[name] = stand_in = importlib.import_module(STAND_IN + name.removeprefix(NAME))

        def left_out(attribute):
            if attribute.startswith("__"):
                raise AttributeError(attribute)
            try:
                return importlib.import_module(f"{name}.{attribute}")
            except ModuleNotFoundError:
                return LeftOutType(f"{name}.{attribute}", (), {})

        vars(stand_in).setdefault("__getattr__", left_out)


def is_module(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # nor is its package
        return False


def expand_folder(argument):
    """For the folder of all tests the files in ``TESTS``; any other argument unchanged."""
    folder = Path(argument)
    return [str(folder / test) for test in TESTS] if (folder / TESTS[0]).is_file() else [argument]


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    arguments = [each for argument in sys.argv[1:] for each in expand_folder(argument)]
    paths = [path.resolve() for path in (Path(each.partition("::")[0]) for each in arguments) if path.exists()]
    tests = next((parent for path in paths for parent in path.parents if parent.name == "tests"), None)
    if tests is None:
        sys.exit(__doc__)
    sys.meta_path.insert(0, Alias(tests.parent))
    # Without this project's settings, and without a cache in the checkout
    options = ["-c", os.devnull, "--rootdir", str(tests), "--import-mode=importlib", "-p", "no:cacheprovider"]
    sys.exit(pytest.main([*options, "--continue-on-collection-errors", *arguments]))
