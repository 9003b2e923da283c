"""`ssql-det reproduce` with bad input: one sentence, exit code 2, nothing written. A dry run writes nothing either."""

import os
import shlex
import shutil
from collections import namedtuple

import pytest
from support.refusals import refused
from support.reproduce.plans import ROOT, build_plan

from ssql_det.cli import reproduce
from ssql_det.cli.main import main, make_parser

pytestmark = pytest.mark.usefixtures("logging_as_it_was")
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def _in_the_clone(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(autouse=True)
def runs(monkeypatch):
    """Steps that were begun; there are none."""
    begun = []
    monkeypatch.setattr("ssql_det.reproduce.runner.run_steps", lambda *given: begun.append(given) or {})
    yield begun
    assert not begun


@pytest.fixture
def out(tmp_path):
    """The folder named for a run; nothing is written, there or beside it."""
    before = {path: path.stat() for path in tmp_path.rglob("*")}
    yield tmp_path / "out"
    assert {path: path.stat() for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--preset min", "unknown preset 'min'; did you mean 'mini'? (known: mini, small, paper)"),
        ("--table 5", "--table 5: not in the preset mini, which has 1, 6, 7, 8, 12"),
        ("--table 3", "--table 3: not in the preset mini, which has 1, 6, 7, 8, 12"),
        ("--preset paper --table 1 --checkpoint SSQL=a.pth", "Table 1 has several networks and a checkpoint only one"),
        ("--table 1 --checkpoint SSQL=no/where.pth", "there is no file no/where.pth, which probe-ssql reads"),
        ("--table six", "argument --table: invalid int value: 'six'"),
        ("--budget 0", "--budget must be above 0 and at most 1, got 0.0"),
        ("--budget 2", "--budget must be above 0 and at most 1, got 2.0"),
        ("--budget -0.5", "--budget must be above 0 and at most 1, got -0.5"),
        ("--budget nan", "--budget must be above 0 and at most 1, got nan"),
        ("--preset paper --budget 0.5", "--budget shortens runs on toy data"),
        ("--bits 1", "weight bits must be 2 to 16, or None for float; got 1"),
        ("--bits FP,four", "cannot read bits 'four'"),
        ("--seeds 0", "argument --seeds: "),
        ("--jobs 0", "argument --jobs: "),
        ("--num-gpus 0", "argument --num-gpus: "),
        ("--methods SimSam", "unknown method 'SimSam'; did you mean 'SimSiam'? (known: random init., "),
        ("--methods BYOL", "no config pretrains BYOL; add --checkpoint 'BYOL'=FILE"),
        ("--checkpoint SSQL", "--checkpoint must be METHOD=FILE, such as SSQL=ssql.pth; got 'SSQL'"),
        ("--checkpoint SSQL=", "--checkpoint must be METHOD=FILE, such as SSQL=ssql.pth; got 'SSQL='"),
        ("--checkpoint =ssql.pth", "unknown method ''"),
        ("--checkpoint SSKL=a.pth", "unknown method 'SSKL'; did you mean 'SSQL'?"),
        ("--checkpoint SSQL=no/where.pth", "there is no file no/where.pth, which convert-ssql reads"),
        ("--checkpoint SSQL=docs", "there is no file docs, which convert-ssql reads"),
        ("--preset paper --checkpoint BYOL=a.pth", "the tables need different architectures; choose one"),
        ("--checkpoint SSQL=a.pth --checkpoint SSQL=b.pth", "gives two files for SSQL, a.pth and b.pth; leave one out"),
        ("--out .", "--out must be a folder for this run alone, such as runs/mini; got ."),
        ("more", "unrecognized arguments: more"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, said, out, capsys):
    assert said in refused(capsys, "reproduce", "--out", str(out), *shlex.split(arguments))
    assert not out.exists()


@pytest.mark.parametrize("table", [6, 7])
def test_the_paper_wants_its_data_sets(table, out, capsys, monkeypatch, tmp_path_factory):
    data = tmp_path_factory.mktemp("data")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data))
    given = ("reproduce", "--preset", "paper", "--table", str(table), "--out", str(out))
    nowhere, here = (["--imagenet", str(data / name)] for name in ("nowhere", "."))
    assert refused(capsys, *given, *nowhere).endswith("to pretrain on; say where ImageNet is: --imagenet DIR")
    said = refused(capsys, *given, *here)
    assert said.startswith(
        f"error: Table {table} needs {({6: 'VOC2007', 7: 'coco'})[table]}, and {data} has no folder of"
    )
    for name in ("VOC2007", "coco"):
        (data / name).mkdir()
    if table == 6:
        assert "Table 6 needs VOC2012" in refused(capsys, *given, *here)
    (data / "VOC2012").mkdir()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1, 1, 0))
    assert "its disk has 0.0 GB free" in refused(capsys, *given, *here)  # that is all there is to want


