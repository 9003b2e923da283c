"""What this project can produce of the published tables: the one place to extend when it can produce more.

A table that is not here is published only, and so is a line of a probe's table that no config pretrains.

>>> kind_of(1).configs["ResNet-18", "SSQL (ours)"], kind_of(13)
('configs/pretrain/cifar10_r18_ssql.yaml', Kind(dataset=''))
"""

from __future__ import annotations

from collections.abc import Mapping

from ssql_det.report.kinds import Kind, Probe, Sweep

_DEPTHS = {"r18": "ResNet-18", "r34": "ResNet-34", "r50": "ResNet-50"}
_SIMSIAM = {"simsiam": "SimSiam", "ssql": "SSQL (ours)"}
_CONTRASTIVE = {"simclr": "SimCLR", "moco": "MoCov2", "ssql_simclr": "SSQL-NCE (ours)"}
_BOTH_WAYS = {"byol": "BYOL", "ssql_byol": "BYOL+SSQL", "moco": "MoCov2", "ssql_moco": "MoCov2+SSQL"}


def _configs(data: str, depth: str, names: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """By network and printed method; ``names`` are those of files, with the methods that they pretrain."""
    return {(_DEPTHS[depth], method): f"configs/pretrain/{data}_{depth}_{name}.yaml" for name, method in names.items()}


def _of_table_1(depth: str) -> dict[tuple[str, str], str]:
    return _configs("cifar10", depth, {**_SIMSIAM, "byol": "BYOL", **_CONTRASTIVE})


_IMAGENET = {
    **_configs("imagenet", "r18", {**_SIMSIAM, "byol": "BYOL"}),
    **_configs("imagenet", "r50", {**_SIMSIAM, "byol": "BYOL", "moco": "MoCov2"}),
}
_ABLATION = {(_DEPTHS["r34"], f"({letter})"): f"configs/pretrain/table8/{letter}.yaml" for letter in "abcdefghi"}
_CIFAR = "cifar10:datasets"
_KINDS: Mapping[int, Kind] = {
    1: Probe("cifar10", _CIFAR, True, _of_table_1("r18") | _of_table_1("r50"), beside=("BYOL+SSQL", "MoCov2+SSQL")),
    3: Probe("imagenet", "datasets/imagenet", False, _IMAGENET),
    6: Sweep("voc_2007_test"),
    7: Sweep("coco_2017_val"),
    8: Probe("cifar10", _CIFAR, True, _ABLATION, {"(a)": "SimSiam", "(i)": "SSQL (ours)"}),
    12: Probe("cifar10", _CIFAR, True, _configs("cifar10", "r18", _BOTH_WAYS)),
}


def kind_of(number: int) -> Kind:
    return _KINDS.get(number, Kind())


def probe_of(number: int) -> Probe:
    """Of a table that linear probes fill.

    >>> probe_of(8).known_as
    {'(a)': 'SimSiam', '(i)': 'SSQL (ours)'}
    """
    kind = kind_of(number)
    assert isinstance(kind, Probe), f"Table {number} is not of probes"
    return kind


def data_sets() -> set[str]:
    """Those that rows may be of, as rows name them."""
    return {kind.dataset for kind in _KINDS.values()}
