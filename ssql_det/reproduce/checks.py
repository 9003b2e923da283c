"""What would end a plan after hours, asked before it begins."""

from __future__ import annotations

from pathlib import Path

from ssql_det.core.errors import UserError
from ssql_det.core.files import require_room
from ssql_det.reproduce.plan import Plan


def check(plan: Plan) -> None:
    """Configs, given files and data sets are there, and the disk has room."""
    if plan.out.exists() and not plan.out.is_dir():
        raise UserError(f"--out {plan.out} is a file; name a folder")
    made = {path for step in plan.steps for path in step.makes}
    for step in plan.steps:
        for path in step.reads:
            if path in made or path.is_file():
                continue
            if path.suffix == ".yaml":
                raise UserError(f"there is no {path} in {Path.cwd()}; run it in a clone of the repository")
            raise UserError(f"there is no file {path}, which {step.name} begins with; check --checkpoint")
    if plan.preset.data is None:
        _check_data_sets(plan)
    require_room(plan.out, sum(step.megabytes for step in plan.steps if not step.folder.exists()))


def _check_data_sets(plan: Plan) -> None:
    """What pretraining and probes read is an option, what detectors read a variable."""
    choices = plan.choices
    for name, option, folder in (("ImageNet", "imagenet", choices.imagenet), ("CIFAR-10", "cifar10", choices.cifar10)):
        kinds, named = ("pretrain", "probe"), choices.images(option)
        users = [step for step in plan.steps if step.kind in kinds and named in step.arguments]
        if users and not folder.is_dir():
            doing = "probe with" if all(step.kind == "probe" for step in users) else "pretrain on"
            raise UserError(f"there is no folder {folder} to {doing}; say where {name} is: --{option} DIR")
    for table, names in {6: ("VOC2007", "VOC2012"), 7: ("coco",)}.items():
        for name in names if table in choices.tables else ():
            if not (plan.data / name).is_dir():
                raise UserError(
                    f"Table {table} needs {name}, and {plan.data} has no folder of that name; point "
                    "DETECTRON2_DATASETS to the data sets, and see `ssql-det check-data`"
                )
