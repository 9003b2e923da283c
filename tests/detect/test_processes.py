"""Several processes: they share each batch, each calibration and each evaluation, and are stopped as one is."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detect import two_processes
from detect.making import C4, CONFIGS, FPN, config, tiny, unsettled
from detect.runs import LOOKING, arguments, ends_as, farthest, first_gradients, numbers, same
from kills import kill_until_done
from refusals import refused

import ssql_det
from ssql_det.core import rows
from ssql_det.core.choices import seed_all
from ssql_det.detect import train as training
from ssql_det.detect.stream import training_batches
from ssql_det.detect.weights import build_detector

TOOLS = Path(ssql_det.__file__).parents[1] / "tools"


@pytest.fixture(scope="module")
def in_two(in_process, tmp_path_factory):
    """Runs a function of ``two_processes`` in both, in a folder that is made for it."""

    def run(work, *more, processes=2, folder=None):
        folder = folder or tmp_path_factory.mktemp(work)
        done = in_process(
            [folder, *more], folder / "log", work=f"detect.two_processes:{work}", processes=processes, seconds=300
        )
        assert done["status"] == 0, (folder / "log").read_text()
        return folder

    return run


def ranks_of(folder, name="{}.pt"):
    return [torch.load(folder / name.format(rank)) for rank in (0, 1)]


# ---- gradients -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reduced(in_two):
    return in_two("gradients")


def alone(rank, case, folder, monkeypatch):
    """The gradients of one process that is given a rank's images and seed, and the weights of the first."""
    cfg = two_processes.of_case(case, folder)
    shares = (batch[rank::2] for batch in training_batches(cfg, cfg.SEED))

    def build(cfg):
        torch.manual_seed(cfg.SEED)
        model = two_processes.in_float64(cfg)
        seed_all(cfg.SEED + rank)
        build_detector(cfg)  # draws what this rank drew for weights of its own
        return model

    with monkeypatch.context() as patch:
        patch.setattr(training, "training_batches", lambda *args, **kwargs: shares)
        return first_gradients(cfg, build)


@pytest.mark.parametrize("case", two_processes.CASES)
def test_a_reduced_gradient_is_the_mean_of_the_gradients_of_two_single_processes(case, reduced, monkeypatch, tmp_path):
    """Detectron2's way: losses are divided by what a rank has sampled, and ranks count the same."""
    (first, _), (second, _) = ranks_of(reduced, f"{case}, rank {{}}.pt")
    assert same(first, second)
    singles = [alone(rank, case, tmp_path, monkeypatch) for rank in (0, 1)]
    assert farthest(*singles) > 0.1
    mean = {name: (singles[0][name] + singles[1][name]) / 2 for name in first}
    assert farthest(first, mean) <= 1e-9


def test_gradients_are_exchanged_once_after_the_last_part(reduced):
    before, between = zip(*(parts for _, parts in ranks_of(reduced, "C4, two parts, rank {}.pt")), strict=True)
    assert before == (None, None)
    assert not torch.equal(*between)


def test_norms_over_all_ranks_make_two_processes_one(in_two):
    expected = torch.load(in_two("gradients_with", "BN", processes=1) / "0.pt")
    for norm, kept in (("naiveSyncBN", True), ("BN", False)):
        first, second = ranks_of(in_two("gradients_with", norm))
        assert same(first, second)
        assert (farthest(first, expected) <= 1e-5) == kept  # boxes are float32


# ---- the norms' statistics -----------------------------------------------------------------------------------------


def statistics(model, norms, batches):
    """Mean and variance of what some norms are given in all these batches, by hand."""
    pixels = {name: [] for name in norms}

    def seen(name):
        return lambda _, given: pixels[name].append(given[0].transpose(0, 1).flatten(1))

    hooks = [model.get_submodule(name).register_forward_pre_hook(seen(name)) for name in norms]
    with torch.no_grad():
        for batch in batches:
            model.train().backbone(model.preprocess_image(batch).tensor)
    for hook in hooks:
        hook.remove()
    of_all = {name: torch.cat(each, dim=1) for name, each in pixels.items()}
    return {name: (each.mean(1), each.var(1, correction=0)) for name, each in of_all.items()}


