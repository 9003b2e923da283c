"""What is learned for one bit-width, beyond the calibration: tensors and quantizers that replace others there."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ssql_det.quant.forward import get_device
from ssql_det.quant.hooks import overriding_attributes
from ssql_det.quant.points import QuantPoint
from ssql_det.quant.points.family import count_output_channels
from ssql_det.quant.quantizers import Quantizer

_TENSORS, _LEARNED = "replaced.", "learned."
_FORMER_TENSORS = "norms."  # in files of version 1


@dataclass
class Repair:
    """``tensors`` replace parameters and buffers of the network, by name: ``bn1.running_mean``, ``rpn.conv.bias`` (also
    if the layer has no bias). ``quantizers`` replace calibrated quantizers. ``made`` names the repairs of
    ``Scheme.repairs`` that were made so far.

    The network itself is not changed, so it has the same weights at every bit-width.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    quantizers: dict[QuantPoint, Quantizer] = field(default_factory=dict)
    made: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Of the tensors, which a bit-width adds to the network; learned quantizers have the size of the others."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @contextmanager
    def overriding_tensors(self, model: nn.Module) -> Iterator[None]:
        """Use the tensors in place of the network's, which may have moved to another device since."""
        device = get_device(model)
        with ExitStack() as stack:
            for name, tensor in self.tensors.items():
                path, _, attribute = name.rpartition(".")
                stack.enter_context(overriding_attributes(model.get_submodule(path), **{attribute: tensor.to(device)}))
            yield

    def collect_state(self) -> dict[str, Tensor]:
        """Tensors for a file: ``replaced.NAME``, and ``learned.POINT/NAME`` for the state of a quantizer.

        >>> Repair({"bn1.bias": torch.zeros(24)}).collect_state().keys()
        dict_keys(['replaced.bn1.bias'])
        """
        state = {f"{_TENSORS}{name}": tensor for name, tensor in self.tensors.items()}
        for point, quantizer in self.quantizers.items():
            state |= {f"{_LEARNED}{point.key}/{name}": tensor for name, tensor in quantizer.state_dict().items()}
        return state

    @classmethod
    def restore(
        cls, state: Mapping[str, Tensor], model: nn.Module, calibrated: Mapping[QuantPoint, Quantizer]
    ) -> Repair:
        """Load what :meth:`collect_state` returned; a ``ValueError`` for tensors that do not fit the network."""
        repair = cls()
        learned: dict[str, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            if name.startswith(_LEARNED):
                key, _, entry = name.removeprefix(_LEARNED).rpartition("/")
                learned.setdefault(key, {})[entry] = tensor
            elif name.startswith((_TENSORS, _FORMER_TENSORS)):
                repair.tensors[name.partition(".")[2]] = tensor
            else:
                raise ValueError(f"unexpected tensor {name}")
        check_replaced_tensors(model, repair.tensors)
        points = {point.key: point for point in calibrated}
        for key, quantizer_state in learned.items():
            quantizer = copy.deepcopy(calibrated[points[key]])
            quantizer.load_state_dict(quantizer_state)
            repair.quantizers[points[key]] = quantizer
        return repair


def check_replaced_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raise a ``ValueError`` unless each tensor can replace one of the network: a finite one of the same shape."""
    for name, tensor in tensors.items():
        path, _, attribute = name.rpartition(".")
        module: Any = model.get_submodule(path)
        replaced = getattr(module, attribute)
        if replaced is None and attribute == "bias":  # of a layer without bias
            replaced = module.weight.new_empty(count_output_channels(module))
        if not isinstance(replaced, Tensor) or tensor.shape != replaced.shape or not tensor.isfinite().all():
            raise ValueError(f"{name} has another shape than the network's, or values that are not finite")
        if attribute == "running_var" and bool((tensor + module.eps <= 0).any()):
            raise ValueError(f"{name} has negative values")
