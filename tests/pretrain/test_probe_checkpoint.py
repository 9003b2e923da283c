"""Probes of checkpoints: rows that tables can match, and resuming."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.report.rows import find_line

from ssql_det.cli.main import main
from ssql_det.core import rows
from ssql_det.core.rows import Calibration
from ssql_det.pretrain import data
from ssql_det.pretrain.checkpoint import TrainingState
from ssql_det.pretrain.config import build_metadata, build_network, read_config
from ssql_det.pretrain.optim import build_optimizer
from ssql_det.pretrain.probe_checkpoint import ProbeSettings, probe_checkpoint
from ssql_det.report.comparison import compare_with_published
from ssql_det.report.row_groups import load_rows

pytestmark = pytest.mark.usefixtures("logging_as_it_was")
LINES = {  # backbone, whether it is SSQL's -> line of the table
    ("cifar_resnet18", True): ("ResNet-18", "SSQL (ours)"),
    ("cifar_resnet18", False): ("ResNet-18", "SimSiam"),
    ("narrow_resnet", True): ("narrow ResNet", "SSQL (ours)"),
}


def small_cifar(root, train):
    """24 images of two classes in place of CIFAR-10."""
    generator = np.random.default_rng(int(train))
    pixels = generator.integers(0, 255, (24, 32, 32, 3), dtype=np.uint8)
    return SimpleNamespace(data=pixels, targets=[0, 1] * 12, classes=["cat", "dog"])


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """Makes the checkpoint of a backbone; CIFAR-10 is replaced by the small data set."""
    monkeypatch.setitem(data._CIFAR, "cifar10", small_cifar)
    small_cifar.base_folder = "cifar-10-batches-py"

    def make(backbone="narrow_resnet", is_ssql=True, seed=0):
        torch.manual_seed(seed)
        sizes = ["SIMSIAM.DIM", "8", "SIMSIAM.HIDDEN", "8"]
        cfg = read_config(None, ["BACKBONE", backbone, "SSQL.ENABLED", str(is_ssql), *sizes])
        network, _ = build_network(cfg)
        run = TrainingState(
            getattr(network, "method", network), backbone, build_optimizer(cfg.optim, network), build_metadata(cfg)
        )
        return str(run.save(tmp_path / str(seed), 0))

    return make


@pytest.mark.parametrize(("backbone", "is_ssql"), LINES)
def test_a_row_is_matched_with_the_line_of_its_network_and_method(backbone, is_ssql, checkpoint, tmp_path):
    settings = ProbeSettings(("linear",), seed=0, device="cpu", workers=0, num_calibration_images=8)
    for row in probe_checkpoint(checkpoint(backbone, is_ssql), "cifar10:there", "FP,2w4a", "cifar", settings):
        rows.append_row(tmp_path / "results.jsonl", row)
    found = load_rows([tmp_path / "results.jsonl"])
    layer = {"linear": "fast", "optimizer": "SGD", "rate": 30.0, "batch": 512, "epochs": 100}
    images = {"recipe": "cifar", "size": 32, "train_images": 24, "val_images": 24}
    for row in found:
        assert (row.network, row.config, row.scheme, row.overrides) == (backbone, "", "minmax", {})
        assert row.protocol == {"probes": ["linear"], **layer, **images}
        assert row.calibration == Calibration(8, 0, "cifar10")
    table = compare_with_published(1, found)
    name, method = LINES[backbone, is_ssql]
    assert [(each.backbone, each.method, each.bits) for each in table.lines if each.cells["linear/top1"].measured] == [
        (name, method, "FP"),
        (name, method, "2w4a"),
    ]
    for row in found:
        of_line = find_line(table, method, row.bits, name).cells["linear/top1"]
        assert of_line.measured.mean == row.metrics["linear/top1"]
        assert (of_line.difference is None) == (backbone == "narrow_resnet")


def run_probe(checkpoint, out, bits, *more):
    main(
        [
            "probe",
            "knn",
            "--checkpoint",
            checkpoint,
            "--data",
            "cifar10:there",
            "--bits",
            bits,
            "--out",
            str(out),
            *more,
        ]
    )
    return [(row.bits, row.checkpoint_hash, row.calibration, row.scheme) for row in rows.read_rows(out)]


def test_a_resumed_probe_measures_missing_rows_only(checkpoint, tmp_path, capsys):
    """Other settings give another row; a row that a kill truncated is measured again."""
    out, path = tmp_path / "results.jsonl", checkpoint()
    run_probe(path, out, "FP,4")
    before = out.read_bytes()
    assert [bits for bits, *_ in run_probe(path, out, "4,FP,2w4a", "--resume")] == ["FP", "4w4a", "2w4a"]
    assert out.read_bytes().startswith(before)
    assert capsys.readouterr().out.count("2w4a") == 1
    out.write_bytes(out.read_bytes()[:-9])
    assert [bits for bits, *_ in run_probe(path, out, "FP,4,2w4a", "--resume")] == ["FP", "4w4a", "2w4a"]
    changed = [run_probe(checkpoint(seed=1), out, "FP", "--resume")]
    changed += [run_probe(path, out, "FP", "--resume", *more) for more in (("--calib-images", "8"), ("--images", "20"))]
    schemes = ("norms=re-estimated", "act=mse", "weight=centred, act=mse")
    changed += [run_probe(path, out, "FP", "--resume", "--scheme", scheme) for scheme in schemes]
    changed += [run_probe(path, out, "FP", "--resume", "--scheme", "act=mse:2"), run_probe(path, out, "FP")]
    assert list(map(len, changed)) == [4, 5, 6, 7, 8, 9, 9, 10]
    assert tuple(scheme for *_, scheme in changed[-1][6:9]) == schemes


@pytest.mark.parametrize("metrics", [{}, {"knn/top1": None}])
def test_a_row_without_results_is_measured_again(metrics, checkpoint, tmp_path):
    out, path = tmp_path / "results.jsonl", checkpoint()
    run_probe(path, out, "FP")
    measured = json.loads(out.read_text())["metrics"]
    changed = {name: value for name, value in (measured | metrics).items() if metrics}
    out.write_text(json.dumps(json.loads(out.read_text()) | {"metrics": changed}) + "\n")
    run_probe(path, out, "FP", "--resume")
    assert rows.read_rows(out)[-1].metrics == measured


def test_a_skipped_row_equals_the_one_that_would_be_measured(checkpoint, tmp_path):
    out, path = tmp_path / "results.jsonl", checkpoint()
    run_probe(path, out, "FP,8,2w4a")
    run_probe(path, tmp_path / "again.jsonl", "8")
    run_probe(path, tmp_path / "again.jsonl", "FP,8,2w4a", "--resume")
    whole, parts = (
        {row.bits: replace(row, seconds=0.0, time="") for row in rows.read_rows(path)}
        for path in (out, tmp_path / "again.jsonl")
    )
    assert whole == parts