def test_precise_norms_have_the_statistics_of_all_ranks_images(in_two, tmp_path):
    found, of_the_second = ranks_of(in_two("estimated"))
    assert same(found, of_the_second)
    cfg = two_processes.of_case("C4", tmp_path)
    torch.manual_seed(0)
    model = two_processes.in_float64(cfg)
    norms = [name.removesuffix(".running_mean") for name in found if re.match(r"backbone\..*\.running_mean", name)]
    assert len(norms) == 9
    shares = []
    for rank in (0, 1):
        batches = itertools.islice(training_batches(cfg, cfg.SEED + 1), cfg.TEST.PRECISE_BN.NUM_ITER)
        shares.append(statistics(model, norms, (batch[rank::2] for batch in batches)))
    for name in norms:
        means, variances = map(torch.stack, zip(*(share[name] for share in shares), strict=True))
        torch.testing.assert_close(found[f"{name}.running_mean"], means.mean(0))
        torch.testing.assert_close(found[f"{name}.running_var"], variances.mean(0) + means.var(0, correction=0))


@pytest.mark.parametrize("is_precise", [True, False])
def test_a_look_finds_the_same_network_on_every_rank(is_precise, in_two):
    first, second = ranks_of(in_two("looked_at", is_precise))
    assert len(first) == 3
    assert same(first, second)


# ---- evaluation ----------------------------------------------------------------------------------------------------


MANY = {"MODEL__RPN__POST_NMS_TOPK_TEST": 30, "TEST__DETECTIONS_PER_IMAGE": 60}


@pytest.fixture(scope="module", params=[C4, FPN])
def weights(request, toy_data_in_place, tmp_path_factory):
    """A config, and weights of its detector."""
    torch.manual_seed(3)  # by chance these find some objects, also with other norms
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": unsettled(build_detector(config(request.param))).state_dict()}, path)
    return request.param, path


def sweeping(weights, out, *flags):
    """The command; of two options of one name the last counts."""
    name, path = weights
    line = ["sweep", "--config-file", str(CONFIGS / name), "--bits", "FP,4", "--calib-images", "5", *flags]
    return [*line, *tiny(OUTPUT_DIR=out, MODEL__WEIGHTS=path, **MANY)]


@pytest.fixture
def swept(weights, in_process, tmp_path):
    """Sweeps in some processes; the folder with what came out."""

    def swept(processes, *flags):
        out, log = tmp_path / str(processes), tmp_path / "log"
        ended = in_process(sweeping(weights, out, *flags), log, processes=processes, seconds=300)
        assert ended["status"] == 0, log.read_text()
        return out

    return swept


def has_the_rows_of(two, one):
    found, expected = (rows.read(folder / "results.jsonl") for folder in (two, one))
    assert [row.bits for row in found] == [row.bits for row in expected] == ["FP", "4w4a"]
    return (
        numbers(found) == numbers(expected) and (two / "ranges.json").read_bytes() == (one / "ranges.json").read_bytes()
    )


@pytest.mark.parametrize("flags", [(), ("--recalibrate-bn",)])
def test_a_sweep_of_two_processes_is_that_of_one(flags, swept):
    one = swept(1, *flags)
    assert has_the_rows_of(swept(2, *flags), one)
    assert any(row.metrics["bbox/AP50"] > 0 for row in rows.read(one / "results.jsonl"))


@pytest.mark.parametrize("weights", [FPN], indirect=True)
def test_a_rank_without_images_waits_for_the_others(swept, toy, tmp_path):
    content = json.loads((toy / "coco/annotations/instances_val2017.json").read_text())
    content["images"] = content["images"][:2]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] in kept]
    (tmp_path / "two.json").write_text(json.dumps(content))
    flags = ("--coco-val", f"{toy}/coco/val2017:{tmp_path}/two.json")
    assert has_the_rows_of(swept(3, *flags), swept(1, *flags))


# ---- stopped and resumed -------------------------------------------------------------------------------------------


def test_killed_processes_resume_to_the_same_bits(in_process, tmp_path):
    """kill -9 of both at moments that nobody chose, in a training that looks and estimates its norms on the way."""
    whole, killed, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log"
    ended = in_process(arguments(whole, **LOOKING), log, processes=2, seconds=300)
    assert ended["status"] == 0, log.read_text()
    moments = kill_until_done(in_process, arguments(killed, "--resume", **LOOKING), log, ended["seconds"], processes=2)
    assert ends_as(killed, whole), f"killed after {moments} s"
    found, expected = (rows.read(folder / "looks.jsonl") for folder in (killed, whole))
    assert [(row.checkpoint, row.bits) for row in found] == [(row.checkpoint, row.bits) for row in expected]
    assert [row.metrics for row in found] == [row.metrics for row in expected]
    assert len(found) == 6


def test_another_number_of_processes_goes_on_with_the_same_batches(in_two):
    (expected,) = fed(in_two("fed", "whole", 0, processes=1), "whole")
    folder = in_two("fed", "stopped", 5)
    in_two("fed", "resumed", 0, processes=3, folder=folder)
    stopped, resumed = fed(folder, "stopped"), fed(folder, "resumed")
    assert (len(stopped), len(resumed)) == (2, 3)
    assert batches(stopped) == batches([expected[:5]])
    assert batches(resumed) == batches([expected[3:]])  # there was a checkpoint


