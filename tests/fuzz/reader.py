"""Fuzz the reader of checkpoints: any file is read at a limited cost, or is one sentence.

    pip install atheris
    python tests/fuzz/reader.py FOLDER tests/fuzz/corpus -max_total_time=1200 -max_len=4096

FOLDER gets the files that reached new code. An input is a safetensors file or a pickle, which is read alone, as the
pickle of an archive, and as that of an old file. It is mutated opcode by opcode.
"""

import contextlib
import itertools
import pickle
import pickletools
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

import atheris
import torch  # noqa: F401 (before the imports that are instrumented)

with atheris.instrument_imports(include=["ssql_det.core"]):
    from ssql_det.core import reading_budget
    from ssql_det.core.errors import UserError
    from ssql_det.core.tensor_files import is_safetensors, read_safetensors
    from ssql_det.core.unpickler import read_tensors
    from ssql_det.quant.quantization_file import read_quantization

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the support of tests

from support.core import costly_files
from support.core.crafted_pickles import make_legacy_file, make_zip

reading_budget._FREE = 1 << 18  # less than in use, as instrumented code is slow
MAX_SECONDS, MAX_MEMORY = 3, 256 << 10  # of CPU, and in KiB
STORAGE = bytes(range(16))
PATH = Path(tempfile.mkdtemp()) / "file"
PIECES = [
    *(value for value in vars(costly_files).values() if isinstance(value, bytes) and len(value) < 200),
    *costly_files.SAVE,
    *costly_files.LOAD,
    *(opcode for opcode in vars(pickle).values() if isinstance(opcode, bytes) and len(opcode) == 1),
    *(pickle.dumps(value, 2)[2:-1] for value in (0, -1, 2**70, 1.5, "a", "O", "f4", {"neg": True}, [1], (1, 2), {1})),
    costly_files.push_storage(16),
    costly_files.push_dtype("f4"),
    costly_files.push_tensor(4, 1),
    costly_files.push_tensor(2**40, 0),
]


def split_opcodes(content):
    """The opcodes with their arguments; what is behind them, or no pickle, is one piece."""
    ends = []
    with contextlib.suppress(Exception):
        ends.extend(position for _, _, position in pickletools.genops(content))
    return [content[start:end] for start, end in itertools.pairwise([0, *ends[1:], len(content)])]


def mutate(content, max_size, seed):
    rng = random.Random(seed)
    if content[8:9] == b"{" or rng.random() < 0.2:
        return atheris.Mutate(content, max_size)
    parts = split_opcodes(content)
    for _ in range(rng.choice([1, 1, 2, 4])):
        start, end = sorted(rng.choices(range(len(parts) + 1), k=2))
        some, place = parts[start : min(end, start + 8)], rng.randrange(len(parts) + 1)
        match rng.randrange(5):
            case 0:
                parts[place:place] = [rng.choice(PIECES)]
            case 1:
                parts[place : place + 1] = [rng.choice(PIECES)]
            case 2:
                parts[place:place] = some * rng.choice([1, 1, 2, 50])
            case 3:
                del parts[start : start + 2]
            case 4 if parts:
                parts[place - 1] = atheris.Mutate(parts[place - 1], 64)
    return b"".join(parts)[:max_size]


def read(content, read_file):
    PATH.write_bytes(content)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with contextlib.suppress(UserError):
        read_file(PATH)
    assert time.process_time() - start < MAX_SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_MEMORY


def test_one_input(content):
    PATH.write_bytes(content)
    if is_safetensors(PATH):
        read(content, read_safetensors)
        read(content, read_quantization)
    else:
        read(content, read_tensors)
        read(make_zip({"x/data.pkl": content, "x/data/0": STORAGE}), read_tensors)
        read(make_legacy_file(content, ["0"]) + len(STORAGE).to_bytes(8, "little") + STORAGE, read_tensors)


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input, custom_mutator=mutate)
    atheris.Fuzz()
