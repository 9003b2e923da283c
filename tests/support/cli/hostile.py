"""Makers of what can go wrong: each takes a :class:`Place` and spoils something in it."""

import io
import json
import os
import pickle
import re
import shutil
import struct
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from support.deploy.onnx_files import METADATA, write_colour_detector

EARLIER = (  # what commands write into a folder that they are given, but for a run's files, with which they refuse it
    *("out.pth", "000001.png", "detections_FP.json", "detections_4w4a.json", "bits.json", "table.md", "sheet.png"),
    *("notes.txt", "detector.onnx", "detector.check.json"),
)
TRICKS = "a\n\x1b[31merror: b"  # a name that would write a line of its own, in red
CANARY = "CANARY"  # a file that is there when something of a file was executed


@dataclass(frozen=True)
class Place:
    """``here`` is a case's own folder, ``good`` has what is right, ``toy`` the toy data."""

    here: Path
    good: Path
    toy: Path

    @property
    def out(self):
        """Where a command is to write; an earlier run's outputs are in it."""
        return self.here / "out"

    @property
    def data(self):
        """A copy of the toy data, where a case spoils them."""
        return self.here / "data"

    def filled(self, text):
        """``{here}/bad.yaml`` and the like, as paths."""
        names = ("here", "out", "data", "good", "toy")
        return text.format(**{name: getattr(self, name) for name in names}, tricks=TRICKS)


def contents(folder):
    """Every path below a folder, and what is there."""

    def content(path):
        if path.is_symlink():
            return os.readlink(path)
        return path.read_bytes() if path.is_file() else path.is_dir()

    return {path.relative_to(folder): content(path) for path in folder.rglob("*")}


# ---- files ---------------------------------------------------------------------------------------------------------


def file(name, content=b""):
    """With this content; ``{good}`` and the like stand for paths."""

    def make(place):
        path = place.here / place.filled(name)
        path.write_bytes(content if isinstance(content, bytes) else place.filled(content).encode())

    return make


def config(text):
    """``bad.yaml``: a good config, and this."""
    return file("bad.yaml", f"_BASE_: {{good}}/c4.yaml\n{text}\n")


def bomb(pair, depth=40):
    """YAML whose values double with each alias, and so many."""
    text = "1"
    for level in range(depth):
        text = pair.format(text, level)
    return text


def folder(name):
    return lambda place: (place.here / name).mkdir()


def pipe(name):
    """Whoever opens it waits for ever."""
    return lambda place: os.mkfifo(place.here / name)


def as_pipe(path):
    path.unlink()
    os.mkfifo(path)


def loop(name):
    return lambda place: (place.here / name).symlink_to(name)


def entities(count):
    """Of XML, each ten times as long as the one before."""
    return "".join(f"<!ENTITY x{number} '{f'&x{number - 1};' * 10}'>" for number in range(1, count))


def forbidden(name):
    def make(place):
        if os.geteuid() == 0:
            pytest.skip("root may read everything")
        (place.here / name).touch(mode=0)

    return make


def image(name, width, height):
    return lambda place: Image.new("RGB", (width, height)).save(place.here / name)


def postscript(name):
    """Pillow would give it to the program ``gs``; what is called so here leaves a trace."""

    def make(place):
        (place.here / name).write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
        program = place.here / "gs"
        program.write_text(f"#!/bin/sh\ntouch {place.here / CANARY}\n")
        program.chmod(0o755)

    return make


def exported(change=lambda content: content, metadata=METADATA):
    """``bad.onnx``: a detector as ONNX file, its bytes changed."""

    def make(place):
        path = write_colour_detector(place.here / "bad.onnx", metadata)
        path.write_bytes(change(path.read_bytes()))

    return make


# ---- data sets -----------------------------------------------------------------------------------------------------


def data(change):
    """A copy of the toy data, spoilt."""

    def make(place):
        shutil.copytree(place.toy, place.data)
        change(place.data)

    return make


def listed(content):
    """VOC's list of training images is this."""
    return data(lambda root: (root / "VOC2007/ImageSets/Main/trainval.txt").write_bytes(content))


def annotated(pattern, replacement):
    """VOC's first annotation says something else."""

    def change(root):
        path = root / "VOC2007/Annotations/000001.xml"
        path.write_text(re.sub(pattern, lambda _: replacement, path.read_text(), count=1, flags=re.S))

    return data(change)


def pictured(change):
    """Every image of VOC is spoilt."""

    def each(root):
        for path in (root / "VOC2007/JPEGImages").iterdir():
            change(path)

    return data(each)


