import copy

import pytest
import torch

from ssql_det.core.optimizer_state import load_optimizer_state
from ssql_det.pretrain.optim import LARS

KINDS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "SGD without momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "LARS": lambda parameters: LARS(parameters, lr=0.1),
}


def stepped(kind, steps, state=None):
    """A weight and a bias after some steps, and the optimizer."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    optimizer = KINDS[kind](layer.parameters())
    if state is not None:
        load_optimizer_state(optimizer, state)
    for _ in range(steps):
        optimizer.zero_grad()
        layer(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
    return layer, optimizer


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_is_taken_up_as_it_was(kind):
    state = stepped(kind, 2)[1].state_dict()
    assert str(stepped(kind, 0, copy.deepcopy(state))[1].state_dict()) == str(state)


DAMAGES = {
    "shape": (lambda found: found["state"][1].update(momentum_buffer=torch.ones(3)), r"does not fit .* shape \[2\]"),
    "word": (lambda found: found["state"][0].update(momentum_buffer="five"), r"momentum_buffer .* shape \[2, 3\]"),
    "NaN": (lambda found: found["state"][0]["momentum_buffer"].fill_(float("nan")), "has a momentum_buffer that"),
    "no rate": (lambda found: found["param_groups"][0].pop("lr"), "has no number for lr"),
    "rate of NaN": (lambda found: found["param_groups"][0].update(lr=float("nan")), "has no number for lr"),
    "word for momentum": (lambda found: found["param_groups"][0].update(momentum="five"), "no number for momentum"),
    "fewer parameters": (lambda found: found["param_groups"][0]["params"].pop(), "doesn't match the size"),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGES.values(), ids=DAMAGES)
def test_a_state_that_no_step_could_be_made_with_is_refused(damage, said):
    state = copy.deepcopy(stepped("SGD", 2)[1].state_dict())
    damage(state)
    with pytest.raises(ValueError, match=said):
        stepped("SGD", 1, state)
