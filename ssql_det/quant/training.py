"""Train quantizers with their network: checks, parameter groups of an optimizer, the state of a checkpoint, the file.

A loop of training has an optimizer for the network; :class:`QuantizerTraining` gives it the parameters of quantizers,
such as the steps of ``lsq``, and what a resumed run needs of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from ssql_det.core.distributed import average_gradients
from ssql_det.core.errors import UserError
from ssql_det.core.rows import Calibration
from ssql_det.quant.bits import Bits
from ssql_det.quant.forward import get_device
from ssql_det.quant.points import QuantPoint, Side
from ssql_det.quant.quantization import Quantization
from ssql_det.quant.quantization_file import collect_quantizers, restore_quantizers
from ssql_det.quant.quantizers import TensorSpec
from ssql_det.quant.scheme import NO, NORM_CORRECTION, ROUNDING, SWITCHABLE, TUNING, Scheme

QUANTIZATION_NAME = "quantization.safetensors"  # beside a checkpoint
_EXAMPLE_SPECS = {
    "weight": TensorSpec(QuantPoint("", Side.WEIGHT), shape=(1, 1)),
    "act": TensorSpec(QuantPoint("", Side.OUTPUT)),
}


@dataclass(frozen=True)
class QuantizerOptim:
    """How the parameters of quantizers are trained. The weight decay of ``pact``'s clip is its regularization."""

    lr_factor: float = 1.0  # of the network's learning rate
    weight_decay: float = 0.0


@dataclass(frozen=True, eq=False)
class QuantizerTraining:
    """The quantizers of a network, with their part of the optimizer and of a checkpoint.

    >>> from ssql_det.quant import Bits
    >>> quantization = Quantization(model, scheme=Scheme.parse("weight=dorefa, act=pact:10"))
    >>> training = QuantizerTraining(quantization, QuantizerOptim(lr_factor=0.1))
    >>> optimizer = torch.optim.SGD([{"params": [*model.parameters()]}, *training.make_groups(lr=0.5)], lr=0.5)
    >>> optimizer.param_groups[1]["lr"]
    0.05
    """

    quantization: Quantization
    optim: QuantizerOptim = field(default_factory=QuantizerOptim)

    def __post_init__(self) -> None:
        self.module.to(get_device(self.quantization.model))

    @property
    def module(self) -> nn.Module:
        return self.quantization.quantizers

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [*self.module.parameters()]

    def make_groups(self, lr: float) -> list[dict[str, Any]]:
        """A parameter group for an optimizer whose network has the learning rate ``lr``; none without parameters.

        ``lr_factor`` is in the group for schedules that set ``lr`` again.
        """
        factor, decay = self.optim.lr_factor, self.optim.weight_decay
        group = {"params": self.parameters, "lr": lr * factor, "lr_factor": factor, "weight_decay": decay}
        return [group] if self.parameters else []

    def average_gradients(self) -> None:
        """Average the gradients over the ranks. The quantizers are in no ``DistributedDataParallel``, which would
        expect a gradient at every bit-width in every step."""
        average_gradients(self.parameters)

    def state_dict(self) -> dict[str, Tensor]:
        """The quantizers, with the observations that they started from; empty if none has parameters."""
        return collect_quantizers(self._quantizers) if self.parameters else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load what :meth:`state_dict` returned; a ``ValueError``, or what torch raises, if it does not fit."""
        device = get_device(self.quantization.model)
        remaining = {name: tensor.to(device, copy=True) for name, tensor in state.items()}
        restore_quantizers(remaining, self._quantizers)
        if remaining:
            raise ValueError(f"unexpected tensor {min(remaining)}")

    def copy(self, scheme: Scheme) -> Quantization:
        """A quantization with copies of the quantizers: to calibrate and to evaluate it leaves the training as it is.

        ``scheme`` may have other norms than the training's.
        """
        quantizers = dict(zip(self.quantization.points, deepcopy(self.quantization.quantizers).values(), strict=True))
        return _make_quantization(self.quantization.model, quantizers, scheme)

    def save(self, path: str | os.PathLike[str], calibration: Calibration, inside: str = "") -> None:
        """Write the quantization file of the network, or of its module at the path ``inside``.

        ``calibration`` describes the images that the quantizers started from.
        """
        quantization = select_module(self.quantization, inside) if inside else self.quantization
        quantization.calibration = calibration
        quantization.save(path)

    @property
    def _quantizers(self) -> dict[QuantPoint, Any]:
        return {point: self.quantization[point] for point in self.quantization.points}


def select_module(quantization: Quantization, path: str) -> Quantization:
    """The quantization of a module of the network, with the same quantizers.

    >>> quantization = Quantization(model)
    >>> [point.path for point in select_module(quantization, "layer2").points][:2]
    ['0.conv1', '0.conv2']
    """
    prefix = f"{path}."
    inside = {
        replace(point, path=point.path.removeprefix(prefix)): quantization[point]
        for point in quantization.points
        if point.path.startswith(prefix)
    }
    return _make_quantization(quantization.model.get_submodule(path), inside, quantization.scheme)


def _make_quantization(model: nn.Module, quantizers: Mapping[QuantPoint, nn.Module], scheme: Scheme) -> Quantization:
    quantization = Quantization(model, quantizers, scheme)
    quantization.quantizers = nn.ModuleDict(dict(zip(quantization.quantizers, quantizers.values(), strict=True)))
    return quantization


def check_trainable(scheme: Scheme, bit_widths: Iterable[Bits], prefix: str) -> None:
    """Raise an error for a scheme that no step of training can use, or not at these bit-widths (the lowest and the
    highest). ``prefix`` begins the sentence.

    >>> check_trainable(Scheme.parse("weight=brecq"), [Bits(4, 4)], "SSQL cannot train with")
    Traceback (most recent call last):
    ssql_det.core.errors.UserError: SSQL cannot train with weight=brecq: rounding is learned afterwards, by quantize
    """
    bounds = [*bit_widths]
    scheme.check_bits(bounds)
    learned = [each for each in scheme.repairs if each in (ROUNDING, TUNING)]
    if learned:
        raise UserError(f"{prefix} {scheme}: {learned[0]} is learned afterwards, by quantize")
    if NORM_CORRECTION in scheme.repairs:
        raise UserError(f"{prefix} {scheme}; in training norms use batch statistics")
    if scheme.norms == SWITCHABLE:
        raise UserError(f"{prefix} {scheme}; for a detector set SSQL_DET.QUANTIZED_TRAINING.NORMS {SWITCHABLE}")
    if scheme.equalize != NO:
        raise UserError(f"{prefix} equalize={scheme.equalize}; use equalize={NO}")
    for side, spec in _EXAMPLE_SPECS.items():
        quantizer = scheme.build_quantizer(spec)
        has_parameters = next(quantizer.parameters(), None) is not None
        if has_parameters and not quantizer.trains_each_width and len({getattr(bits, side) for bits in bounds}) > 1:
            raise UserError(
                f"{prefix} {side}={getattr(scheme, side)} at several bit-widths: its parameters are the same at all of "
                "them; set FIXED_BITS, or use a quantizer with parameters for each bit-width, such as lsq"
            )
