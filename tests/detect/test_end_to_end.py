"""Make toy data, overfit a detector, sweep it and make the table."""

import itertools

import pytest
import torch
from support.detect.configs import C4, CONFIGS, FPN, as_overrides

from ssql_det.cli.main import main
from ssql_det.core import rows
from ssql_det.d2 import read_config
from ssql_det.detect import SSQL_DET_DEFAULTS, detector_points
from ssql_det.detect.detector import load_trained_detector
from ssql_det.detect.evaluation_data import select_calibration_images
from ssql_det.detect.quantized_evaluation import calibrate_detector
from ssql_det.quant import Calibration, Quantization, parse_bit_widths
from ssql_det.quant.hooks import recording_outputs
from ssql_det.toydata.dataset import ToyDataSettings, make_toy_data

DETECTORS = {C4: ("toy_voc_2007_trainval", 6, 15.0), FPN: ("toy_coco_2017_train", 7, 6.0)}  # data, table, least AP
SCENES = {C4: 40, FPN: 48}
KEYS = {
    "MODEL.DEVICE": "cpu",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "INPUT.MIN_SIZE_TRAIN": (192,),
    "INPUT.MIN_SIZE_TEST": 192,
    "SOLVER.WARMUP_ITERS": 20,
    "TEST.PRECISE_BN.NUM_ITER": 8,
}
ITERATIONS = {C4: 140, FPN: 120}


@pytest.fixture(scope="module", params=list(DETECTORS))
def name(request):
    """The config."""
    return request.param


@pytest.fixture(scope="module")
def toy(name, tmp_path_factory):
    """Few, small, clear scenes."""
    settings = ToyDataSettings(scenes=SCENES[name], crops=5, least_side=96, most_side=128, difficulty=0.0)
    return make_toy_data(tmp_path_factory.mktemp("toy") / "data", settings)


@pytest.fixture(scope="module")
def trained(name, toy_data_in_place, tmp_path_factory):
    """The keys with the weights that the config trained, and a folder."""
    folder, keys = tmp_path_factory.mktemp("run"), KEYS | {"SOLVER.MAX_ITER": ITERATIONS[name]}
    main(["train-det", "--config-file", str(CONFIGS / name), *as_overrides(keys | {"OUTPUT_DIR": folder})])
    weights = {"MODEL.WEIGHTS": folder / "model_final.pth", "DATASETS.TEST": (DETECTORS[name][0],)}
    return keys | weights, folder


def swept(name, keys, out, bits, **more):
    config = ["--config-file", str(CONFIGS / name), "--bits", bits, "--calib-images", "16"]
    more = {key.replace("__", "."): value for key, value in more.items()}
    main(["sweep", *config, *as_overrides(keys | more | {"OUTPUT_DIR": out})])
    return {row.bits: row.metrics["bbox/AP"] for row in rows.read_rows(out / "results.jsonl")}


def test_a_sweep_and_its_table(name, trained, capsys):
    keys, folder = trained
    dataset, number, least = DETECTORS[name]
    found = swept(name, keys, folder / "sweep", "FP,8,4,2w4a")
    assert list(found) == ["FP", "8w8a", "4w4a", "2w4a"]
    assert found["FP"] > least, "it has not learned what it saw, and the rest would say nothing"
    assert found["8w8a"] >= found["FP"] - 2
    assert found["2w4a"] < found["FP"] - 2
    plain = swept(name, keys, folder / "plain", "FP,4", SSQL_DET__FAST_EVALUATION=False)
    assert abs(plain["FP"] - found["FP"]) < 0.1
    assert abs(plain["4w4a"] - found["4w4a"]) < 1
    capsys.readouterr()
    results = str(folder / "sweep" / "results.jsonl")
    main(["tables", "--table", str(number), "--rows", results, "--dataset", dataset])
    table = capsys.readouterr().out
    for row in rows.read_rows(results) if "coco" in dataset else ():
        aps = [ap for class_name, ap in row.class_aps.items() if class_name.startswith("bbox/") and ap is not None]
        assert sum(aps) / len(aps) == pytest.approx(row.metrics["bbox/AP"])
    for bits, ap in found.items():
        assert any(bits in line and f"{ap:.1f}" in line for line in table.splitlines()), (bits, ap, table)


def test_feature_errors_grow_as_bits_fall(name, trained):
    keys, _ = trained
    cfg = read_config(CONFIGS / name, as_overrides(keys), SSQL_DET_DEFAULTS)
    model, _ = load_trained_detector(cfg)
    quantization = Quantization(model, detector_points(model, "backbone"))
    batches = select_calibration_images(cfg, Calibration(4))
    calibrate_detector(quantization, batches)

    def features(bits):
        with quantization.at(bits), recording_outputs(model, ["backbone"]) as seen, torch.no_grad():
            for batch in batches:
                model.eval()(batch)
        return torch.cat([each.flatten() for each in seen])

    whole, *others = (features(bits) for bits in parse_bit_widths("FP,8,6,5,4,2w4a"))
    errors = [float((each - whole).norm() / whole.norm()) for each in others]
    assert errors == sorted(errors)
    assert all(more > 1.2 * less > 0 for less, more in itertools.pairwise(errors)), errors
