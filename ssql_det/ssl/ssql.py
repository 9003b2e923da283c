"""SSQL (Cao et al., *Synergistic Self-supervised and Quantization Learning*, ECCV 2022), applied to any method.

A step is a float pass that observes the ranges of activations, then a quantized pass of the same weights over the same
views, at bit-widths drawn for this step. The loss is the mean of the losses of both passes against the targets of the
float pass. Both passes update the BatchNorm statistics. The predictor stays float; the projector's weights have 8 bits.

With fixed bits, quantized targets and no auxiliary loss it is quantization-aware training of the method alone. Then a
scheme that trains its ranges needs the float pass in the first step only.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ssql_det.core.errors import UserError
from ssql_det.quant import BitsSchedule, Quantization, QuantPoint, Scheme, Side, quant_points
from ssql_det.quant.points import PUBLISHED
from ssql_det.quant.training import check_trainable
from ssql_det.ssl.method import Encoder, Method, Views

PROJECTOR_BITS = 8  # of the weights, as published


def encoder_quant_points(encoder: Encoder) -> tuple[QuantPoint, ...]:
    """The quantization points of an encoder: those of its backbone, and the weights of its projector's linear
    layers."""
    backbone = (replace(point, path=f"backbone.{point.path}") for point in quant_points(encoder.backbone))
    linears = [path for path, layer in encoder.named_modules() if isinstance(layer, nn.Linear)]
    projector = (path for path in linears if path.startswith("projector."))
    return (*backbone, *(QuantPoint(path, Side.WEIGHT, PROJECTOR_BITS) for path in projector))


class SSQL(nn.Module):
    """``SSQL(method, bits)(views, step)`` is the loss of a step at the bit-widths ``bits(step)``; steps count from 0.

    The first three options are those of the paper's ablation (Table 8). The defaults are SSQL as published, except
    ``per_rank``.

    ======================  =====================================================================
    quantize_predictions    train the quantized pass; False: train only the float pass
    quantize_targets        targets come from the quantized pass; False: from the float pass
    auxiliary               average the losses of both passes; False: only the quantized pass's
    per_rank                each process observes ranges on its own images only, as in the published code;
                            False: the ranges of all processes are merged
    scheme                  quantizers other than the published ones; None: the published ones
    ======================  =====================================================================

    >>> from ssql_det.backbones import build_backbone
    >>> from ssql_det.quant import Bits, FixedBits
    >>> from ssql_det.ssl import SimSiam
    >>> ssql = SSQL(SimSiam(build_backbone("narrow_resnet"), dim=32, hidden=16), FixedBits(Bits(4, 4)))
    >>> ssql([images, images.flip(3)], step=0).backward()
    """

    def __init__(
        self,
        method: Method,
        bits: BitsSchedule,
        scheme: Scheme | None = None,
        *,
        quantize_predictions: bool = True,
        quantize_targets: bool = False,
        auxiliary: bool = True,
        per_rank: bool = False,
    ) -> None:
        if not quantize_predictions and not quantize_targets:
            raise UserError(
                "SSQL quantizes neither predictions nor targets; set SSQL.QUANTIZE_PREDICTIONS, or SSQL.ENABLED False"
            )
        if quantize_targets and not method.may_quantize_targets:
            raise UserError(f"SSQL cannot quantize the targets of {method.title}; set SSQL.QUANTIZE_TARGETS False")
        if scheme is not None and scheme.placement != PUBLISHED:
            raise UserError(f"SSQL cannot train with placement={scheme.placement}; use placement=published")
        check_trainable(scheme or Scheme(), bits.bounds, "SSQL cannot train with")
        super().__init__()
        self.method = method
        self.bits = bits
        self.quantization = Quantization(method.encoder, encoder_quant_points(method.encoder), scheme)
        if per_rank and any(self.quantization[point].observes_once for point in self.quantization.points):
            raise UserError(f"with {scheme} all processes start from the same ranges; set SSQL.PER_RANK False")
        self.quantize_predictions, self.quantize_targets = quantize_predictions, quantize_targets
        self.auxiliary, self.per_rank = auxiliary, per_rank
        self._targets: Any = None  # of a step whose first part was computed

    @property
    def num_loss_parts(self) -> int:
        """2 if the losses of the float and of the quantized pass need no gradient of each other: then
        ``forward(views, step, part)`` gives half of one pass's loss, for part 0 and then 1. With the backward pass of
        the one before the other begins, a step needs the memory of one pass."""
        return 2 if self.quantize_predictions and self.auxiliary and not self.quantize_targets else 1

    def forward(self, views: Views, step: int, part: int | None = None) -> Tensor:
        if part is None or self.num_loss_parts == 1:
            return self._compute_whole_loss(views, step)
        method, quantization = self.method, self.quantization
        if part == 0:
            with quantization.observing(self.per_rank, restart=False):
                encoded = method.encode(views)
            self._targets = method.targets(views, encoded)
            return method.loss(encoded, self._targets) / 2
        targets, self._targets = self._targets, None
        with quantization.at(self.bits(step)):
            quantized = method.encode(views)
        return method.loss(quantized, targets) / 2

    def _compute_whole_loss(self, views: Views, step: int) -> Tensor:
        method, bits, observing = self.method, self.bits(step), self.quantization.observing
        is_float_trained = self.auxiliary or not self.quantize_predictions
        encoded: list[Tensor] = []
        if is_float_trained or not self.quantize_targets or self.quantization.needs_observation:
            with observing(self.per_rank, restart=False), nullcontext() if is_float_trained else torch.no_grad():
                encoded = method.encode(views)
        # Computed before the quantized pass: with two passes in memory, updating a moving average is 25 % slower.
        targets = None if self.quantize_targets else method.targets(views, encoded)
        with nullcontext() if self.quantize_predictions else torch.no_grad(), self.quantization.at(bits):
            quantized = method.encode(views)
        if self.quantize_targets:
            targets = method.targets(views, quantized)
        if not self.quantize_predictions:
            return method.loss(encoded, targets)
        loss = method.loss(quantized, targets)
        return (method.loss(encoded, targets) + loss) / 2 if self.auxiliary else loss
