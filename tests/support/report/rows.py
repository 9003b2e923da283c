"""Result rows for tests of tables, each with a later time than the one before, and cells of a comparison."""

import itertools
from datetime import datetime, timedelta, timezone

from ssql_det.core.rows import Calibration, Row

WIDTHS = ("FP", "8w8a", "6w6a", "5w5a", "4w4a")
_serial = itertools.count()
_START = datetime(2024, 5, 1, tzinfo=timezone.utc)


def make_row(ap50=60.0, **changes):
    """A sweep's row of SSQL on VOC2007 at 4 bits."""
    fields = {
        "method": "SSQL",
        "checkpoint": "ssql.pth",
        "checkpoint_hash": "9f3c",
        "config": "voc_r18_c4.yaml",
        "dataset": "voc_2007_test",
        "bits": "4w4a",
        "scope": "all",
        "metrics": {"bbox/AP50": ap50, "bbox/AP": ap50 / 2, "bbox/AP75": ap50 / 3},
        "seed": 0,
        "engine": "minid2",
        "seconds": 92.5,
        "scheme": "minmax",
        "calibration": Calibration(256, 0, "voc_2007_trainval"),
        "versions": {},
        "time": (_START + timedelta(seconds=next(_serial))).isoformat(),
    }
    return Row(**(fields | changes))


def make_probe_row(top1=90.0, network="cifar_resnet18", **changes):
    """A linear probe's row of SSQL on CIFAR-10 at 4 bits."""
    fields = {
        "config": "",
        "dataset": "cifar10",
        "scope": "backbone",
        "calibration": Calibration(512, 0, "cifar10"),
        "network": network,
        "protocol": make_protocol("linear"),
        "metrics": {"linear/top1": top1},
        "engine": "",
    }
    return make_row(**(fields | changes))


def make_protocol(*probes):
    """The protocol of probes on CIFAR-10."""
    images = {"train_images": 50000, "val_images": 10000}
    if "linear" not in probes:
        return {"probes": list(probes), "recipe": "cifar", "size": 32, **images}
    layer = {"linear": "fast", "optimizer": "SGD", "rate": 30.0, "batch": 512, "epochs": 100}
    return {"probes": list(probes), **layer, "recipe": "cifar", "size": 32, **images}


def find_line(comparison, method="SSQL (ours)", bits="4w4a", backbone=""):
    """The only line of a method at these bits, and of a backbone if one is given."""
    lines = [line for line in comparison.lines if (line.method, line.bits) == (method, bits)]
    (line,) = [line for line in lines if backbone in ("", line.backbone)]
    return line


def find_cell(comparison, method="SSQL (ours)", bits="4w4a", metric="bbox/AP50"):
    return find_line(comparison, method, bits).cells[metric]
