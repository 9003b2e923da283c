"""Several processes: sweeps equal those of one, killed trainings resume, and a mistake is reported once."""

import itertools
import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.detect.configs import C4, CONFIGS, FPN, config, randomize_norms, tiny_overrides
from support.detect.training_runs import WITH_EVALUATIONS, read_run, rows_by_bits, train_arguments
from support.kills import wait_until_ended
from support.refusals import refused
from support.reproduce.plans import find_processes

import ssql_det
from ssql_det.core import rows
from ssql_det.detect.detector import build_detector

TOOLS = Path(ssql_det.__file__).parents[1] / "tools"
DETECTIONS = {C4: 60, FPN: 30}  # in an image; those of the second have masks
ALL_COLLECTIVES = ("--scheme", "act=mse, norms=re-estimated")
MATCHED_NORMS = ("--scheme", "act=mse, norms=matched")
SYNCHRONIZED_NORMS = ("MODEL.RESNETS.NORM", "naiveSyncBN", "SSQL_DET.EXTRA_NORM", "naiveSyncBN")


# ---- evaluation ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[C4, FPN])
def weights(request, toy_data_in_place, tmp_path_factory):
    """A config, and weights of its detector."""
    torch.manual_seed(3)  # by chance these find some objects, also with other norms
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": randomize_norms(build_detector(config(request.param))).state_dict()}, path)
    return request.param, path


def sweep_command(weights, out, *flags):
    """The arguments of the command; flags override them."""
    name, path = weights
    line = ["sweep", "--config-file", str(CONFIGS / name), "--bits", "FP,4", "--calib-images", "5", *flags]
    many = {"MODEL__RPN__POST_NMS_TOPK_TEST": 30, "TEST__DETECTIONS_PER_IMAGE": DETECTIONS[name]}
    return [*line, *tiny_overrides(OUTPUT_DIR=out, MODEL__WEIGHTS=path, **many)]


@pytest.fixture
def run_sweep(weights, in_process, tmp_path):
    """Runs a sweep in several processes; returns its folder."""

    def run_sweep(processes, *flags):
        out, log = tmp_path / str(processes), tmp_path / "log"
        ended = in_process(sweep_command(weights, out, *flags), log, processes=processes, seconds=300)
        assert ended["status"] == 0, log.read_text()
        return out

    return run_sweep


def has_same_rows(two, one):
    found, expected = (rows.read_rows(folder / "results.jsonl") for folder in (two, one))
    assert [row.bits for row in found] == [row.bits for row in expected] == ["FP", "4w4a"]
    saved, expected_bytes = ((folder / "quantization.safetensors").read_bytes() for folder in (two, one))
    return rows_by_bits(found) == rows_by_bits(expected) and saved == expected_bytes


@pytest.mark.parametrize(
    ("weights", "flags"),
    [(C4, ()), (C4, (*ALL_COLLECTIVES, *SYNCHRONIZED_NORMS)), (FPN, MATCHED_NORMS)],
    ids=["C4", "C4, another scheme", "FPN, matched norms"],
    indirect=["weights"],
)
def test_a_sweep_with_two_processes_equals_one_with_one(flags, run_sweep):
    one = run_sweep(1, *flags)
    assert has_same_rows(run_sweep(2, *flags), one)
    assert any(row.metrics["bbox/AP50"] > 0 for row in rows.read_rows(one / "results.jsonl"))


@pytest.mark.parametrize("weights", [FPN], indirect=True)
def test_a_rank_without_images_waits_for_the_others(run_sweep, toy, tmp_path):
    content = json.loads((toy / "coco/annotations/instances_val2017.json").read_text())
    content["images"] = content["images"][:2]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] in kept]
    (tmp_path / "two.json").write_text(json.dumps(content))
    flags = ("--coco-val", f"{toy}/coco/val2017:{tmp_path}/two.json")
    assert has_same_rows(run_sweep(3, *flags), run_sweep(1, *flags))


@pytest.mark.parametrize(
    ("weights", "images", "flags"),
    [(C4, "12", MATCHED_NORMS), (FPN, "9", ("--fast",))],
    ids=["C4", "FPN, fast"],
    indirect=["weights"],
)
def test_a_search_with_two_processes_equals_one_with_one(weights, images, flags, in_process, tmp_path):
    found = {}
    for processes in (1, 2):
        out, log = tmp_path / str(processes), tmp_path / "log"
        line = sweep_command(weights, out, "--selection-images", images, "--widths", "8,3", "--best", "2", *flags)
        line = ["search", "--budget", "1 MB", *line[1:3], *line[5:]]  # without --bits
        ended = in_process(line, log, processes=processes, seconds=300)
        assert ended["status"] == 0, log.read_text()
        measured = [json.loads(text) for text in (out / "measurements.jsonl").read_text().splitlines()]
        texts = [(out / name).read_text() for name in ("bits.json", "losses.csv", "search.csv")]
        found[processes] = [{**each, "seconds": 0} for each in measured], texts
    assert found[1] == found[2]
    assert len({each["value"] for each in found[1][0]}) > 3


# ---- stopped and resumed -------------------------------------------------------------------------------------------


ENDS = [  # where the command runs, a signal, what receives it, and the command's exit code
    ("background", signal.SIGKILL, "parent", -9),
    ("background", signal.SIGTERM, "parent", 143),
    ("background", signal.SIGHUP, "parent", 129),
    ("background", signal.SIGINT, "rank", 130),
    ("foreground", signal.SIGINT, "parent", 130),
    ("foreground", signal.SIGKILL, "rank", 2),
    ("foreground", signal.SIGTERM, "rank", 143),
    ("foreground", signal.SIGHUP, "rank", 129),
]


