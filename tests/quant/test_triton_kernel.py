"""The Triton kernel equals the arithmetic of quant/affine.py to the last bit; Triton's interpreter needs no GPU."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from ssql_det.quant import affine, choose_qparams

pytestmark = pytest.mark.slow

CASES = (
    *((dtype, shape, per_channel, bits) for dtype in ("float32", "bfloat16", "float16")
      for shape, per_channel in (((2500,), False), ((3, 5, 7, 11), False), ((6, 5, 3, 3), True)) for bits in (2, 8)),
    ("float32", (1,), False, 4),
)  # fmt: skip


def make_case(dtype, shape, per_channel, bits):
    """A tensor in channels last, with NaN, infinities and values halfway between two integers, and its parameters."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(bits)) * 3
    max_abs = affine.max_abs_per_channel(x, 0)
    qparams = (
        choose_qparams(-max_abs, max_abs, bits, symmetric=True)
        if per_channel
        else choose_qparams(torch.tensor(-2.0), torch.tensor(4.0), bits)
    )
    if per_channel:
        qparams.scale[2] = 0  # a channel that is returned as it is
    scale = qparams.scale.flatten()[0]
    halves = (torch.arange(-8, 8) + 0.5) * scale
    special = torch.cat([halves, torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, -1e-30, 1e30])])
    x.view(-1)[: len(special)] = special[: x.numel()]
    x = x.to(getattr(torch, dtype))
    return (x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x), qparams


def compare_all():
    """For each case whether outputs and masks are equal, with NaN in the same places; run where Triton interprets."""
    from ssql_det.quant import triton_kernel

    results = []
    for case in CASES:
        x, qparams = make_case(*case)
        arguments = (qparams.scale, qparams.zero_point, qparams.qmin, qparams.qmax)
        masks = [torch.empty_like(x, dtype=torch.bool) for _ in range(2)]
        expected = affine._fake_quantize(x.float(), *arguments, masks[0])
        # In float32, because the interpreter, unlike a GPU, rounds to bfloat16 towards 0.
        out, without_mask = (torch.empty_like(x, dtype=torch.float32) for _ in range(2))
        triton_kernel.launch(x, out, masks[1], *arguments)
        triton_kernel.launch(x, without_mask, None, *arguments)
        equal = [torch.equal(each.nan_to_num(12345), expected.nan_to_num(12345)) for each in (out, without_mask)]
        results.append((*equal, torch.equal(*masks)))
    return results


@pytest.fixture(scope="module")
def results():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("index", range(len(CASES)), ids=lambda index: "-".join(map(str, CASES[index])))
def test_the_kernel_equals_the_arithmetic(index, results):
    assert results[index] == [True, True, True]


if __name__ == "__main__":
    print(json.dumps(compare_all()))
