"""A pretraining that is stopped at any moment and resumed equals an uninterrupted one, bit for bit."""

import json
import random
import shutil

import pytest
import torch
from support.pretrain.runs import MINI, StoppedError, config, content, keys, same

from ssql_det.core.config import read_saved_config
from ssql_det.core.errors import UserError
from ssql_det.core.files import sha256
from ssql_det.pretrain.checkpoint import TrainingState
from ssql_det.pretrain.loop import pretrain

pytestmark = pytest.mark.usefixtures("logging_as_it_was")


@pytest.mark.parametrize("method", ["byol", "moco"])
def test_a_killed_run_writes_the_same_bytes(method, in_process, toy, tmp_path):
    """kill -9 at three random moments, of six steps; moco under SSQL. Rows identify a checkpoint by its hash."""
    log, out, moments = tmp_path / "log", tmp_path / "killed", sorted(random.Random().sample(range(1, 6), 3))
    run = {"METHOD": method, **({"MOCO.QUEUE": 40} if method == "moco" else {"SSQL.ENABLED": False})}
    command = ["pretrain", "--config-file", str(MINI), "--resume", *keys(toy, out, **run)]
    ended = in_process([*command[:3], *keys(toy, tmp_path / "whole", **run)], log)
    assert ended["status"] == 0, log.read_text()
    for steps in moments:
        in_process(command, log, file=str(out / "metrics.jsonl"), lines=steps)
    assert in_process(command, log)["status"] == 0, log.read_text()
    ours, theirs = content(out), content(tmp_path / "whole")
    assert same(ours, theirs), f"killed after {moments} steps"
    assert sha256(out / "checkpoint.pth") == sha256(tmp_path / "whole" / "checkpoint.pth")
    assert not list(out.glob(".*"))
    assert "momentum" in ours
    if method == "moco":
        assert ours["heads"]["queue.place"] == 3 * 2 * 24 % 40  # epochs, steps, images


def test_a_resumed_run_without_momentum_or_ssql_writes_the_same_bytes(toy, stop_after, tmp_path):
    """Stopped after the first of two epochs."""
    run = {"METHOD": "simclr", "SSQL.ENABLED": False, "OPTIM__EPOCHS": 2}
    pretrain(config(toy, tmp_path / "whole", **run))
    stop_after(config(toy, tmp_path / "stopped", **run), 2)
    pretrain(config(toy, tmp_path / "stopped", **run), resume=True)
    ours, theirs = (sha256(tmp_path / name / "checkpoint.pth") for name in ("stopped", "whole"))
    assert ours == theirs
    assert "momentum" not in content(tmp_path / "whole")


def test_a_kill_while_saving_leaves_the_previous_checkpoint(whole, toy, monkeypatch, tmp_path):
    save, count = torch.save, []

    def torn(content, file, **options):
        count.append(1)
        if len(count) == 2:
            file.write(b"half of it")
            raise StoppedError
        save(content, file, **options)

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(StoppedError):
        pretrain(config(toy, tmp_path))
    assert content(tmp_path)["resume"]["steps"] == 2
    monkeypatch.setattr(torch, "save", save)
    pretrain(config(toy, tmp_path), resume=True)
    assert same(content(tmp_path), content(whole))
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(6))


def test_a_full_disk_leaves_the_last_checkpoint(toy, tmp_path, small_disk, monkeypatch):
    save = TrainingState.save

    def once(run, folder, steps):
        path = save(run, folder, steps)
        small_disk()
        return path

    monkeypatch.setattr(TrainingState, "save", once)
    with pytest.raises(UserError, match=r"could not write .*checkpoint\.pth"):
        pretrain(config(toy, tmp_path))
    assert content(tmp_path)["resume"]["steps"] == 2


