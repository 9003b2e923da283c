"""Sensitivity analysis: what quantizing a group alone costs, and the bits file for the most sensitive groups."""

import json
from contextlib import contextmanager

import pytest
import torch
from support.detect.configs import C4, CONFIGS, FPN, config, randomize_norms, tiny_overrides

from ssql_det.cli.main import main
from ssql_det.core.rows import Calibration
from ssql_det.detect.detector import build_detector
from ssql_det.detect.distillation import compute_outputs
from ssql_det.detect.distillation_terms import distillation_loss
from ssql_det.detect.evaluation import evaluate
from ssql_det.detect.evaluation_data import merge_batches, select_role_images
from ssql_det.detect.groups import ModuleGroup, list_groups
from ssql_det.detect.measurements import AP, DISTILLATION, measuring
from ssql_det.detect.quantized_evaluation import QuantizationSettings
from ssql_det.detect.replay import record_proposals
from ssql_det.detect.selection_data import registering_selection
from ssql_det.detect.sensitivity import (
    GroupSensitivity,
    measure_sensitivities,
    select_overrides,
    sort_by_degradation,
)
from ssql_det.quant import Bits, Scheme

SCHEME = "weight=centred, act=mse, norms=re-estimated"  # all that a scheme may add to the published one
MANY = {"MODEL__RPN__POST_NMS_TOPK_TEST": 30, "TEST__DETECTIONS_PER_IMAGE": 60}
CALIBRATION = Calibration(4, selection_images=26)  # with fewer, no object is found by chance
FEW = Calibration(4, selection_images=10)


@pytest.fixture(scope="module", params=[C4, FPN])
def make_measurer(request, tmp_path_factory):
    """A context with a measurer of a detector, its config and its images."""

    @contextmanager
    def make(calibration):
        torch.manual_seed(3)
        cfg = config(request.param, tmp_path_factory.mktemp("measured"), **MANY)
        model = randomize_norms(build_detector(cfg))
        with measuring(cfg, model, "", QuantizationSettings("all", calibration)) as measurer:
            yield measurer, cfg, select_role_images(cfg, calibration).selection

    return make


def measure(measurer, quantity, bits, groups=None):
    groups = groups or list_groups(measurer.quantization.points)
    return {each.group.pattern: each.degradation for each in measure_sensitivities(measurer, quantity, groups, bits)}


def test_every_group_changes_the_outputs_more_at_fewer_bits_and_no_weight(make_measurer):
    with make_measurer(FEW) as (measurer, *_):
        model = measurer.quantization.model
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        found = [measure(measurer, DISTILLATION, Bits(bits, bits)) for bits in (8, 4)]
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    for group in found[0]:
        assert 0 <= found[0][group] < found[1][group], group


def test_a_loss_is_that_of_quantizing_the_group_alone(make_measurer):
    """Of the second stage, computed without the measurer."""
    with make_measurer(CALIBRATION) as made:
        check_loss_of_second_stage(*made)


def check_loss_of_second_stage(measurer, cfg, images):
    model, group = measurer.quantization.model, list_groups(measurer.quantization.points)[1]
    batches = record_proposals(model, list(merge_batches(images)))
    assert [len(each.inputs) for each in batches] == [8, 8, 8, 2]
    losses = []
    for batch in batches:
        with torch.no_grad():
            target = compute_outputs(model, batch)
            with measurer.quantization.at(Bits.FP, {group.pattern: Bits(4, 4)}):
                losses.append(float(distillation_loss(compute_outputs(model, batch), target)))
    measured = measure(measurer, DISTILLATION, Bits(4, 4), [group])
    assert measured == {group.pattern: pytest.approx(sum(losses) / 4, rel=1e-6)}
    with registering_selection(cfg, images) as (name, loader):
        expected = evaluate(model, loader, name)
        with measurer.quantization.at(Bits.FP, {group.pattern: Bits(3, 3)}):
            found = evaluate(model, loader, name)
    tasks = [task for task in ("bbox", "segm") if f"{task}/AP" in expected]
    lost = sum(expected[f"{task}/AP"] - found[f"{task}/AP"] for task in tasks) / len(tasks)
    assert lost != 0
    assert measure(measurer, AP, Bits(3, 3), [group]) == {group.pattern: pytest.approx(lost, abs=1e-9)}


def test_the_norms_of_a_measurement_are_not_kept(tmp_path):
    cfg = config(C4, tmp_path)
    model = randomize_norms(build_detector(cfg))
    settings = QuantizationSettings("all", Calibration(2, selection_images=2), Scheme.parse("norms=matched"))
    with measuring(cfg, model, "", settings) as measurer:
        group = list_groups(measurer.quantization.points)[2]
        found = measurer.measure(DISTILLATION, Bits.FP, group.at(Bits(3, 3)))
        assert not measurer.quantization.repairs
        assert found.repair_bytes == measurer.measure(DISTILLATION, Bits(4, 4)).repair_bytes > 0


def test_the_most_sensitive_groups_get_more_bits():
    losses = {"a.*": 0.1, "b.*": 3.0, "c.*": -1.0, "d.*": 0.2}
    found = [GroupSensitivity(ModuleGroup(pattern, (), None, {"b.x": 8}), loss) for pattern, loss in losses.items()]
    assert [each.group.pattern for each in sort_by_degradation(found)] == ["b.*", "d.*", "a.*", "c.*"]
    assert select_overrides(found, 2, Bits(8, 8)) == {"b.*": "8w8a", "d.*": "8w8a"}
    assert select_overrides(found, 1, Bits(6, 6)) == {"b.*": "6w6a", "b.x": "8w8a"}


@pytest.mark.parametrize("flags", [["--fast"], []], ids=["by outputs", "by AP"])
def test_a_sweep_reads_the_written_bits_file(flags, tmp_path, capsys):
    torch.manual_seed(0)
    torch.save({"model": randomize_norms(build_detector(config(C4))).state_dict()}, tmp_path / "model.pth")
    named = ["--config-file", str(CONFIGS / C4), "--calib-images", "2", "--scheme", SCHEME]
    keys = tiny_overrides(OUTPUT_DIR=tmp_path / "sweep", MODEL__WEIGHTS=tmp_path / "model.pth")
    out = ["--selection-images", "3", "--keep", "3", "--out", str(tmp_path / "bits.json")]
    main(["sensitivity", *named, *flags, *out, *keys])
    said = capsys.readouterr().out
    assert all(group in said for group in ("backbone.stem*", "backbone.res4.*", "roi_heads.box_predictor.*"))
    kept = json.loads((tmp_path / "bits.json").read_text())
    assert len(kept) == 3
    assert set(kept.values()) == {"8w8a"}
    main(["sweep", *named, "--bits", "4", "--bits-file", str(tmp_path / "bits.json"), *keys])
    assert "4w4a" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags", [["--bits", "4,8"], ["--keep-bits", "99"], ["--keep", "0"], ["--bits", "x"], ["--selection-images", "0"]]
)
def test_a_mistake_is_one_sentence(flags, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["sensitivity", "--config-file", str(CONFIGS / C4), *flags, "MODEL.WEIGHTS", "nowhere.pth"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")
