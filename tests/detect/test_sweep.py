"""A sweep: one copy of weights, one calibration, a row for each width that depends on nothing but that width."""

import dataclasses
import hashlib
import importlib.metadata
import itertools
import json

import pytest
import torch
from detect.making import C4, CONFIGS, config, tiny
from detect.runs import numbers
from kills import kill_until_done
from refusals import refused

from ssql_det import d2
from ssql_det.cli.main import main
from ssql_det.core import rows
from ssql_det.core.errors import UserError
from ssql_det.d2 import DatasetMapper, engine
from ssql_det.detect import detector_points
from ssql_det.detect import measure as measuring
from ssql_det.detect.data import Decoded, calibration_images, evaluation_images
from ssql_det.detect.evaluate import evaluate
from ssql_det.detect.measure import Plan, following
from ssql_det.detect.sweep import sweep
from ssql_det.detect.train import train
from ssql_det.detect.weights import trained_detector
from ssql_det.quant import Bits, Ranges, parse_widths, quantized

TEST = "toy_voc_2007_test"
PLAN = Plan("all", 4)
MANY = {"MODEL__RPN__POST_NMS_TOPK_TEST": 60, "TEST__DETECTIONS_PER_IMAGE": 400}  # so that no AP is zero


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Of a detector that has learned a little."""
    folder = tmp_path_factory.mktemp("trained")
    torch.set_num_threads(1)
    keys = {"SOLVER__MAX_ITER": 45, "SOLVER__STEPS": (), "SOLVER__BASE_LR": 0.02, "SOLVER__IMS_PER_BATCH": 4}
    return train(config(C4, folder, **keys), C4)


def swept(weights, out, text="FP,8,4", plan=PLAN, **keys):
    cfg = config(C4, out, MODEL__WEIGHTS=weights, **MANY, **keys)
    return list(sweep(cfg, C4, *trained_detector(cfg), parse_widths(text), plan))


@pytest.fixture(scope="module")
def whole(weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, swept(weights, folder)


def command(weights, out, *flags, bits="FP,8,4", calib_images="4", **keys):
    given = ["sweep", "--config-file", str(CONFIGS / C4), "--bits", bits, "--calib-images", calib_images, *flags]
    return [*given, *tiny(OUTPUT_DIR=out, MODEL__WEIGHTS=weights, **MANY, **keys)]


# ---- rows ----------------------------------------------------------------------------------------------------------


def test_a_row_says_what_it_depends_on(whole, weights):
    folder, found = whole
    assert [row.bits for row in found] == ["FP", "8w8a", "4w4a"]
    assert rows.read(folder / "results.jsonl") == found
    for row in found:
        assert (row.method, row.checkpoint, row.config, row.dataset) == ("", "model_final.pth", C4, TEST)
        assert row.checkpoint_hash == hashlib.sha256(weights.read_bytes()).hexdigest()
        assert (row.scope, row.seed, row.engine) == ("all", 3, engine())
        assert row.calibration == "4 images of toy_voc_2007_trainval, seed 0, MinMax"
        assert set(row.metrics) == {"bbox/AP", "bbox/AP50", "bbox/AP75", "MB", "GFLOPs", "GBOPs"}
        assert row.seconds > 0
        assert row.versions["torch"] == importlib.metadata.version("torch")
    assert all(row.metrics["bbox/AP50"] > 0 for row in found)
    assert len({row.metrics["bbox/AP"] for row in found}) == 3


def test_the_costs_are_those_of_the_widths(whole, weights):
    fp, eight, four = (row.metrics for row in whole[1])
    model, _ = trained_detector(config(C4, MODEL__WEIGHTS=weights))
    assert fp["MB"] == pytest.approx(sum(each.numel() for each in model.parameters()) * 4 / 1e6)
    assert fp["GBOPs"] == pytest.approx(fp["GFLOPs"] * 32 * 32)
    assert fp["GFLOPs"] == eight["GFLOPs"] == four["GFLOPs"]
    assert fp["MB"] > 3 * eight["MB"] > 3 * four["MB"]
    assert fp["GBOPs"] > 10 * eight["GBOPs"] > 10 * four["GBOPs"]


def test_float_is_the_detector_as_it_is(whole, weights, tmp_path):
    cfg = config(C4, MODEL__WEIGHTS=weights, **MANY)
    model, _ = trained_detector(cfg)
    metrics = evaluate(model, evaluation_images(cfg, TEST), TEST, str(tmp_path))
    assert metrics.items() <= whole[1][0].metrics.items()


def test_a_width_is_the_detector_quantized(whole, weights, tmp_path):
    cfg = config(C4, MODEL__WEIGHTS=weights, **MANY)
    model, _ = trained_detector(cfg)
    ranges = json.loads((whole[0] / "ranges.json").read_text())["points"]
    points = detector_points(model, "all")
    loaded = Ranges.load(whole[0] / "ranges.json", model, points)
    assert set(ranges) == {point.key for point in points if not point.is_weight}
    with quantized(model, points, loaded, Bits(4, 4)):
        metrics = evaluate(model, evaluation_images(cfg, TEST), TEST, str(tmp_path))
    assert metrics.items() <= whole[1][2].metrics.items()


def test_a_sweep_leaves_the_weights_bit_for_bit_and_float_after_it_is_float_before(whole, weights, tmp_path):
    cfg = config(C4, tmp_path / "one", MODEL__WEIGHTS=weights, **MANY)
    model, checkpoint = trained_detector(cfg)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    list(sweep(cfg, C4, model, checkpoint, parse_widths("4,8"), PLAN))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    again = config(C4, tmp_path / "two", MODEL__WEIGHTS=weights, **MANY)
    (after,) = sweep(again, C4, model, checkpoint, parse_widths("FP"), PLAN)
    assert after.metrics == whole[1][0].metrics


def test_the_order_of_widths_does_not_matter(whole, weights, tmp_path):
    found = swept(weights, tmp_path, "4,FP,8")
    assert [row.bits for row in found] == ["4w4a", "FP", "8w8a"]
    assert numbers(found) == numbers(whole[1])


def test_more_widths_later_are_as_if_from_the_first(whole, weights, tmp_path):
    swept(weights, tmp_path, "8")
    assert numbers(swept(weights, tmp_path)) == numbers(whole[1])
    assert [row.bits for row in rows.read(tmp_path / "results.jsonl")] == ["8w8a", "FP", "4w4a"]


def test_a_sweep_that_is_done_does_nothing_again(whole, weights, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("measured again")

    folder, found = whole
    before = (folder / "results.jsonl").read_bytes()
    monkeypatch.setattr("ssql_det.detect.sweep.measure", never)
    monkeypatch.setattr("ssql_det.detect.sweep.prepare", never)
    assert swept(weights, folder) == found
    assert swept(weights, folder, "4") == found[2:]
    assert (folder / "results.jsonl").read_bytes() == before


def test_a_sweep_calibrates_once(weights, monkeypatch, tmp_path):
    calls = []

    def counted(*args, **kwargs):
        calls.append(args)
        return calibrate(*args, **kwargs)

    calibrate = measuring.calibrate
    monkeypatch.setattr(measuring, "calibrate", counted)
    swept(weights, tmp_path, "8,4")
    swept(weights, tmp_path, "8,4,6")
    assert len(calls) == 1


def test_the_command_prints_the_rows_it_writes(whole, weights, capsys, tmp_path):
    main(command(weights, tmp_path))
    said = capsys.readouterr().out
    found = rows.read(tmp_path / "results.jsonl")
    theirs = {bits: dataclasses.replace(row, config="") for bits, row in numbers(whole[1]).items()}
    assert {bits: dataclasses.replace(row, config="") for bits, row in numbers(found).items()} == theirs
    assert all(row.config.startswith(C4) for row in found)
    for row in found:
        (line,) = [line for line in said.splitlines() if line.split()[:1] == [row.bits]]
        assert line.split()[2] == f"{row.metrics['bbox/AP50']:.2f}"
    assert f"model_final.pth on {TEST}, scope all, 4 images of" in said


# ---- a folder holds one sweep --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "keys", "difference"),
    [
        (PLAN, {"MODEL__ROI_HEADS__NMS_THRESH_TEST": 0.3}, "MODEL.ROI_HEADS.NMS_THRESH_TEST 0.5 (now 0.3)"),
        (PLAN, {"INPUT__MIN_SIZE_TEST": 72}, "INPUT.MIN_SIZE_TEST 64 (now 72)"),
        (Plan("all", 5), {}, "--calib-images 4 (now 5)"),
        (Plan("backbone", 4), {}, "--scope 'all' (now 'backbone')"),
        (Plan("all", 4, seed=1), {}, "--calib-seed 0 (now 1)"),
        (Plan("all", 4, recalibrate_bn=True), {}, "--recalibrate-bn False (now True)"),
        (Plan("all", 4, overrides={"*": Bits(8, 8)}), {}, "--bits-file {} (now {'*': '8w8a'})"),
        (Plan("backbone", 5), {}, "--scope 'all' (now 'backbone'), --calib-images 4 (now 5)"),
    ],
)
def test_another_sweep_in_the_same_folder_is_refused_and_says_what_differs(plan, keys, difference, whole, weights):
    folder, _ = whole
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError) as refusal:
        swept(weights, folder, "FP,5", plan, **keys)
    assert str(refusal.value) == f"the sweep in {folder} has {difference}; choose another OUTPUT_DIR"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_so_are_other_weights(whole, weights, tmp_path):
    content = torch.load(weights, weights_only=False)
    content["model"]["backbone.stem.conv1.weight"] += 1e-3
    torch.save(content, tmp_path / "model_final.pth")
    with pytest.raises(UserError, match=r"the sweep in .* has weights' sha256 "):
        swept(tmp_path / "model_final.pth", whole[0])


def test_so_are_other_objects_under_the_same_name(whole, weights, monkeypatch):
    records = d2.DatasetCatalog.get(TEST)
    records[0]["annotations"] = records[0]["annotations"][1:]
    monkeypatch.setattr(d2.DatasetCatalog, "get", lambda name: records)
    with pytest.raises(UserError, match=r"the sweep in .* has the objects' sha256 '"):
        swept(weights, whole[0])


def test_a_row_has_the_seed_that_its_weights_were_trained_with(weights, tmp_path):
    for seed, expected in ((-1, 3), (7, 7)):
        (row,) = swept(weights, tmp_path / str(seed), "FP", SEED=seed)
        assert row.seed == expected


def test_where_the_weights_lie_and_who_decodes_does_not_matter(whole, weights, tmp_path):
    copy = tmp_path / "elsewhere.pth"
    copy.write_bytes(weights.read_bytes())
    assert swept(copy, whole[0], DATALOADER__NUM_WORKERS=1) == whole[1]


def test_so_is_another_order_of_overrides(weights, tmp_path):
    first = {"*": Bits(8, 8), "backbone.*": Bits(4, 4)}
    swept(weights, tmp_path, "5", Plan("all", 4, overrides=first))
    with pytest.raises(UserError, match="--bits-file"):
        swept(weights, tmp_path, "5", Plan("all", 4, overrides=dict(reversed(first.items()))))


def test_a_damaged_plan_is_refused(weights, tmp_path):
    for content in ("{", "[1]"):
        (tmp_path / "sweep.json").write_text(content)
        with pytest.raises(UserError, match=r"sweep\.json is damaged; choose another OUTPUT_DIR"):
            swept(weights, tmp_path)


def test_a_sweep_killed_between_widths_resumes_to_the_same_rows(whole, weights, in_process, tmp_path):
    log, results = tmp_path / "log", tmp_path / "out/results.jsonl"
    killed = in_process(command(weights, tmp_path / "out"), log, file=str(results), lines=1)
    assert killed["status"] == -9, log.read_text()
    first = results.read_bytes()
    assert 1 <= first.count(b"\n") < 3
    results.write_bytes(first + b'{"method": "SSQ')  # as a kill in mid-line leaves it
    assert in_process(command(weights, tmp_path / "out"), log)["status"] == 0, log.read_text()
    assert results.read_bytes().startswith(first)
    found = rows.read(results)
    assert [row.bits for row in found] == ["FP", "8w8a", "4w4a"]
    assert [row.metrics for row in found] == [row.metrics for row in whole[1]]


def test_a_sweep_killed_anywhere_resumes_to_the_same_rows_and_ranges(weights, in_process, tmp_path):
    """kill -9 at moments that nobody chose, many of them in the calibration."""
    log, folder, many = tmp_path / "log", tmp_path / "whole", {"bits": "FP,8,6,5,4", "calib_images": "12"}
    ended = in_process(command(weights, folder, **many), log)
    assert ended["status"] == 0, log.read_text()
    killed = []
    for attempt in itertools.count():
        out = tmp_path / f"attempt {attempt}"
        killed += kill_until_done(in_process, command(weights, out, **many), log, ended["seconds"])
        ours, theirs = (numbers(rows.read(each / "results.jsonl")) for each in (out, folder))
        assert list(ours) == list(theirs) == ["FP", "8w8a", "6w6a", "5w5a", "4w4a"], f"killed after {killed} s"
        assert ours == theirs
        assert (out / "ranges.json").read_bytes() == (folder / "ranges.json").read_bytes()
        assert not list(out.glob(".*"))
        if len(killed) >= 10:
            break


def test_a_plan_that_came_to_no_row_gives_way_to_another(weights, monkeypatch, tmp_path):
    out, new, other = tmp_path / "out", tmp_path / "new", Plan("all", 12)
    with monkeypatch.context() as patch:
        patch.setattr("ssql_det.detect.sweep.measure", lambda *ignored: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            swept(weights, out, plan=Plan("all", 1))
    assert {path.name for path in out.iterdir()} == {"sweep.json", "ranges.json"}
    assert numbers(swept(weights, out, "4", other)) == numbers(swept(weights, new, "4", other))
    for name in ("sweep.json", "ranges.json"):
        assert (out / name).read_bytes() == (new / name).read_bytes()


def test_a_sweep_whose_folder_another_took_adds_no_row(weights, monkeypatch, tmp_path):
    def beside(*given):
        patch.setattr("ssql_det.detect.sweep.measure", measuring.measure)
        swept(weights, tmp_path, "4", Plan("all", 12))
        return measuring.measure(*given)

    with monkeypatch.context() as patch:
        patch.setattr("ssql_det.detect.sweep.measure", beside)
        with pytest.raises(UserError, match=r"has --calib-images 12 \(now 4\); choose another OUTPUT_DIR"):
            swept(weights, tmp_path, "8")
    assert [row.bits for row in rows.read(tmp_path / "results.jsonl")] == ["4w4a"]


# ---- calibration ---------------------------------------------------------------------------------------------------


def test_calibration_images_are_chosen_by_the_seed_alone(whole, weights):
    cfg = config(C4)
    chosen = [batch[0]["file_name"] for batch in calibration_images(cfg, 6)]
    torch.rand(1)
    assert [batch[0]["file_name"] for batch in calibration_images(cfg, 6)] == chosen
    assert [batch[0]["file_name"] for batch in calibration_images(cfg, 4)] == chosen[:4]
    assert [batch[0]["file_name"] for batch in calibration_images(cfg, 6, seed=1)] != chosen
    assert len(set(chosen)) == 6
    image = calibration_images(cfg, 1)[0][0]
    assert min(image["image"].shape[1:]) == 64  # in test form
    assert "instances" not in image


def test_a_row_does_not_claim_more_images_than_there_are(weights, tmp_path):
    (row,) = swept(weights, tmp_path, "4", Plan("all", 1000))
    assert row.calibration.startswith("30 images of toy_voc_2007_trainval")


def test_calibration_on_no_images_is_refused(weights, capsys, tmp_path):
    assert "--calib-images" in refused(capsys, *command(weights, tmp_path / "out", calib_images="0"))
    with pytest.raises(UserError, match="calibration needs at least 1 image, got --calib-images 0"):
        swept(weights, tmp_path / "out", plan=Plan("all", 0))
    assert not (tmp_path / "out/results.jsonl").exists()


def test_a_sweep_that_could_not_begin_leaves_its_folder_free(weights, tmp_path):
    with pytest.raises(UserError, match="toy_voc_2007_trianval"):
        swept(weights, tmp_path, DATASETS__TRAIN=("toy_voc_2007_trianval",))
    assert len(swept(weights, tmp_path, "FP")) == 1


# ---- bits of single modules ----------------------------------------------------------------------------------------


def test_bits_of_a_file_go_before_the_sweeps(whole, weights, tmp_path):
    path = tmp_path / "bits.json"
    path.write_text(json.dumps({"*": "8w8a"}))
    main(command(weights, tmp_path / "all", "--bits-file", str(path), bits="4"))
    (row,) = rows.read(tmp_path / "all/results.jsonl")
    assert row.bits == "4w4a"
    assert row.metrics == whole[1][1].metrics  # those of 8 bits
    assert "* at 8w8a" in row.calibration
    path.write_text(json.dumps({"backbone.*": "8w8a"}))
    main(command(weights, tmp_path / "some", "--bits-file", str(path), bits="4"))
    (row,) = rows.read(tmp_path / "some/results.jsonl")
    eight, four = whole[1][1].metrics, whole[1][2].metrics
    assert four["MB"] < row.metrics["MB"] < eight["MB"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "is not JSON"),
        ("[]", "is to hold bits by pattern"),
        ('{"*": 8}', "is to hold bits by pattern"),
        ('{"*": "99w8a"}', "99"),
        ('{"backbon.*": "8w8a"}', "no quantization point matches the override 'backbon.*'"),
        (None, "cannot read"),
    ],
)
def test_a_bits_file_that_is_none_is_refused(content, complaint, weights, capsys, tmp_path):
    path = tmp_path / "bits.json"
    if content is not None:
        path.write_text(content)
    assert complaint in refused(capsys, *command(weights, tmp_path / "out", "--bits-file", str(path), bits="4"))
    assert not (tmp_path / "out/results.jsonl").exists()


@pytest.mark.parametrize("bits", ["1", "17", "4x4", "", "FP,,4"])
def test_widths_that_are_none_are_refused(bits, weights, capsys, tmp_path):
    refused(capsys, *command(weights, tmp_path / "out", bits=bits))
    assert not (tmp_path / "out").exists()


def test_widths_are_written_in_several_ways_and_come_once():
    assert [str(bits) for bits in parse_widths("FP, 8,2w4a,8w8a")] == ["FP", "8w8a", "2w4a"]


def test_an_unknown_scope_and_two_test_sets_are_refused(weights, capsys, tmp_path):
    assert "--scope is backbone or all, got 'head'" in refused(
        capsys, *command(weights, tmp_path / "out", "--scope", "head")
    )
    with pytest.raises(UserError, match=r"a sweep has one data set to evaluate on; DATASETS\.TEST names 2"):
        swept(weights, tmp_path / "out", DATASETS__TEST=(TEST, "toy_voc_2007_trainval"))
    assert not (tmp_path / "out").exists()


# ---- recalibrated norms --------------------------------------------------------------------------------------------


def test_recalibrated_norms_change_the_rows_and_are_put_back(whole, weights, tmp_path):
    cfg = config(C4, tmp_path, MODEL__WEIGHTS=weights, **MANY)
    model, checkpoint = trained_detector(cfg)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan = Plan("all", 4, recalibrate_bn=True)
    found = list(sweep(cfg, C4, model, checkpoint, parse_widths("FP,8,4"), plan))
    for row, plain in zip(found, whole[1], strict=True):
        assert row.metrics["bbox/AP"] != plain.metrics["bbox/AP"]
        assert row.calibration == f"{plain.calibration}, BN recalibrated"
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.1}
    backwards = swept(weights, tmp_path / "backwards", "4,8,FP", plan)  # nothing of a width is left to the next
    assert numbers(backwards) == numbers(found)


def test_recalibrated_norms_have_the_statistics_of_the_images(weights):
    cfg = config(C4, MODEL__WEIGHTS=weights, **MANY)
    model, _ = trained_detector(cfg)
    images = calibration_images(cfg, 11)
    weight, norm = model.backbone.stem.conv1.weight, model.backbone.stem.conv1.norm
    means, variances = [], []
    with torch.no_grad():
        for first in (0, 8):  # eight at a time
            x = model.preprocess_image([image for (image,) in images[first : first + 8]]).tensor
            x = torch.nn.functional.conv2d(x, weight, stride=2, padding=3)
            means.append(x.mean((0, 2, 3)))
            variances.append(x.var((0, 2, 3)))
    model.train()
    with following(model, images):
        assert not any(module.training for module in model.modules())
        torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(0), rtol=1e-4, atol=1e-5)
    assert model.training


def test_norms_come_back_after_an_accident(weights):
    model, _ = trained_detector(config(C4, MODEL__WEIGHTS=weights))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for images in (calibration_images(config(C4), 2), [None]):  # inside, and on the way in
        with pytest.raises((ZeroDivisionError, TypeError)), following(model, images):
            raise ZeroDivisionError
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
        assert model.backbone.stem.conv1.norm.momentum == 0.1


def test_frozen_norms_cannot_be_recalibrated(weights, capsys, tmp_path):
    frozen = {"MODEL__RESNETS__NORM": "FrozenBN", "SSQL__EXTRA_NORM": "FrozenBN"}
    line = refused(capsys, *command(weights, tmp_path / "out", "--recalibrate-bn", **frozen))
    assert "this network's norms are frozen" in line
    assert not (tmp_path / "out/results.jsonl").exists()


# ---- decoding once -------------------------------------------------------------------------------------------------


class Loader:
    """Four batches of 100 bytes; counts how often each is decoded."""

    def __init__(self):
        self.decoded = 0

    def __len__(self):
        return 4

    def __iter__(self):
        for index in range(4):
            self.decoded += 1
            yield [{"image": torch.full((100,), index, dtype=torch.uint8)}]


def values(images):
    return [int(batch[0]["image"][0]) for batch in images]


@pytest.mark.parametrize(("memory", "decoded"), [(400, 4), (None, 4), (399, 12), (0, 12)])
def test_images_are_decoded_once_if_they_fit_and_never_kept_in_part(memory, decoded):
    loader = Loader()
    images = Decoded(loader, memory)
    for _ in range(3):
        assert values(images) == [0, 1, 2, 3]
    assert len(images) == 4
    assert loader.decoded == decoded
    assert len(images._kept) == (4 if decoded == 4 else 0)


@pytest.mark.parametrize("memory", [400, None])
def test_a_look_at_the_first_image_costs_no_more_than_that(memory):
    loader = Loader()
    images = Decoded(loader, memory)
    assert next(iter(images))[0]["image"][0] == 0
    for _ in range(3):
        assert values(images) == [0, 1, 2, 3]
    assert loader.decoded <= 5


def test_a_sweep_decodes_each_image_of_the_test_set_once(weights, monkeypatch, tmp_path):
    seen = []
    call = DatasetMapper.__call__

    def counted(self, record):
        seen.append(record["file_name"])
        return call(self, record)

    monkeypatch.setattr(DatasetMapper, "__call__", counted)
    swept(weights, tmp_path, "FP,8,4")
    tested = 15
    assert len(seen) <= 4 + tested + 1  # to calibrate; to evaluate; the first once more for its cost


def test_images_come_in_their_order_only():
    with pytest.raises(TypeError, match="iterate"):
        Decoded(Loader())[0]