def coco(change):
    """The instances to train on were changed, or are a text instead."""

    def spoil(root):
        path = root / "coco/annotations/instances_train2017.json"
        document = json.loads(path.read_text())
        if isinstance(change, str):
            path.write_text(change)
        else:
            change(document)
            path.write_text(json.dumps(document))

    return data(spoil)


def instance(**fields):
    """The first instance that is no crowd has other fields."""
    return lambda document: next(each for each in document["annotations"] if not each["iscrowd"]).update(fields)


def without_manifest():
    """Toy data that are not there."""
    return data(lambda root: (root / "manifest.json").unlink())


# ---- checkpoints ---------------------------------------------------------------------------------------------------


class Command:
    """Pickled it is a call of ``os.system``."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def stored(content):
    """What ``torch.save`` makes of this."""
    return lambda place: torch.save(content, place.here / "bad.pth")


def weights(change):
    """A detector's file whose content was changed."""

    def make(place):
        content = torch.load(place.good / "c4.pth", weights_only=False)
        change(content)
        torch.save(content, place.here / "bad.pth")

    return make


def tensor(name, change):
    """A tensor of a detector was changed."""
    return weights(lambda content: content["model"].update({name: change(content["model"][name])}))


def program(place):
    """Runs a command where it is unpickled as one is used to."""
    torch.save({"model": {}, "epoch": Command(f"touch {place.here / CANARY}")}, place.here / "bad.pth")


def raw_program(place):
    (place.here / "bad.pkl").write_bytes(pickle.dumps(Command(f"touch {place.here / CANARY}")))


def torchscript(place):
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), place.here / "bad.pth")


def tar(place):
    """Would write outside of where it is unpacked."""
    entry = tarfile.TarInfo(f"../{CANARY}")
    entry.size = 4
    with tarfile.open(place.here / "bad.pth", "w") as archive:
        archive.addfile(entry, io.BytesIO(b"evil"))


def copied(name):
    """A detector's file under another name."""
    return lambda place: shutil.copy(place.good / "c4.pth", place.here / name)


def cut_short(place):
    content = (place.good / "c4.pth").read_bytes()
    (place.here / "bad.pth").write_bytes(content[: len(content) // 2])


def caffe2(**blobs):
    return lambda place: (place.here / "bad.pkl").write_bytes(pickle.dumps({"blobs": blobs}))


def safetensors(header):
    """A file of this header and four bytes."""
    encoded = json.dumps(header).encode()
    return file("bad.safetensors", struct.pack("<Q", len(encoded)) + encoded + b"four")


# ---- what earlier runs left ----------------------------------------------------------------------------------------


def earlier(kind, change=lambda run: None):
    """``{here}/run``: what a run of this kind left, spoilt."""

    def make(place):
        change(shutil.copytree(place.good / kind, place.here / "run"))

    return make


def replaced(name, content):
    """Of an earlier run a file has another content."""
    return lambda run: Path(run, name).write_bytes(content)


def truncated(name, end):
    """Of an earlier run a file ends here; below 0: so many bytes before its own end."""
    return lambda run: Path(run, name).write_bytes(Path(run, name).read_bytes()[:end])


def quantization(change=lambda tensors: None, hash_stays=False, **changes):
    """Of an earlier sweep the calibration has other tensors, or other metadata: a text, or JSON of which a part is
    changed. It has no hash, as if an earlier version had written it, unless that stays."""

    def spoil(run):
        path = Path(run, "quantization.safetensors")
        with safe_open(path, framework="pt") as file:
            metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if not hash_stays:
            del metadata["sha256"]
        change(tensors)
        for name, changed in changes.items():
            if isinstance(changed, str):
                metadata[name] = changed
            else:
                content = json.loads(metadata[name])
                changed(content)
                metadata[name] = json.dumps(content)
        save_file(tensors, path, metadata)

    return spoil


def record(name, change):
    """Of an earlier run a JSON file was changed."""

    def spoil(run):
        path = Path(run, name)
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return spoil


def first_row(change):
    """Of an earlier sweep the first row was changed."""

    def spoil(run):
        path = Path(run, "results.jsonl")
        first, *others = path.read_text().splitlines()
        row = json.loads(first)
        change(row)
        path.write_text("\n".join([json.dumps(row), *others, ""]))

    return spoil


def saved(name, change):
    """Of an earlier run a checkpoint was changed."""

    def spoil(run):
        content = torch.load(Path(run, name), weights_only=False)
        change(content)
        torch.save(content, Path(run, name))

    return spoil


def other_buffer(content):
    """Of a checkpoint's optimizer, for its first parameter."""
    content["optimizer"]["state"][0]["momentum_buffer"] = torch.ones(3)
