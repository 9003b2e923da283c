"""Command lines over the files of the fixtures ``good`` and ``place``; ``{good}`` and the like stand for folders."""

import shlex

from ssql_det.cli.main import make_parser

PHOTO = " {toy}/VOC2007/JPEGImages/000001.jpg"


def train(keys="", flags="", of="{good}/c4.yaml"):
    return f"train-det --config-file {of} {flags} OUTPUT_DIR {{out}} {keys}"


def sweep(keys="", flags="", of="c4", out="{out}"):
    given = f"--config-file {{good}}/{of}.yaml --calib-images 2 --bits FP,8 {flags}"
    return f"sweep {given} OUTPUT_DIR {out} MODEL.WEIGHTS {{good}}/{of}.pth {keys}"


def sensitivity(keys="", flags="--out {out}/bits.json"):
    given = f"--config-file {{good}}/c4.yaml --calib-images 2 --selection-images 2 {flags}"
    return f"sensitivity {given} MODEL.WEIGHTS {{good}}/c4.pth {keys}"


def search(keys="", flags="--budget '1 MB'", out="{out}"):
    given = f"--config-file {{good}}/c4.yaml --calib-images 2 --selection-images 2 --widths 4 --best 1 {flags}"
    return f"search {given} OUTPUT_DIR {out} MODEL.WEIGHTS {{good}}/c4.pth {keys}"


def quantize(keys="", flags="", out="{out}/q.safetensors"):
    given = f"--config-file {{good}}/c4.yaml --calib-images 2 --bits 8 --out {out} {flags}"
    return f"quantize {given} MODEL.WEIGHTS {{good}}/c4.pth {keys}"


def quantize_backbone(flags="", of="{good}/backbone.pth"):
    given = f"--checkpoint {of} --data {{toy}}/crops --device cpu --calib-images 2 {flags}"
    return f"quantize {given} --out {{out}}/q.safetensors"


def predict(rest=PHOTO, flags=""):
    given = f"--config-file {{good}}/c4.yaml --bits FP --out {{out}} {flags}"
    return f"predict {given} MODEL.WEIGHTS {{good}}/c4.pth {rest}"


def export(keys="", flags="--check-images 2", out="{out}/detector.onnx", of="c4"):
    given = f"--config-file {{good}}/{of}.yaml --threads 1 --out {out} {flags}"
    return f"export {given} MODEL.WEIGHTS {{good}}/{of}.pth {keys}"


def export_backbone(flags="--check-images 2", out="{out}/detector.onnx"):
    return f"export --checkpoint {{good}}/backbone.pth --threads 1 --out {out} {flags}"


def pretrain(keys="", flags="", of="{good}/pretrain.yaml"):
    return f"pretrain --config-file {of} {flags} OUTPUT_DIR {{out}} {keys}"


def probe(flags="", of="{good}/backbone.pth"):
    return f"probe knn --bits FP --device cpu --data {{toy}}/crops --out {{out}}/rows.jsonl --checkpoint {of} {flags}"


def analyze(flags="", of="{good}/backbone.pth"):
    return f"analyze --device cpu --data {{toy}}/crops --out {{out}} --checkpoints {of} {flags}"


def convert(checkpoint="{good}/backbone.pth", out="{out}/new.pth --to timm"):
    return f"convert {checkpoint} {out}"


def run(detector="{here}/bad.onnx", rest=PHOTO):
    return f"run {detector} --out {{out}} {rest}"


def bench(keys="", flags="--bits 8", out="{out}", of="c4"):
    given = f"--config-file {{good}}/{of}.yaml --threads 1 --rounds 1 {flags}"
    return f"bench {given} OUTPUT_DIR {out} MODEL.WEIGHTS {{good}}/{of}.pth {keys}"


QUANTIZATION = "quantization.safetensors"
OF_A_SWEEP = "--quantization {here}/run/quantization.safetensors --bits 8"
SWEEP_AGAIN = sweep(out="{here}/run")
RESUME = "train-det --config-file {good}/c4.yaml --resume OUTPUT_DIR {here}/run SOLVER.MAX_ITER 2"
PRETRAIN_ON = "pretrain --config-file {good}/pretrain.yaml --resume OUTPUT_DIR {here}/run"


def arguments(line, place):
    return [place.filled(part) for part in shlex.split(line)]


def read_next_command(errors):
    """The words of the next command, the last line on stderr, which is a right one."""
    (next_command,) = [line for line in errors.splitlines() if line.startswith("next: ")]
    assert errors.splitlines()[-1] == next_command
    program, *words = shlex.split(next_command.removeprefix("next: "))
    assert program == "ssql-det"
    make_parser().parse_args(words)
    return words
