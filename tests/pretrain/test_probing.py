"""Rows of probes as tables find them: the network's name comes first in their config."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from report.making import line

from ssql_det.core import rows
from ssql_det.pretrain import data
from ssql_det.pretrain.checkpoint import Run
from ssql_det.pretrain.config import build_network, facts_of, read_config
from ssql_det.pretrain.optim import build_optimizer
from ssql_det.pretrain.probing import Plan, probed
from ssql_det.report.reading import read_rows
from ssql_det.report.tables import compare

pytestmark = pytest.mark.usefixtures("one_thread", "logging_as_it_was")
LINES = {  # a backbone, whether it is SSQL's: the table's line
    ("cifar_resnet18", True): ("ResNet-18", "SSQL (ours)"),
    ("cifar_resnet18", False): ("ResNet-18", "SimSiam"),
    ("narrow_resnet", True): ("narrow ResNet", "SSQL (ours)"),
}


def little_cifar(root, train):
    """24 images of two classes in the place of CIFAR-10's."""
    generator = np.random.default_rng(int(train))
    pixels = generator.integers(0, 255, (24, 32, 32, 3), dtype=np.uint8)
    return SimpleNamespace(data=pixels, targets=[0, 1] * 12, classes=["cat", "dog"])


@pytest.mark.parametrize(("backbone", "is_ssql"), LINES)
def test_a_row_lands_in_the_line_of_its_network_and_method(backbone, is_ssql, tmp_path, monkeypatch):
    monkeypatch.setitem(data._CIFAR, "cifar10", little_cifar)
    little_cifar.base_folder = "cifar-10-batches-py"
    torch.manual_seed(0)
    cfg = read_config(None, ["BACKBONE", backbone, "SSQL.ENABLED", str(is_ssql), "DIM", "8", "HIDDEN", "8"])
    network, _ = build_network(cfg)
    run = Run(getattr(network, "method", network), build_optimizer(cfg, network), facts_of(cfg))
    plan = Plan(("linear",), calibration=8, device="cpu")
    for row in probed(str(run.save(tmp_path, 0)), "cifar10:there", "FP,2w4a", "cifar", plan):
        rows.append(tmp_path / "results.jsonl", row)
    found = read_rows([tmp_path / "results.jsonl"])
    how = "linear; fast: SGD at 30 for a batch of 512, 100 epochs; cifar at 32 px, 24 and 24 images"
    assert {row.config for row in found} == {f"{backbone}; {how}"}
    table = compare(1, found)
    name, method = LINES[backbone, is_ssql]
    assert [(each.backbone, each.method, each.bits) for each in table.lines if each.cells["linear/top1"].measured] == [
        (name, method, "FP"),
        (name, method, "2w4a"),
    ]
    for row in found:
        of_line = line(table, method, row.bits, name).cells["linear/top1"]
        assert of_line.measured.mean == row.metrics["linear/top1"]
        assert (of_line.difference is None) == (backbone == "narrow_resnet")
