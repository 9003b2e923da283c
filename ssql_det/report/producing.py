"""What this project can produce of the published tables: the one place to extend when it can produce more.

A table that is not here is published only, and so is a line of a probe's table that no config pretrains.

>>> kind_of(1).configs["ResNet-18", "SSQL (ours)"], kind_of(13)
('configs/pretrain/cifar10_r18_ssql.yaml', Kind(dataset=''))
"""

from __future__ import annotations

from collections.abc import Mapping

from ssql_det.report.filling import DATASETS
from ssql_det.report.kinds import Kind, Probe, Sweep

_DEPTHS = {"r18": "ResNet-18", "r34": "ResNet-34", "r50": "ResNet-50"}
_METHODS = {"simsiam": "SimSiam", "ssql": "SSQL (ours)"}  # those of `ssql_det.ssl`


def _configs(data: str, *depths: str) -> dict[tuple[str, str], str]:
    return {
        (_DEPTHS[depth], method): f"configs/pretrain/{data}_{depth}_{name}.yaml"
        for depth in depths
        for name, method in _METHODS.items()
    }


_ABLATION = {"(a)": "SimSiam", "(i)": "SSQL (ours)"}  # what lies between them, rows do not tell from SSQL
_KINDS: Mapping[int, Kind] = {
    1: Probe("cifar10", "cifar10:datasets", True, _configs("cifar10", "r18", "r50")),
    3: Probe("imagenet", "datasets/imagenet", False, _configs("imagenet", "r18", "r50")),
    6: Sweep(DATASETS[6]),
    7: Sweep(DATASETS[7]),
    8: Probe("cifar10", "cifar10:datasets", True, _configs("cifar10", "r34"), _ABLATION),
    12: Probe("cifar10", "cifar10:datasets", True),
}


def kind_of(number: int) -> Kind:
    return _KINDS.get(number, Kind())


def data_sets() -> set[str]:
    """Those that rows may be of, as rows name them."""
    return {kind.dataset for kind in _KINDS.values()}