def test_whatever_ends_two_processes_they_resume_to_the_same_bytes(in_process, tmp_path):
    """At moments that nobody chose, in a training that evaluates and estimates its norms on the way."""
    whole, stopped, log = tmp_path / "whole", tmp_path / "stopped", tmp_path / "log"
    keys = WITH_EVALUATIONS | {"SOLVER__MAX_ITER": 30, "SOLVER__CHECKPOINT_PERIOD": 2, "SSQL_DET__EVAL_PERIOD": 15}
    first, again = (train_arguments(out, "--resume", "--num-gpus", "2", **keys) for out in (whole, stopped))
    assert in_process(first, log)["status"] == 0, log.read_text()
    for place, number, target, status in ENDS:
        how = {"signal": number, "delay": random.uniform(0, 0.1)}
        how |= {"in_background": True} if place == "background" else {}
        how |= {"to_a_rank": True} if target == "rank" else {}
        workers = ["DATALOADER.NUM_WORKERS", str(int(number == signal.SIGKILL))]  # they end some seconds later
        ended = in_process(again + workers, log, pattern=f"{stopped}/model_*.pth", size=1, **how)
        assert ended["status"] == status, log.read_text()
        wait_until_ended(map(int, find_processes(tmp_path)))
        assert number == signal.SIGKILL or not list(stopped.glob(".*"))
    assert in_process(again, log)["status"] == 0, log.read_text()
    assert read_run(stopped) == read_run(whole)


def test_another_number_of_processes_resumes_with_the_same_batches(run_in_processes):
    (expected,) = read_fed_files(run_in_processes("save_fed_files", "whole", 0, processes=1), "whole")
    folder = run_in_processes("save_fed_files", "stopped", 5)
    run_in_processes("save_fed_files", "resumed", 0, processes=3, folder=folder)
    stopped, resumed = read_fed_files(folder, "stopped"), read_fed_files(folder, "resumed")
    assert (len(stopped), len(resumed)) == (2, 3)
    assert merge_ranks(stopped) == merge_ranks([expected[:5]])
    assert merge_ranks(resumed) == merge_ranks([expected[3:]])  # there was a checkpoint


def read_fed_files(folder, name):
    """By rank."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name} *.json"))]


def merge_ranks(of_ranks):
    return [sorted(itertools.chain(*shares)) for shares in zip(*of_ranks, strict=True)]


# ---- mistakes ------------------------------------------------------------------------------------------------------


def read_error(said):
    """The one line that a command ends with."""
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in said
    return line.removeprefix("error: ")


MULTIPLE_OF = (
    "SOLVER.IMS_PER_BATCH must be a multiple of {} (SSQL_DET.MICRO_BATCHES times the number of processes), got {}"
)
ON_GPUS_ONLY = "SyncBN needs GPUs; for several processes on the CPU set "


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            {"SOLVER__IMS_PER_BATCH": 3},
            MULTIPLE_OF.format(2, 3),
        ),
        (
            {"SOLVER__IMS_PER_BATCH": 6, "SSQL_DET__MICRO_BATCHES": 2},
            MULTIPLE_OF.format(4, 6),
        ),
        ({"MODEL__RESNETS__NORM": "SyncBN"}, ON_GPUS_ONLY + "MODEL.RESNETS.NORM to naiveSyncBN"),
        ({"SSQL_DET__EXTRA_NORM": "SyncBN"}, ON_GPUS_ONLY + "SSQL_DET.EXTRA_NORM to naiveSyncBN"),
        (
            WITH_EVALUATIONS | {"SSQL_DET__CALIB_IMAGES": 1},
            "SSQL_DET.CALIB_IMAGES must be at least the number of processes (2), got 1",
        ),
    ],
)
def test_a_batch_size_that_processes_cannot_share_is_refused(keys, expected, in_process, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    assert in_process(train_arguments(out, **keys), log, processes=2, seconds=120)["status"] == 2
    assert read_error(log.read_text()) == expected
    assert not out.exists()


@pytest.mark.parametrize("weights", [C4], indirect=True)
def test_fewer_calibration_images_than_processes_are_refused(weights, in_process, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    command = sweep_command(weights, out, "--calib-images", "1")
    assert in_process(command, log, processes=2, seconds=120)["status"] == 2
    expected = "calibration needs at least one image per process (2), got 1; calibrate with more images"
    assert read_error(log.read_text()) == expected
    assert not (out / "results.jsonl").exists()


def test_a_loss_that_is_not_finite_on_one_rank_stops_all(in_process, tmp_path):
    log, work = tmp_path / "log", "support.detect.processes:train_to_nan_on_the_second"
    assert in_process([tmp_path], log, work=work, processes=2, seconds=120)["status"] == 2
    assert read_error(log.read_text()).startswith("loss_cls is nan at iteration 0; lower SOLVER.BASE_LR")


@pytest.mark.parametrize("command", ["train-det", "sweep"])
def test_zero_processes_are_refused(command, capsys):
    line = refused(capsys, command, "--config-file", str(CONFIGS / C4), "--num-gpus", "0")
    assert "--num-gpus" in line


# ---- torchrun ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [C4], indirect=True)
def test_torchrun_sweeps_as_one_process_does(weights, run_sweep, tmp_path):
    """The tools have what comes behind the command's name. For a training see ``test_slurm.py``."""
    out, command = tmp_path / "two", [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", TOOLS / "eval_quantized.py", *sweep_command(weights, out)[1:]]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count(f"wrote {out}/results.jsonl") == 1
    assert has_same_rows(out, run_sweep(1))