@pytest.mark.parametrize(("table", "name", "option"), [(1, "CIFAR-10", "cifar10"), (3, "ImageNet", "imagenet")])
def test_the_paper_wants_what_it_pretrains_on_and_probes_with(table, name, option, out, capsys, monkeypatch):
    given = ("reproduce", "--preset", "paper", "--table", str(table), "--out", str(out))
    said = refused(capsys, *given, f"--{option}", "nowhere")
    assert said == f"error: there is no folder nowhere to pretrain on; say where {name} is: --{option} DIR"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1, 1, 0))
    assert "its disk has 0.0 GB free" in refused(capsys, *given, f"--{option}", ".")


def test_a_full_disk(out, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or Usage(1e9, 1e9, 2e7))
    megabytes = sum(step.megabytes for step in build_plan("mini").steps)
    said = refused(capsys, "reproduce", "--out", str(out / "deep/er"))
    assert (
        said == f"error: {out}/deep/er needs {megabytes / 1000:.1f} GB, but its disk has 0.0 GB free; name another disk"
    )
    assert asked == [out.parent]


def test_what_is_there_already_needs_no_room(tmp_path, capsys, monkeypatch, runs):
    for step in build_plan("mini", str(tmp_path)).steps:
        step.folder.mkdir(parents=True)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1e9, 1e9, 2e7))
    main(["reproduce", "--out", str(tmp_path)])
    assert runs.pop()[1] == tmp_path
    assert "nothing was measured, so there is no report" in capsys.readouterr().out


def test_out_of_a_clone_the_configs_are_the_packages(out, capsys, monkeypatch, runs):
    monkeypatch.chdir(out.parent)
    main(["reproduce", "--out", str(out), "--budget", "0.5"])
    steps, *_ = runs.pop()
    assert "--config-file configs/pretrain/mini.yaml" in " ".join(word for step in steps for word in step.arguments)


def really(monkeypatch):
    """Steps are begun, if it comes to that."""
    monkeypatch.undo()
    monkeypatch.setattr("ssql_det.core.console.set_up_logging", lambda *ignored: None)
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("below", ["", "deep"])
def test_out_that_is_a_file(below, tmp_path, capsys, monkeypatch):
    really(monkeypatch)
    (tmp_path / "file").write_text("mine")
    said = refused(capsys, "reproduce", "--out", str(tmp_path / "file" / below))
    assert str(tmp_path / "file") in said
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_out_in_a_folder_without_rights(tmp_path, capsys, monkeypatch):
    really(monkeypatch)
    tmp_path.chmod(0o500)
    assert "Permission denied" in refused(capsys, "reproduce", "--out", str(tmp_path / "out"))


# ---- a dry run -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "--preset small --seeds 1",
        "--preset paper --table 6 --checkpoint 'IN supervised=no/where.pth'",
        "--budget 0.1",
        "--table 1 8 12 --seeds 2",
        "--preset paper --table 3 8 --cifar10 /no/cifar",
    ],
)
def test_a_dry_run_prints_every_command_and_writes_nothing(arguments, out, capsys, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/no/data sets")
    given = [*shlex.split(arguments), "--out", str(out)]
    main(["reproduce", "--dry-run", *given])
    printed = capsys.readouterr().out
    lines = [shlex.split(line) for line in printed.splitlines() if line.startswith(("ssql-det ", "export "))]
    options = make_parser().parse_args(["reproduce", *given])
    steps = build_plan(options.preset, out, **chosen(options)).steps
    assert [words[1:] for words in lines[1:]] == [list(step.arguments) for step in steps]
    data = "/no/data sets" if options.preset == "paper" else f"{out}/data"
    assert lines[0][:2] == ["export", f"DETECTRON2_DATASETS={data}"]
    for words in lines[1:]:
        make_parser().parse_args(words[1:])
    assert all(f"  {step.name} " in printed for step in steps)
    assert f"\n{len(steps)} steps, about " in printed
    assert ("a guess, not measured" in printed) == (options.preset != "mini")
    assert ("left out: BYOL of Table 6: " in printed) == (options.preset != "paper" and "--table" not in arguments)
    assert not out.exists()


def chosen(options):
    choices = vars(reproduce._make_options(options, has_gpu=False))
    return {name: value for name, value in choices.items() if name != "out"}


def test_by_itself_it_is_the_mini_preset_in_a_folder_of_its_name(capsys):
    main(["reproduce", "--dry-run", "--jobs", "3"])
    printed = capsys.readouterr().out
    assert "\npreset mini, in runs/mini" in printed
    assert " with 3 at a time, " in printed
    assert all(step.command in printed for step in build_plan("mini", "runs/mini").steps)
