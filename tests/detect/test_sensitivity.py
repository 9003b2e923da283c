"""Sensitivity analysis: groups of modules, their errors, and the bits file for the most sensitive."""

import json
from fnmatch import fnmatchcase

import pytest
import torch
from support.detect.configs import C4, CONFIGS, FPN, config, random_images, randomize_norms, tiny_overrides

from ssql_det.cli.main import main
from ssql_det.detect.detector import build_detector
from ssql_det.detect.points import detector_points
from ssql_det.detect.sensitivity import (
    GroupSensitivity,
    list_groups,
    measure_feature_errors,
    select_overrides,
    sort_by_degradation,
)
from ssql_det.quant import Bits, Quantization

GROUPS = {
    C4: [
        *("backbone.stem*", "backbone.res2.*", "backbone.res3.*", "backbone.res4.*"),
        *("roi_heads.res5.*", "proposal_generator.*", "roi_heads.box_predictor.*"),
    ],
    FPN: [
        *(f"backbone.bottom_up.{stage}" for stage in ("stem*", "res2.*", "res3.*", "res4.*", "res5.*")),
        *("backbone.fpn_*", "proposal_generator.*"),
        *("roi_heads.box_head.*", "roi_heads.box_predictor.*", "roi_heads.mask_head.*"),
    ],
}
SCHEME = "weight=centred, act=mse, norms=re-estimated"  # all that a scheme may add to the published one
BATCHES = [[picture] for picture in random_images(2)]


@pytest.fixture(scope="module", params=[C4, FPN])
def detector(request):
    """A detector by name, calibrated."""
    torch.manual_seed(0)
    model = randomize_norms(build_detector(config(request.param)))
    quantization = Quantization(model, detector_points(model, "all"))
    quantization.calibrate(BATCHES, forward=lambda network, batch: network(batch))
    return request.param, quantization


def errors(detector, bits):
    _, quantization = detector
    return {each.pattern: each.degradation for each in measure_feature_errors(quantization, Bits(bits, bits), BATCHES)}


def test_the_groups_are_the_parts_of_a_detector(detector):
    name, quantization = detector
    assert list_groups(quantization.points) == GROUPS[name]


def test_every_point_is_in_one_group(detector):
    name, quantization = detector
    for point in quantization.points:
        assert sum(fnmatchcase(point.path, group) for group in GROUPS[name]) == 1, point


def test_every_group_has_a_larger_error_at_fewer_bits(detector):
    found = [errors(detector, bits) for bits in (8, 5, 3)]
    for group in GROUPS[detector[0]]:
        assert 0 < found[0][group] < found[1][group] < found[2][group], group


def test_an_error_is_that_of_quantizing_the_group_alone(detector):
    """Of the second stage, computed without the module's own functions."""
    _, quantization = detector
    model = quantization.model
    group = GROUPS[detector[0]][1]
    expected = []
    for batch in BATCHES:
        images = model.preprocess_image(batch).tensor
        with torch.no_grad():
            reference = torch.cat([each.flatten() for each in model.backbone(images).values()])
            with quantization.at(Bits.FP, {group: Bits(4, 4)}):
                found = torch.cat([each.flatten() for each in model.backbone(images).values()])
        expected.append(((found - reference).norm() / reference.norm()).item())
    assert errors(detector, 4)[group] == pytest.approx(sum(expected) / len(expected), rel=1e-4)


def test_the_analysis_changes_no_weight(detector):
    model = detector[1].model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    errors(detector, 4)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_most_sensitive_groups_get_more_bits():
    found = [
        GroupSensitivity("a.*", 0.1),
        GroupSensitivity("b.*", 3.0),
        GroupSensitivity("c.*", -1.0),
        GroupSensitivity("d.*", 0.2),
    ]
    assert [each.pattern for each in sort_by_degradation(found)] == ["b.*", "d.*", "a.*", "c.*"]
    assert select_overrides(found, 2, Bits(8, 8)) == {"b.*": "8w8a", "d.*": "8w8a"}


@pytest.mark.parametrize("flags", [["--fast"], []], ids=["by features", "by AP"])
def test_a_sweep_reads_the_written_bits_file(flags, tmp_path, capsys):
    torch.manual_seed(0)
    torch.save({"model": randomize_norms(build_detector(config(C4))).state_dict()}, tmp_path / "model.pth")
    named = ["--config-file", str(CONFIGS / C4), "--calib-images", "2", "--scheme", SCHEME]
    keys = tiny_overrides(OUTPUT_DIR=tmp_path / "sweep", MODEL__WEIGHTS=tmp_path / "model.pth")
    main(["sensitivity", *named, *flags, "--keep", "3", "--out", str(tmp_path / "bits.json"), *keys])
    said = capsys.readouterr().out
    assert all(group in said for group in GROUPS[C4])
    kept = json.loads((tmp_path / "bits.json").read_text())
    assert len(kept) == 3
    assert set(kept.values()) == {"8w8a"}
    main(["sweep", *named, "--bits", "4", "--bits-file", str(tmp_path / "bits.json"), *keys])
    assert "4w4a" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [["--bits", "4,8"], ["--keep-bits", "99"], ["--keep", "0"], ["--bits", "x"]])
def test_a_mistake_is_one_sentence(flags, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["sensitivity", "--config-file", str(CONFIGS / C4), *flags, "MODEL.WEIGHTS", "nowhere.pth"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")
