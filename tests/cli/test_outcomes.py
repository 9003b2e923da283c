"""Commands end with the path of what they made on stdout, and with the next command, which is right, on stderr."""

import logging

import pytest
from support.cli.lines import (
    analyze,
    arguments,
    convert,
    predict,
    pretrain,
    probe,
    quantize,
    quantize_backbone,
    read_next_command,
    search,
    sensitivity,
    sweep,
    train,
)
from support.toy_datasets import toy_names_at

from ssql_det.cli.main import COMMANDS, main

pytestmark = pytest.mark.slow
NEW = "{here}/new"
LINES = {
    "pretrain": (pretrain("MONITOR.PERIOD 0").replace("{out}", NEW), f"{NEW}/checkpoint.pth", "probe"),
    "probe": (probe(), "{out}/rows.jsonl {out}/rows.html", "tables"),
    "analyze": (analyze("--pairs 8 --points 10 --perplexity 2 --bits FP,4"), "{out}/report.html", "probe"),
    "train-det": (train().replace("{out}", NEW), f"{NEW}/model_final.pth", "sweep"),
    "quantize": (quantize(flags="--scheme norms=matched"), "{out}/q.safetensors", "sweep"),
    "quantize a backbone": (quantize_backbone(), "{out}/q.safetensors", "probe"),
    "sweep": (sweep(out=NEW), f"{NEW}/results.jsonl {NEW}/results.html", "report"),
    "sensitivity": (sensitivity(flags="--fast --out {here}/b.json"), "{here}/b.json", "sweep"),
    "search": (search(out=NEW), f"{NEW}/bits.json", "sweep"),
    "predict": (predict().replace("{out}", NEW), NEW, "sensitivity"),
    "convert": (convert(out="{here}/new.pth --to timm"), "{here}/new.pth", "inspect"),
    "make-toy-data": ("make-toy-data {here}/toy --scenes 4 --crops 10 --size 96 96", "{here}/toy", "pretrain"),
}
NOTHING_MADE = {
    "demo": ("demo --size 32 --arch narrow_resnet --bits FP,4", "reproduce"),
    "check-data": ("check-data {toy}", "train-det"),
    "inspect": ("inspect {good}/backbone.pth", "convert"),
    "configs": ("configs", "configs"),
}
# What tables prints is its result. The others are tried elsewhere: export and bench, which take long, in test_export.py
# and test_bench.py, reproduce in tests/reproduce, report and run, after which comes none, in test_report.py and
# tests/deploy.
OTHERS = {"tables", "export", "bench", "report", "reproduce", "run"}


@pytest.fixture(autouse=True)
def calm(logging_as_it_was):
    """In every test of this file."""


@pytest.fixture
def run(place, capsys):
    """The lines on stdout, and the words of the next command."""

    def run(line):
        capsys.readouterr()
        with toy_names_at(place.toy):
            main(arguments(line, place))
        output = capsys.readouterr()
        return output.out.splitlines(), read_next_command(output.err)

    return run


@pytest.mark.parametrize(("line", "made", "command"), LINES.values(), ids=LINES)
def test_what_was_made_and_the_next_command(line, made, command, run, place):
    out, words = run(line)
    assert {f"wrote {path}" for path in place.filled(made).split()} <= {*out}
    assert words[0] == command


@pytest.mark.parametrize(("line", "command"), NOTHING_MADE.values(), ids=NOTHING_MADE)
def test_the_next_command_where_nothing_was_made(line, command, run):
    _, words = run(line)
    assert words[0] == command


def test_every_command_is_tried():
    lines = (*(line for line, *_ in LINES.values()), *(line for line, _ in NOTHING_MADE.values()))
    assert {line.split()[0] for line in lines} | OTHERS == set(COMMANDS)


@pytest.mark.parametrize(
    ("line", "names"),
    [(sweep(out=NEW), ["FP: bbox/AP", "8w8a: bbox/AP"]), (probe("--bits FP,4"), ["FP: knn", "4w4a: knn"])],
)
def test_metrics_are_logged_as_soon_as_they_are_measured(line, names, run, caplog):
    caplog.set_level(logging.INFO, "ssql_det.cli")
    run(line)
    messages = [record.message for record in caplog.records if record.name.startswith("ssql_det.cli")]
    assert [any(message.startswith(name) for message in messages) for name in names] == [True, True]
