"""The moving average against its sum, and the queue against Python's own."""

import random
from collections import deque

import pytest
import torch
from torch import nn

from ssql_det.ssl.momentum import Momentum, Queue


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).double()


def weights(network):
    return [parameter.detach().clone() for parameter in network.parameters()]


# ---- moving average ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0, 0.5, 1])
def test_after_some_steps_it_is_the_weighted_sum_of_what_it_followed(rate):
    momentum, seen = Momentum(network(0), rate), []
    expected = weights(network(0))
    for step in (1, 2, 3):
        momentum.follow(network(step))
        seen.append(weights(network(step)))
        expected = [rate * own + (1 - rate) * theirs for own, theirs in zip(expected, seen[-1], strict=True)]
    for found, wanted in zip(weights(momentum), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-14, atol=1e-16)
    if rate != 0.5:  # the last it followed, or what it began with: to the bit
        assert all(map(torch.equal, weights(momentum), weights(network(0)) if rate == 1 else seen[-1]))


def test_it_is_a_copy_without_gradient_whose_norms_are_its_own():
    online = network(0)
    momentum = Momentum(online, 0.9)
    assert not {each.data_ptr() for each in momentum.parameters()} & {each.data_ptr() for each in online.parameters()}
    before = weights(online)
    features = momentum(torch.randn(6, 4, dtype=torch.float64))
    assert not features.requires_grad
    assert all(parameter.requires_grad for parameter in online.parameters())
    assert (online[1].num_batches_tracked, momentum.network[1].num_batches_tracked) == (0, 1)
    momentum.follow(network(1))
    assert all(map(torch.equal, weights(online), before))
    assert momentum.network[1].num_batches_tracked == 1


def test_in_evaluation_it_stays_where_it_is():
    momentum = Momentum(network(0), 0.5).eval()
    momentum.follow(network(1))
    assert all(map(torch.equal, weights(momentum), weights(network(0))))


def test_another_network_is_not_followed():
    with pytest.raises(ValueError, match="shorter"):
        Momentum(network(0), 0.5).follow(nn.Linear(4, 3).double())


# ---- queue ---------------------------------------------------------------------------------------------------------


def oldest_first(queue):
    return queue.keys.roll(-int(queue.place), 0)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_a_queue(seed):
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


def test_it_begins_with_keys_of_unit_length_that_differ():
    queue = Queue(50, dim=8)
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(50))
    assert (queue.keys @ queue.keys.T - torch.eye(50)).abs().max() < 0.99


def test_it_keeps_its_type_and_no_graph():
    queue = Queue(4, dim=3)
    keys = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
    queue.push(keys)
    assert (queue.keys.dtype, queue.keys.requires_grad) == (torch.float32, False)
    assert torch.equal(queue.keys[:2], torch.ones(2, 3))


def test_in_evaluation_it_takes_nothing():
    queue = Queue(4, dim=3).eval()
    before = queue.keys.clone()
    queue.push(torch.ones(2, 3))
    assert torch.equal(queue.keys, before)
    assert queue.place == 0


def test_its_state_goes_on_in_another():
    queue, other = Queue(5, dim=3), Queue(5, dim=3)
    queue.push(torch.ones(3, 3))
    other.load_state_dict(queue.state_dict())
    for each in (queue, other):
        each.push(2 * torch.ones(4, 3))
    assert torch.equal(queue.keys, other.keys)
    assert queue.place == other.place == 2
