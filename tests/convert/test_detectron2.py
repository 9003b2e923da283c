"""Detectron2 loads converted files, and old files are read as Detectron2 reads them: ``pytest -m detectron2``."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.convert.checkpoints import (
    add_detector_prefixes,
    build_detector,
    drop_batch_counters,
    find_differences,
    make_backbone,
    make_network,
    to_detectron2_names,
    write_checkpoint_file,
)

from ssql_det.convert import load_backbone, load_detector, read_checkpoint, write_checkpoint

HERE = Path(__file__).parent


def is_detectron2_installed():
    spec = importlib.util.find_spec("detectron2")
    return spec is not None and spec.origin is not None


pytestmark = [
    pytest.mark.slow,
    pytest.mark.detectron2,
    pytest.mark.skipif(not is_detectron2_installed(), reason="Detectron2 is not installed"),
]
CONVERTED = [("resnet50", "C4"), ("resnet50", "FPN"), ("resnet18", "FPN")]
OLD = {
    ("MSRA", "FPN"): (),
    ("MSRA", "C4"): (),
    ("Detectron's FPN", "FPN"): ("MODEL.PIXEL_MEAN", [102.9801, 115.9465, 122.7717]),
    ("Detectron's C4", "C4"): ("MODEL.PIXEL_MEAN", [102.9801, 115.9465, 122.7717]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files, and what Detectron2 loads from each."""
    folder = tmp_path_factory.mktemp("real")
    jobs = []
    for arch, kind in CONVERTED:
        torch.save(make_network(arch), folder / f"{arch}.pth")
        write_checkpoint(read_checkpoint(folder / f"{arch}.pth"), folder / f"{arch}.pkl", "detectron2", replace=True)
        jobs.append((f"{arch} {kind}", f"{arch}.pkl", arch, kind))
    for name, kind in OLD:
        path, _ = write_checkpoint_file(name, "resnet50", folder)
        path.rename(folder / f"{name}.pkl")
        jobs.append((f"{name} {kind}", f"{name}.pkl", "resnet50", kind))
    (folder / "jobs.json").write_text(json.dumps(jobs))
    environment = {**os.environ, "SSQL_DET_ENGINE": "detectron2"}
    command = [sys.executable, "-m", "support.convert.detectron2_loader", str(folder)]
    subprocess.run(command, cwd=HERE.parent, env=environment, check=True)
    return folder


@pytest.mark.parametrize(("arch", "kind"), CONVERTED)
def test_detectron2_loads_every_tensor_of_a_converted_file(folder, arch, kind):
    loaded = torch.load(folder / f"{arch} {kind}.loaded")
    expected = add_detector_prefixes(kind, to_detectron2_names(drop_batch_counters(make_backbone(arch))))
    assert find_differences({name: loaded["state"][name] for name in expected}, expected) == set()
    assert not expected.keys() & set(loaded["missing"])
    assert loaded["unexpected"] == []


@pytest.mark.parametrize(("name", "kind"), OLD)
def test_an_old_file_is_loaded_as_detectron2_loads_it(folder, name, kind):
    reference = torch.load(folder / f"{name} {kind}.loaded")["state"]
    checkpoint = read_checkpoint(folder / f"{name}.pkl")
    model = build_detector("resnet50", kind, *OLD[name, kind])
    load = load_detector if checkpoint.detector else load_backbone
    used = load(model, checkpoint).used
    state = model.state_dict()
    expected_names = {name for name in reference if checkpoint.detector or "res" in name or "stem" in name}
    assert set(used) == expected_names
    substituted = {name for name in used if checkpoint.detector and name.endswith("running_var")}
    assert (
        find_differences({name: state[name] for name in used}, {name: reference[name] for name in used}) == substituted
    )
    for name in substituted:  # our norm stays exactly the affine layer; in Detectron2 it is 5e-6 smaller
        assert (state[name] == torch.tensor(1) - 1e-5).all()
        assert (reference[name] == 1).all()
