"""A resumed training equals an uninterrupted one, wherever it was stopped or killed."""

import shutil
from functools import partial

import pytest
import torch
from support.detect.configs import C4, PERIOD, config
from support.detect.training_runs import (
    StoppedError,
    is_equal,
    read_final,
    read_run,
    read_scalars,
    stopping_in_step,
    train_arguments,
)
from support.kills import repeat_until_killed, run_whole

from ssql_det.core.errors import UserError
from ssql_det.core.files import sha256
from ssql_det.detect import training_step
from ssql_det.detect.train import train

LONGER = {"SOLVER__MAX_ITER": 25}  # a longer run, with a second line in metrics.jsonl


# ---- stopped -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 4, 9])
def test_a_resumed_run_equals_an_uninterrupted_one(number, whole_run, tmp_path):
    with stopping_in_step(number):
        train(config(C4, tmp_path), C4)
    assert (tmp_path / "last_checkpoint").exists() == (number > PERIOD)
    train(config(C4, tmp_path), C4, resume=True)
    assert is_equal(
        read_final(tmp_path), read_final(whole_run)
    )  # weights, statistics, momenta, schedule, generators, scalars
    assert sha256(tmp_path / "model_final.pth") == sha256(whole_run / "model_final.pth")
    assert read_scalars(tmp_path) == read_scalars(whole_run)  # medians over iterations before and after the stop


def test_a_run_is_resumed_again_and_again(whole_run, tmp_path):
    for number in (5, 2, 3):
        with stopping_in_step(number):
            train(config(C4, tmp_path), C4, resume=True)
    train(config(C4, tmp_path), C4, resume=True)
    assert is_equal(read_final(tmp_path), read_final(whole_run))


def test_a_resumed_run_continues_in_the_data_with_micro_batches_and_workers(tmp_path):
    keys = {"SSQL_DET__MICRO_BATCHES": 2, "DATALOADER__NUM_WORKERS": 2}
    train(config(C4, tmp_path / "whole", **keys), C4)
    with stopping_in_step(6):
        train(config(C4, tmp_path / "stopped", **keys), C4)
    train(config(C4, tmp_path / "stopped", **keys), C4, resume=True)
    assert is_equal(read_final(tmp_path / "stopped"), read_final(tmp_path / "whole"))


def test_a_finished_run_is_unchanged(whole_run, tmp_path):
    shutil.copytree(whole_run, tmp_path / "run")
    train(config(C4, tmp_path / "run"), C4, resume=True)
    assert is_equal(read_final(tmp_path / "run"), read_final(whole_run))
    assert (tmp_path / "run/metrics.jsonl").read_text() == (whole_run / "metrics.jsonl").read_text()


def test_a_resumed_run_trains_on_the_following_images(monkeypatch, tmp_path):
    """The file names of each iteration."""
    fed = []

    def spy(model, batch, *rest):
        fed.append([each["file_name"] for each in batch])
        return losses(model, batch, *rest)

    losses = training_step.compute_losses
    monkeypatch.setattr(training_step, "compute_losses", spy)
    train(config(C4, tmp_path / "whole"), C4)
    expected = fed.copy()
    fed.clear()
    with stopping_in_step(5):
        train(config(C4, tmp_path / "stopped"), C4)
    assert fed == expected[:5]
    fed.clear()
    train(config(C4, tmp_path / "stopped"), C4, resume=True)
    assert fed == expected[PERIOD:]


# ---- killed --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def longer(in_process, tmp_path_factory):
    """A run in a process of its own that was not stopped, and how many seconds it took."""
    folder = tmp_path_factory.mktemp("longer")
    return folder / "run", run_whole(in_process, train_arguments(folder / "run", **LONGER), folder / "log")


def test_a_killed_run_resumes_to_the_same_bits(longer, in_process, tmp_path):
    """kill -9 at moments that nobody chose, most of them between checkpoints."""
    whole, seconds = longer
    arguments = partial(train_arguments, **LONGER)
    for out, killed in repeat_until_killed(in_process, lambda out: arguments(out, "--resume"), tmp_path, seconds, 4):
        assert read_run(out) == read_run(whole), f"killed after {killed} s"