def test_a_finished_run_is_not_changed_by_resuming(whole, toy, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    before = content(tmp_path / "run")
    pretrain(config(toy, tmp_path / "run"), resume=True)
    assert same(content(tmp_path / "run"), before)


def test_another_config_is_not_resumed(whole, toy):
    with pytest.raises(
        UserError, match=r"has OPTIM\.LR 0\.02 \(now 0\.1\), SIMSIAM\.HIDDEN 8 \(now 9\); resume with its config"
    ):
        pretrain(config(toy, whole, OPTIM__LR=0.1, SIMSIAM__HIDDEN=9), resume=True)
    with pytest.raises(UserError, match="already holds a run; add --resume"):
        pretrain(config(toy, whole))


def remove_schemes(folder):
    """Remove the keys of schemes from a saved config, as in versions without schemes."""
    kept = [line for line in (folder / "config.yaml").read_text().splitlines() if "SCHEME:" not in line]
    (folder / "config.yaml").write_text("\n".join([*kept, ""]))


def test_a_run_of_a_version_without_schemes_is_resumed(whole, toy, stop_after, tmp_path):
    stop_after(config(toy, tmp_path), 4)
    before = read_saved_config(tmp_path)
    remove_schemes(tmp_path)
    assert before.keys() - read_saved_config(tmp_path).keys() == {"SSQL.SCHEME", "MONITOR.SCHEME"}
    with pytest.raises(UserError, match=r"has SSQL\.SCHEME 'minmax' \(now 'act=mse'\); resume with its config"):
        pretrain(config(toy, tmp_path, SSQL__SCHEME="act=mse"), resume=True)
    pretrain(config(toy, tmp_path), resume=True)
    assert sha256(tmp_path / "checkpoint.pth") == sha256(whole / "checkpoint.pth")
    assert read_saved_config(tmp_path) == before


def test_a_run_resumes_with_its_scheme_only(toy, stop_after, tmp_path):
    run = {"SSQL__SCHEME": "act=mse", "OPTIM__EPOCHS": 2}
    pretrain(config(toy, tmp_path / "whole", **run))
    stop_after(config(toy, tmp_path / "stopped", **run), 2)
    with pytest.raises(UserError, match=r"has SSQL\.SCHEME 'act=mse' \(now 'minmax'\)"):
        pretrain(config(toy, tmp_path / "stopped", OPTIM__EPOCHS=2), resume=True)
    pretrain(config(toy, tmp_path / "stopped", **run, MONITOR__SCHEME="mse"), resume=True)
    ours, theirs = (sha256(tmp_path / name / "checkpoint.pth") for name in ("stopped", "whole"))
    assert ours == theirs


def test_other_images_are_not_resumed(whole, toy, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    before = (tmp_path / "run" / "checkpoint.pth").read_bytes()
    crops = tmp_path / "crops"
    shutil.copytree(toy / "crops", crops)
    next(iter(sorted((crops / "train").rglob("*.png")))).unlink()
    config_file = tmp_path / "run" / "config.yaml"
    config_file.write_text(config_file.read_text().replace(str(toy / "crops"), str(crops)))
    with pytest.raises(UserError, match="the training images have changed"):
        pretrain(config(toy, tmp_path / "run", DATA__TRAIN=crops), resume=True)
    assert (tmp_path / "run" / "checkpoint.pth").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda checkpoint: checkpoint.pop("resume"), "it has no resume"),
        (lambda checkpoint: checkpoint["resume"].pop("optimizer"), "it has no optimizer"),
        (lambda checkpoint: checkpoint["resume"].update(steps=700), "it is at step 700 of 6"),
        (lambda checkpoint: checkpoint["resume"].update(steps=-7), "it is at step -7 of 6"),
        (lambda checkpoint: checkpoint["resume"].update(steps=1.5), "it is at step 1.5 of 6"),
        (lambda checkpoint: checkpoint["resume"].update(steps=float("inf")), "it is at step inf of 6"),
        (lambda checkpoint: checkpoint["resume"]["rng"][0].update(python=[]), "cannot be resumed from"),
        (lambda checkpoint: checkpoint["online"]["bn1.running_mean"].fill_(float("nan")), "running_mean has NaN or"),
        (lambda checkpoint: checkpoint["resume"].update(rng=[5]), "cannot be resumed from"),
        (lambda checkpoint: checkpoint["resume"].update(rng=None), "cannot be resumed from"),
        (lambda checkpoint: checkpoint.pop("online"), "it has no online"),
        (lambda checkpoint: checkpoint.update(online=[1]), "cannot be resumed from"),
        (lambda checkpoint: checkpoint["heads"].popitem(), r"Missing key\(s\) in state_dict"),
    ],
)
def test_a_damaged_checkpoint_is_not_resumed(change, message, whole, toy, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    checkpoint = content(whole)
    change(checkpoint)
    torch.save(checkpoint, tmp_path / "run" / "checkpoint.pth")
    with pytest.raises(UserError, match=message):
        pretrain(config(toy, tmp_path / "run"), resume=True)


@pytest.fixture(scope="module")
def whole_moco(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("moco")
    pretrain(config(toy, folder, METHOD="moco", MOCO__QUEUE=40, OPTIM__EPOCHS=1))
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda checkpoint: checkpoint.pop("momentum"), "it has no momentum"),
        (
            lambda checkpoint: checkpoint["momentum"].pop("conv1.weight"),
            r"Missing key.*momentum\.network\.backbone\.conv1\.weight",
        ),
        (lambda checkpoint: checkpoint["heads"].pop("queue.keys"), r"Missing key.*queue\.keys"),
        (lambda checkpoint: checkpoint["heads"].pop("queue.place"), r"Missing key.*queue\.place"),
    ],
)
def test_a_checkpoint_without_moving_average_or_queue_is_not_resumed(change, message, whole_moco, toy, tmp_path):
    shutil.copytree(whole_moco, tmp_path / "run")
    checkpoint = content(whole_moco)
    change(checkpoint)
    torch.save(checkpoint, tmp_path / "run" / "checkpoint.pth")
    with pytest.raises(UserError, match=message):
        pretrain(config(toy, tmp_path / "run", METHOD="moco", MOCO__QUEUE=40, OPTIM__EPOCHS=1), resume=True)


def test_two_processes_with_shuffled_images_resume_bit_for_bit(in_process, toy, tmp_path):
    """The random order of MoCo's shuffle continues, too. In bfloat16, which the processes also exchange."""
    run = {"METHOD": "moco", "MOCO.QUEUE": 40, "OPTIM.EPOCHS": 2, "AMP": True, "DATA.SIZE": 32}
    out = [keys(toy, tmp_path / name, **run) for name in ("whole", "stopped")]
    log = tmp_path / "log"
    ended = in_process([MINI, *out], log, work="support.pretrain.processes.whole_and_stopped", processes=2)
    assert ended["status"] == 0, log.read_text()
    assert same(content(tmp_path / "stopped"), content(tmp_path / "whole"))


def test_a_resumed_run_does_not_need_init(whole, toy, tmp_path):
    shutil.copy(whole / "checkpoint.pth", tmp_path / "init.pth")
    given = {"INIT": tmp_path / "init.pth", "OPTIM__EPOCHS": 1}
    pretrain(config(toy, tmp_path / "run", **given))
    (tmp_path / "init.pth").unlink()
    pretrain(config(toy, tmp_path / "run", **given), resume=True)
