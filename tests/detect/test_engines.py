"""Detectron2 and minid2 give the same rows: ``pytest -m detectron2``, where Detectron2 can be imported."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
from support.detect.configs import C4, CONFIGS, FPN, config, randomize_norms, tiny_overrides

from ssql_det.detect.detector import build_detector

spec = importlib.util.find_spec("detectron2")
RUN = "from ssql_det.cli.main import main; main()"
pytestmark = [
    pytest.mark.detectron2,
    pytest.mark.skipif(spec is None or spec.origin is None, reason="Detectron2 is not installed"),
]


@pytest.mark.parametrize("name", [C4, FPN])
def test_a_sweep_gives_the_same_rows_on_both_engines(name, toy, tmp_path):
    torch.manual_seed(0)
    weights = tmp_path / "model.pth"
    torch.save({"model": randomize_norms(build_detector(config(name))).state_dict()}, weights)
    figures = {}
    for engine in ("detectron2", "minid2"):
        out = tmp_path / engine
        flags = ["--config-file", str(CONFIGS / name), "--bits", "FP,8,4", "--calib-images", "4"]
        command = [sys.executable, "-c", RUN, "sweep", *flags]
        environment = {**os.environ, "SSQL_DET_ENGINE": engine, "DETECTRON2_DATASETS": str(toy)}
        subprocess.run([*command, *tiny_overrides(MODEL__WEIGHTS=weights, OUTPUT_DIR=out)], env=environment, check=True)
        rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
        assert {row["engine"] for row in rows} == {engine}
        figures[engine] = [row["metrics"] for row in rows]
    for theirs, ours in zip(figures["detectron2"], figures["minid2"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4, nan_ok=True)
