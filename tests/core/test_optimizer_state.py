import copy

import pytest
import torch
from timm.optim.lars import Lars

from ssql_det.core.optimizer_state import load_optimizer_state

OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "SGD without momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "LARS": lambda parameters: Lars(parameters, lr=0.1, momentum=0.9),
}


def take_steps(kind, steps, state=None):
    """A layer after some steps, and its optimizer."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    optimizer = OPTIMIZERS[kind](layer.parameters())
    if state is not None:
        load_optimizer_state(optimizer, state)
    for _ in range(steps):
        optimizer.zero_grad()
        layer(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
    return layer, optimizer


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_loaded_state_equals_the_saved_one(kind):
    state = take_steps(kind, 2)[1].state_dict()
    assert str(take_steps(kind, 0, copy.deepcopy(state))[1].state_dict()) == str(state)


DAMAGES = {
    "shape": (lambda state: state["state"][1].update(momentum_buffer=torch.ones(3)), r"does not fit .* shape \[2\]"),
    "text": (lambda state: state["state"][0].update(momentum_buffer="five"), r"momentum_buffer .* shape \[2, 3\]"),
    "NaN": (lambda state: state["state"][0]["momentum_buffer"].fill_(float("nan")), "has a momentum_buffer that"),
    "no learning rate": (lambda state: state["param_groups"][0].pop("lr"), "has no number for lr"),
    "learning rate is NaN": (lambda state: state["param_groups"][0].update(lr=float("nan")), "has no number for lr"),
    "text for momentum": (lambda state: state["param_groups"][0].update(momentum="five"), "no number for momentum"),
    "fewer parameters": (lambda state: state["param_groups"][0]["params"].pop(), "doesn't match the size"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_state_is_refused(damage, message):
    state = copy.deepcopy(take_steps("SGD", 2)[1].state_dict())
    damage(state)
    with pytest.raises(ValueError, match=message):
        take_steps("SGD", 1, state)
