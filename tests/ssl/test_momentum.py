"""The momentum encoder against the weighted sum, and the queue against Python's deque."""

import random
from collections import deque

import pytest
import torch
from torch import nn

from ssql_det.ssl.momentum import MomentumEncoder, Queue


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).double()


def weights(network):
    return [parameter.detach().clone() for parameter in network.parameters()]


# ---- moving average ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0, 0.5, 1])
def test_after_some_updates_weights_are_the_weighted_sum(momentum):
    average, updates = MomentumEncoder(network(0), momentum), []
    expected = weights(network(0))
    for step in (1, 2, 3):
        average.update(network(step))
        updates.append(weights(network(step)))
        pairs = zip(expected, updates[-1], strict=True)
        expected = [momentum * old + (1 - momentum) * new for old, new in pairs]
    for result, weight in zip(weights(average), expected, strict=True):
        torch.testing.assert_close(result, weight, rtol=1e-14, atol=1e-16)
    if momentum != 0.5:  # bit for bit the last update, or the initial weights
        assert all(map(torch.equal, weights(average), weights(network(0)) if momentum == 1 else updates[-1]))


def test_the_copy_has_no_gradient_and_its_own_norm_statistics():
    online = network(0)
    average = MomentumEncoder(online, 0.9)
    assert not {each.data_ptr() for each in average.parameters()} & {each.data_ptr() for each in online.parameters()}
    before = weights(online)
    features = average(torch.randn(6, 4, dtype=torch.float64))
    assert not features.requires_grad
    assert all(parameter.requires_grad for parameter in online.parameters())
    assert (online[1].num_batches_tracked, average.network[1].num_batches_tracked) == (0, 1)
    average.update(network(1))
    assert all(map(torch.equal, weights(online), before))
    assert average.network[1].num_batches_tracked == 1


def test_in_evaluation_mode_weights_do_not_change():
    average = MomentumEncoder(network(0), 0.5).eval()
    average.update(network(1))
    assert all(map(torch.equal, weights(average), weights(network(0))))


def test_another_architecture_is_refused():
    with pytest.raises(ValueError, match="shorter"):
        MomentumEncoder(network(0), 0.5).update(nn.Linear(4, 3).double())


# ---- queue ---------------------------------------------------------------------------------------------------------


def oldest_first(queue):
    return queue.keys.roll(-int(queue.place), 0)


@pytest.mark.parametrize("seed", range(5))
def test_it_behaves_as_a_deque(seed):
    """Batches of any size, also larger than the queue."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    size = draw.randint(1, 12)
    queue = Queue(size, dim=3)
    expected = deque(queue.keys.clone(), maxlen=size)
    for _ in range(40):
        keys = torch.randn(draw.randint(0, 2 * size), 3, generator=generator)
        queue.push(keys)
        expected.extend(keys)
        assert torch.equal(oldest_first(queue), torch.stack(list(expected)))


def test_initial_keys_have_unit_length_and_differ():
    queue = Queue(50, dim=8)
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(50))
    assert (queue.keys @ queue.keys.T - torch.eye(50)).abs().max() < 0.99


def test_keys_keep_their_dtype_and_have_no_graph():
    queue = Queue(4, dim=3)
    keys = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
    queue.push(keys)
    assert (queue.keys.dtype, queue.keys.requires_grad) == (torch.float32, False)
    assert torch.equal(queue.keys[:2], torch.ones(2, 3))


def test_in_evaluation_mode_nothing_is_pushed():
    queue = Queue(4, dim=3).eval()
    before = queue.keys.clone()
    queue.push(torch.ones(2, 3))
    assert torch.equal(queue.keys, before)
    assert queue.place == 0


def test_a_loaded_queue_continues_where_the_saved_one_was():
    queue, other = Queue(5, dim=3), Queue(5, dim=3)
    queue.push(torch.ones(3, 3))
    other.load_state_dict(queue.state_dict())
    for each in (queue, other):
        each.push(2 * torch.ones(4, 3))
    assert torch.equal(queue.keys, other.keys)
    assert queue.place == other.place == 2