def fed(folder, name):
    """By rank."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name} *.json"))]


def batches(of_ranks):
    return [sorted(itertools.chain(*shares)) for shares in zip(*of_ranks, strict=True)]


# ---- mistakes ------------------------------------------------------------------------------------------------------


def complaint(said):
    """The one line that a command ends with."""
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in said
    return line.removeprefix("error: ")


ON_GPUS_ONLY = "SyncBN shares its statistics between GPUs only; for several processes on the CPU set "


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            {"SOLVER__IMS_PER_BATCH": 3},
            "2 processes cannot share 3 images: make SOLVER.IMS_PER_BATCH 3 a multiple of 2",
        ),
        (
            {"SOLVER__IMS_PER_BATCH": 6, "SSQL__MICRO_BATCHES": 2},
            "2 processes cannot share 3 images: make SOLVER.IMS_PER_BATCH 6 a multiple of 4",
        ),
        ({"MODEL__RESNETS__NORM": "SyncBN"}, ON_GPUS_ONLY + "MODEL.RESNETS.NORM to naiveSyncBN"),
        ({"SSQL__EXTRA_NORM": "SyncBN"}, ON_GPUS_ONLY + "SSQL.EXTRA_NORM to naiveSyncBN"),
        (
            LOOKING | {"SSQL__CALIB_IMAGES": 1},
            "calibration needs at least 1 image a process, of 2; got SSQL.CALIB_IMAGES 1",
        ),
    ],
)
def test_a_training_that_processes_cannot_share_is_refused(keys, expected, in_process, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    assert in_process(arguments(out, **keys), log, processes=2, seconds=120)["status"] == 2
    assert complaint(log.read_text()) == expected
    assert not out.exists()


@pytest.mark.parametrize("weights", [C4], indirect=True)
def test_fewer_images_than_processes_are_not_calibrated_with(weights, in_process, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    command = sweeping(weights, out, "--calib-images", "1")
    assert in_process(command, log, processes=2, seconds=120)["status"] == 2
    assert complaint(log.read_text()) == "2 processes cannot share 1 images; calibrate with more"
    assert not (out / "results.jsonl").exists()


NOT_A_NUMBER_ON_THE_SECOND = """
import torch
from ssql_det.cli.main import main
from ssql_det.core.ranks import rank
from ssql_det.detect import train as training

losses = training._losses
training._losses = lambda *args: losses(*args) | ({"loss_cls": torch.tensor(float("nan"))} if rank() else {})

if __name__ == "__main__":
    main()
"""


def test_a_loss_that_is_not_finite_on_one_rank_ends_all(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(NOT_A_NUMBER_ON_THE_SECOND)
    command = [sys.executable, program, *arguments(tmp_path / "out", "--num-gpus", "2")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 2, ended.stderr
    assert complaint(ended.stderr).startswith("loss_cls is nan at iteration 0; lower SOLVER.BASE_LR")


@pytest.mark.parametrize("command", ["train-det", "sweep"])
def test_no_processes_are_refused(command, capsys):
    line = refused(capsys, command, "--config-file", str(CONFIGS / C4), "--num-gpus", "0")
    assert "--num-gpus" in line


# ---- torchrun ------------------------------------------------------------------------------------------------------


def torchrun(tool, arguments):
    """``tools/`` have what comes behind the command's name."""
    starter = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", TOOLS / tool]
    ended = subprocess.run([*starter, *arguments[1:]], capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_torchrun_trains_and_sweeps_as_other_processes_do(in_process, tmp_path):
    few = {"SOLVER__MAX_ITER": 2, "SOLVER__STEPS": (), "TEST__PRECISE_BN__NUM_ITER": 1}
    other, log = tmp_path / "other", tmp_path / "log"
    assert in_process(arguments(other, **few), log, processes=2)["status"] == 0, log.read_text()
    trained = f"trained: {tmp_path}/out/model_final.pth"
    assert torchrun("train_net.py", arguments(tmp_path / "out", **few)).count(trained) == 1
    assert ends_as(tmp_path / "out", other)

    weights = C4, tmp_path / "out/model_final.pth"
    assert in_process(sweeping(weights, tmp_path / "one"), log)["status"] == 0, log.read_text()
    said = torchrun("eval_quantized.py", sweeping(weights, tmp_path / "two"))
    assert said.count(f"rows: {tmp_path}/two/results.jsonl") == 1
    assert has_the_rows_of(tmp_path / "two", tmp_path / "one")
