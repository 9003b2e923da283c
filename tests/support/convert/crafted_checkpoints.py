"""Valid checkpoints with known values, and malformed files that no library would write."""

import functools
import os
import pickle
import struct
import zlib

import safetensors.torch
import timm
import torch

from ssql_det.backbones import build_backbone
from ssql_det.convert import IMAGENET, Checkpoint, Metadata, get_architecture


@functools.cache
def _tensors(name, seed):
    with torch.device("meta"):
        shapes = build_backbone(name).module.state_dict()
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.rand(each.shape, generator=generator) + 0.1 if each.dim() else torch.tensor(1000 + seed)
        for key, each in shapes.items()
    }


def make_state(name="narrow_resnet", seed=0):
    """A backbone's state dict with random positive values."""
    return dict(_tensors(name, seed))


def make_expanded_state(name):
    """The state dict of a network, also of timm's, whose tensors are all expanded from one value: its file is small."""
    with torch.device("meta"):
        model = timm.create_model(name.removeprefix("timm/")) if "/" in name else build_backbone(name).module
    return {key: torch.ones(()).expand(each.shape) for key, each in model.state_dict().items()}


def make_checkpoint(name="narrow_resnet", seed=0, images=IMAGENET, stride_in_1x1=False, **metadata):
    """A checkpoint in memory."""
    return Checkpoint(
        get_architecture(name), make_state(name, seed), Metadata(images, stride_in_1x1, **metadata, is_input_known=True)
    )


def to_arrays(tensors):
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def save_pickle(content, path, protocol=4):
    with open(path, "wb") as file:
        pickle.dump(content, file, protocol)


WRITERS = {
    "zip": torch.save,
    "legacy": functools.partial(torch.save, _use_new_zipfile_serialization=False),
    "pickle": save_pickle,
    "old pickle": functools.partial(save_pickle, protocol=2),
}
FILES = {
    "zip": (WRITERS["zip"], "x.pth"),
    "legacy": (WRITERS["legacy"], "x.pth.tar"),
    "pickle": (lambda content, path: save_pickle(to_arrays(content), path), "x.pkl"),
    "safetensors": (safetensors.torch.save_file, "x.safetensors"),
}


class ShellCommand:
    """Its pickle calls ``os.system``."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


class TensorInBytes:
    """Its pickle has a torch.save file in bytes, as a plain pickle has for a tensor."""

    def __init__(self, content):
        self.content = content

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.content,)


class ClaimedStorage:
    """A storage that a pickle claims to have, of any size."""

    def __init__(self, count, key="0", location="cpu"):
        self.count, self.key, self.location = count, key, location


class ClaimedTensor:
    """A tensor in such a storage, of any size."""

    def __init__(self, storage, size=(64, 3, 7, 7), stride=(147, 49, 7, 1)):
        self.arguments = (storage, 0, size, stride, False, {})

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


def write_claims(content, file, *legacy):
    """The pickle of a torch.save file whose storages need not exist."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            if isinstance(thing, ClaimedStorage):
                return "storage", torch.FloatStorage, thing.key, thing.location, thing.count, *legacy
            return None

    Pickler(file, 2).dump(content)


def make_overlapping_zip(pickle_bytes, keys, kernel):
    """A zip archive in which each stored record contains all later ones."""
    region, entries = kernel, []
    for key in reversed(keys):
        entry = _fields(b"x/data/" + key.encode(), region)
        region = struct.pack("<IHHHHHIIIHH", 0x04034B50, 20, 0, 0, 0, 0, *entry[1:], 0) + entry[0] + region
        entries.append((entry, len(region)))
    first = _fields(b"x/data.pkl", pickle_bytes)
    head = struct.pack("<IHHHHHIIIHH", 0x04034B50, 20, 0, 0, 0, 0, *first[1:], 0) + first[0] + pickle_bytes
    content = head + region
    records = [(first, len(content)), *entries]
    directory = b"".join(
        struct.pack(
            "<IHHHHHHIIIHHHHHII", 0x02014B50, 20, 20, 0, 0, 0, 0, *entry[1:], 0, 0, 0, 0, 0, len(content) - back
        )
        + entry[0]
        for entry, back in records
    )
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, len(records), len(records), len(directory), len(content), 0)
    return content + directory + end


def _fields(name, data):
    return name, zlib.crc32(data), len(data), len(data), len(name)
