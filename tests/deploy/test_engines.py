"""Detectron2 and minid2 export the same detector: ``pytest -m detectron2``, where Detectron2 can be imported."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from support.deploy.detectors import make_detector
from support.detect.configs import C4, CONFIGS, FPN, random_images, tiny_overrides

from ssql_det.deploy import Detector

spec = importlib.util.find_spec("detectron2")
RUN = "from ssql_det.cli.main import main; main()"
pytestmark = [
    pytest.mark.detectron2,
    pytest.mark.slow,
    pytest.mark.skipif(spec is None or spec.origin is None, reason="Detectron2 is not installed"),
]


@pytest.mark.parametrize(("kind", "name"), [("C4", C4), ("FPN with masks", FPN)])
def test_both_engines_export_files_that_agree_with_them_and_with_each_other(kind, name, toy, tmp_path):
    _, model = make_detector(kind)
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    detectors = {}
    for engine in ("detectron2", "minid2"):
        out = tmp_path / f"{engine}.onnx"
        flags = ["--config-file", str(CONFIGS / name), "--check-images", "4", "--out", str(out)]
        environment = {**os.environ, "SSQL_DET_ENGINE": engine, "DETECTRON2_DATASETS": str(toy)}
        overrides = tiny_overrides(MODEL__WEIGHTS=tmp_path / "model.pth")
        subprocess.run([sys.executable, "-c", RUN, "export", *flags, *overrides], env=environment, check=True)
        report = json.loads(out.with_suffix(".check.json").read_text())
        assert report["agrees"]
        assert report["detections"] == 80
        detectors[engine] = Detector(out, threads=1)
    assert detectors["detectron2"].metadata == detectors["minid2"].metadata
    for inputs in random_images(4, sides=((1, 1), (70, 96), (31, 200), (300, 250)), seed=5):
        image = inputs["image"].permute(1, 2, 0).contiguous().numpy()
        theirs, ours = (detector.detect_resized(image) for detector in detectors.values())
        assert ours.classes.tolist() == theirs.classes.tolist()
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-5 * max(image.shape))
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-6)
        if kind != "C4":
            np.testing.assert_allclose(ours.masks, theirs.masks, atol=1e-5)