def test_a_run_killed_while_writing_a_checkpoint_resumes_to_the_same_bits(longer, in_process, tmp_path):
    """As soon as there is a file, in the middle of it, and when it is there but no tag names it yet."""
    out, log = tmp_path / "run", tmp_path / "log"
    command = train_arguments(out, "--resume", **LONGER)
    for pattern, size in ((".model_*", 0), (".model_*", 2_000_000), (".model_*", 5_000_000), ("model_*.pth", 0)):
        assert in_process(command, log, pattern=f"{out}/{pattern}", size=size)["status"] == -9, log.read_text()
    assert in_process(command, log)["status"] == 0, log.read_text()
    assert read_run(out) == read_run(longer[0])


def test_an_interrupted_checkpoint_leaves_the_previous_one(whole_run, monkeypatch, tmp_path):
    def torn(content, file, **options):
        file.write(b"half of it")
        raise StoppedError

    with pytest.MonkeyPatch.context() as patch:
        save, count = torch.save, []

        def second(content, file, **options):
            count.append(1)
            return (torn if len(count) == 2 else save)(content, file, **options)

        patch.setattr(torch, "save", second)
        with pytest.raises(StoppedError):
            train(config(C4, tmp_path), C4)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"
    assert not (tmp_path / "model_0000005.pth").exists()
    train(config(C4, tmp_path), C4, resume=True)
    assert is_equal(read_final(tmp_path)["model"], read_final(whole_run)["model"])


# ---- what is resumed, and what is not ------------------------------------------------------------------------------


def test_resuming_without_a_checkpoint_begins_a_run(whole_run, tmp_path):
    train(config(C4, tmp_path), C4, resume=True)
    assert is_equal(read_final(tmp_path), read_final(whole_run))


def test_a_run_with_the_former_node_name_is_resumed(whole_run, tmp_path):
    with stopping_in_step(5):
        train(config(C4, tmp_path), C4)
    saved = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(saved.replace("SSQL_DET:", "SSQL:"))
    with pytest.raises(UserError, match=r"has SSQL_DET\.EXTRA_NORM 'BN' \(now ''\); resume"):
        train(config(C4, tmp_path, SSQL_DET__EXTRA_NORM=""), C4, resume=True)
    train(config(C4, tmp_path), C4, resume=True)
    assert is_equal(read_final(tmp_path), read_final(whole_run))
    assert (tmp_path / "config.yaml").read_text() == saved


def test_a_run_is_resumed_only_with_its_config(whole_run, tmp_path):
    shutil.copytree(whole_run, tmp_path / "run")
    keys = {"SSQL_DET__EXTRA_NORM": "", "SOLVER__BASE_LR": 0.01, "SOLVER__MAX_ITER": 20, "SSQL_DET__EVAL_PERIOD": 10}
    said = (
        r"the run in .*run has SOLVER\.BASE_LR 0\.005 \(now 0\.01\), SSQL_DET\.EXTRA_NORM 'BN' \(now ''\); resume with"
    )
    with pytest.raises(UserError, match=said):
        train(config(C4, tmp_path / "run", **keys), C4, resume=True)


def test_a_checkpoint_of_another_network_is_not_resumed(whole_run, tmp_path):
    shutil.copytree(whole_run, tmp_path / "run")
    content = read_final(whole_run)
    del content["model"]["roi_heads.res5.norm.weight"]
    torch.save(content, tmp_path / "run" / "model_final.pth")
    with pytest.raises(UserError, match=r"model_final\.pth does not fit this config .*; resume with the config of"):
        train(config(C4, tmp_path / "run"), C4, resume=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["rng"][0].update(numpy=[]),
        lambda content: content.update(iteration=True),
        lambda content: content["model"]["backbone.res2.0.conv1.norm.running_mean"].fill_(float("nan")),
    ],
)
def test_a_checkpoint_of_other_values_is_not_resumed(change, whole_run, tmp_path):
    shutil.copytree(whole_run, tmp_path / "run")
    content = read_final(whole_run)
    change(content)
    torch.save(content, tmp_path / "run" / "model_final.pth")
    with pytest.raises(UserError, match=r"model_final\.pth does not fit this config .*; resume with the config of"):
        train(config(C4, tmp_path / "run"), C4, resume=True)


def test_a_checkpoint_without_state_is_not_resumed(whole_run, tmp_path):
    content = read_final(whole_run)
    torch.save({key: content[key] for key in ("model", "iteration")}, tmp_path / "model_final.pth")
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    shutil.copy(whole_run / "config.yaml", tmp_path)
    with pytest.raises(UserError, match=r"model_final\.pth cannot be resumed from: it has no optimizer; train again"):
        train(config(C4, tmp_path), C4, resume=True)
