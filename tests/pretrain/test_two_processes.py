"""Every method in two processes equals one process with whole batches; float64, synchronized norms."""

import pytest
import torch
from support.pretrain import processes as two_processes
from support.small_methods import METHODS, assert_tensors_close

from ssql_det.core.launch import launch
from ssql_det.ssl.losses import l2_normalize

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results of one process, and of each of two, by the names of their files."""
    folder = tmp_path_factory.mktemp("two")
    two_processes.step_by_step(folder)
    launch(two_processes.step_by_step, folder, processes=2)
    return {path.stem: torch.load(path) for path in folder.iterdir()}


@pytest.mark.parametrize("is_ssql", [False, True], ids=["alone", "SSQL"])
@pytest.mark.parametrize("kind", METHODS)
def test_two_processes_equal_one(results, kind, is_ssql):
    """Losses and gradients; then weights, statistics, the moving average and the queue."""
    losses, gradients, state = results["1_0"][kind, is_ssql]
    halves = [results[f"2_{rank}"][kind, is_ssql] for rank in (0, 1)]
    for step, loss in enumerate(losses):
        assert abs(sum(half[0][step] for half in halves) / 2 - loss) < 1e-9, step
        assert halves[0][0][step] != halves[1][0][step]  # each has a loss of its own
    for _, of_rank, state_of_rank in halves:
        for result, expected in zip(of_rank, gradients, strict=True):
            assert_tensors_close(result, expected)
        assert_tensors_close(state_of_rank, state)
    assert ("queue.place" in state) == (kind == "moco")
    if kind == "moco":
        assert state["queue.place"] == 2 * 8 % 10


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("is_ssql", [False, True], ids=["alone", "SSQL"])
@pytest.mark.parametrize("kind", two_processes.WITHOUT_SHARING)
def test_ranks_in_one_process_equal_those_of_two(results, kind, is_ssql, ranks):
    """Two ranks: one process with both, two with one each; four ranks: one with all, two with two each."""
    losses, gradients, state = results["ranks_1_0"][kind, is_ssql, ranks]
    halves = [results[f"ranks_2_{rank}"][kind, is_ssql, ranks] for rank in (0, 1)]
    for step, loss in enumerate(losses):
        assert abs(sum(half[0][step] for half in halves) / 2 - loss) < 1e-9, step
    for _, of_process, _ in halves:
        for result, expected in zip(of_process, gradients, strict=True):
            assert_tensors_close(result, expected)
    assert_tensors_close(halves[0][2], state)  # norm statistics are the first rank's
    others = results["ranks_1_0"][kind, is_ssql, 6 - ranks]
    assert abs(others[0][0] - losses[0]) > 1e-6  # norms see fewer images


def replace_nan(state):
    """NaN is where a bit-width was not used yet."""
    return {name: tensor.double().nan_to_num() for name, tensor in state.items()}


@pytest.mark.parametrize("scheme", two_processes.TRAINED_SCHEMES)
def test_two_processes_train_the_same_quantizers(results, scheme):
    gradients, state = results["quantizers_1_0"][scheme]
    assert all(len(each) > 4 for each in gradients)
    for rank in (0, 1):
        of_rank, state_of_rank = results[f"quantizers_2_{rank}"][scheme]
        for result, expected in zip(of_rank, gradients, strict=True):
            assert_tensors_close(result, expected)
        assert_tensors_close(*map(replace_nan, (state_of_rank, state)))


@pytest.mark.parametrize("has_norm", [False, True], ids=["plain", "norm"])
def test_keys_of_shuffled_images_return_in_their_order(results, has_norm):
    images = two_processes.images_to_shuffle()
    halves = [results[f"shuffled_2_{rank}"][has_norm] for rank in (0, 1)]
    positions = [(images.flatten(1) @ images_seen.flatten(1).T).argmax(0) for _, (images_seen, _), _ in halves]
    assert sorted(torch.cat(positions).tolist()) == list(range(8))  # each image is encoded once,
    assert 0 < sum(position < 4 for position in positions[0].tolist()) < 4  # by either process
    expected = torch.zeros(8, 4, dtype=torch.float64)
    for own_positions, (_, (_, features), _) in zip(positions, halves, strict=True):
        expected[own_positions] = l2_normalize(features)
    torch.testing.assert_close(torch.cat([own for own, _, _ in halves]), expected)
    for _, _, queue in halves:
        torch.testing.assert_close(queue, expected)
    alone, _, _ = results["shuffled_1_0"][has_norm]
    assert torch.allclose(alone, expected) != has_norm  # norm statistics are of other images
