"""``OPTIM.RANKS``: what one process may take, what is refused, and a run; for equal steps see test_two_processes.py."""

import json

import pytest
import torch
from support.pretrain.runs import config, content, same

from ssql_det.core.errors import UserError
from ssql_det.pretrain.config import build_network, check_config
from ssql_det.pretrain.loop import pretrain
from ssql_det.pretrain.ranks import backward_by_rank, count_ranks_per_process

pytestmark = pytest.mark.usefixtures("logging_as_it_was")
BY_RANK = {"OPTIM__RANKS": 4, "OPTIM__BATCH": 24, "SSQL__PER_RANK": True}


@pytest.mark.parametrize(
    ("changes", "processes", "count"),
    [({}, 1, 4), ({}, 2, 2), ({}, 4, 1), ({"OPTIM__RANKS": 0, "SSQL__PER_RANK": False}, 4, 1)],
)
def test_processes_share_the_ranks(changes, processes, count, toy, tmp_path):
    made = config(toy, tmp_path, **BY_RANK | changes)
    network, _ = build_network(made)
    assert count_ranks_per_process(made, network, processes) == count


@pytest.mark.parametrize(
    ("changes", "processes", "message"),
    [
        ({}, 3, "OPTIM.RANKS 4 cannot be split over 3 processes"),
        ({"SSQL__PER_RANK": False}, 1, "SSQL.PER_RANK False: activation ranges are of all ranks"),
        ({"SYNC_NORM": True}, 1, "SYNC_NORM True: norms are of all ranks"),
        ({"METHOD": "moco", "MOCO__QUEUE": 48}, 1, "MoCo v2: images are shuffled over the ranks"),
        ({"METHOD": "simclr"}, 2, r"SimCLR: negatives are of all ranks \(SIMCLR.GATHER False: of the own\)"),
    ],
)
def test_ranks_that_need_each_other_are_refused(changes, processes, message, toy, tmp_path):
    made = config(toy, tmp_path, **BY_RANK | changes)
    network, _ = build_network(made)
    with pytest.raises(UserError, match=message):
        count_ranks_per_process(made, network, processes)


@pytest.mark.parametrize("batch", [18, 4])
def test_a_batch_that_ranks_cannot_share_is_refused(batch, toy, tmp_path):
    with pytest.raises(UserError, match=f"OPTIM.BATCH {batch} cannot be split over OPTIM.RANKS 4, at least two images"):
        check_config(config(toy, tmp_path, **BY_RANK | {"OPTIM__BATCH": batch}))


def test_one_rank_is_a_step_as_ever():
    layer = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    views = [torch.randn(8, 3), torch.randn(8, 3)]

    def compute_loss(views):
        return (layer(views[0]) * layer(views[1])).mean()

    loss = backward_by_rank(layer, views, 1, [compute_loss])
    gradient = layer[0].weight.grad.clone()
    layer.zero_grad()
    expected = compute_loss(views)
    expected.backward()
    assert torch.equal(loss, expected.detach())
    assert torch.equal(gradient, layer[0].weight.grad)


def test_a_run_as_several_ranks(toy, tmp_path):
    for name, changes in (("four", BY_RANK), ("one", BY_RANK | {"OPTIM__RANKS": 0})):
        pretrain(config(toy, tmp_path / name, OPTIM__EPOCHS=1, **changes))
    lines = [json.loads(line) for line in (tmp_path / "four/metrics.jsonl").read_text().splitlines()]
    assert all(0 < line["spread"] < 1.5 for line in lines)
    assert not same(content(tmp_path / "four")["online"], content(tmp_path / "one")["online"])
