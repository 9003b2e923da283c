"""The command that fills what is empty in a table: a sweep of a detector, with the method's name for its rows.

>>> filling_command(6, "SSQL (ours)", ["FP", "8w8a"], "all", Group("voc_2007_test", "", "SSQL (ours)"))
'ssql-det sweep --config-file configs/detection/voc_r18_c4.yaml --bits FP,8 MODEL.WEIGHTS <ssql.pth> \
SSQL_DET.METHOD SSQL OUTPUT_DIR sweeps/ssql'
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

from ssql_det.report.grouping import Group
from ssql_det.report.names import plain_name, slug

DATASETS = {6: "voc_2007_test", 7: "coco_2017_val"}  # of the tables that sweeps fill
CONFIGS = {  # by what they evaluate on
    "voc_2007_test": "voc_r18_c4.yaml",
    "coco_2017_val": "coco_mask_r50_fpn.yaml",
    "toy_voc_2007_test": "toy_voc_narrow_c4.yaml",
    "toy_coco_2017_val": "toy_coco_narrow_fpn.yaml",
}
_OTHERS = (  # of this repository; rows name each by its path below the folder
    *("voc_r34_c4.yaml", "voc_r50_c4.yaml", "coco_mask_r18_fpn.yaml", "coco_mask_r34_fpn.yaml"),
    *("toy_voc_r18_c4.yaml", "toy_coco_r18_fpn.yaml"),
)
_FOLDERS = ("table6/", "table7/", "zoo/")
_FOLDER = "configs/detection"
_EQUAL = re.compile(r"(\d+)w\1a")


def filling_command(
    number: int,
    method: str,
    bits: Iterable[str],
    scope: str,
    group: Group,
) -> str:
    """The group is of the data set, and of the rows already there, so that the new ones join them.

    A config that is not of this repository stands in angle brackets: where it lies the rows do not say.
    """
    dataset, name = group.dataset, plain_name(method)
    file_name = slug(name) or "detector"
    elsewhere = dataset != DATASETS[number]
    file, *changed = shlex.split(group.config) or [CONFIGS.get(dataset, f"{dataset}.yaml")]
    is_ours = file in CONFIGS.values() or file in _OTHERS or file.startswith(_FOLDERS)
    path = f"{_FOLDER}/{file}" if is_ours else f"<{file}>"
    folder = "-".join([file_name, *([scope] if scope != "all" else []), *([dataset] if elsewhere else [])])
    parts = [
        f"ssql-det sweep --config-file {path}",
        f"--bits {as_option(bits)}",
        *([f"--scope {shlex.quote(scope)}"] if scope != "all" else []),
        f"MODEL.WEIGHTS <{file_name}.pth>",
        f"SSQL_DET.METHOD {shlex.quote(name)}",
        *([shlex.join(changed)] if changed else []),
        *([f"DATASETS.TEST {shlex.quote(f'({dataset!r},)')}"] if dataset not in CONFIGS else []),
        f"OUTPUT_DIR {shlex.quote(f'sweeps/{folder}')}",
        *([f"# scheme: {group.scheme}; calibration: {group.calibration}"] if group.calibration else []),
    ]
    return " ".join(parts)


def as_option(bits: Iterable[str]) -> str:
    """Bit-widths as ``--bits`` takes them.

    >>> as_option(["FP", "8w8a", "2w4a"])
    'FP,8,2w4a'
    """
    return shlex.quote(",".join(_EQUAL.sub(r"\1", width) for width in bits))
