"""Min-max observers: exact over any stream, mergeable, readable from a file."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssql_det.quant import MinMax

STREAMS = st.lists(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), max_size=6), max_size=6)


def seen(stream, axis=None):
    observer = MinMax(axis)
    for x in stream:
        observer.update(torch.as_tensor(x, dtype=torch.float32))
    return observer


@settings(max_examples=100, deadline=None)
@given(STREAMS)
def test_the_range_is_the_streams_least_and_greatest(stream):
    values = [value for x in stream for value in x]
    observer = seen(stream)
    assert observer.is_empty == (not values)
    if values:
        assert [end.item() for end in observer.range(8)] == [min(values), max(values)]


@settings(max_examples=100, deadline=None)
@given(STREAMS, STREAMS)
def test_merging_shards_is_seeing_both_streams(first, second):
    merged = seen(first)
    merged.merge(seen(second))
    assert merged.state() == seen(first + second).state()


def test_per_channel_ranges():
    x = torch.randn(4, 3, 5, 5)
    low, high = seen([x[:2], x[2:]], axis=1).range(8)
    assert torch.equal(low, x.amin((0, 2, 3)))
    assert torch.equal(high, x.amax((0, 2, 3)))


def test_unlike_observers_do_not_merge():
    with pytest.raises(TypeError, match="cannot merge"):
        MinMax(axis=1).merge(MinMax())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("axis", [None, 0])
def test_state_survives_json_exactly(dtype, axis):
    observer = MinMax(axis)
    observer.update(torch.randn(3, 7).to(dtype) / 3)
    again = MinMax.from_state(json.loads(json.dumps(observer.state())))
    for ours, theirs in zip(observer.range(8), again.range(8), strict=True):
        assert torch.equal(ours, theirs)
        assert theirs.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    assert MinMax.from_state(MinMax().state()).is_empty


def test_observing_keeps_no_graph():
    x = torch.randn(5, requires_grad=True)
    observer = MinMax()
    observer.update(x * 2)
    assert not any(end.requires_grad for end in observer.range(8))
