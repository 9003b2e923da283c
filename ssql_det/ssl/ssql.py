"""SSQL (Cao et al., *Synergistic Self-supervised and Quantization Learning*, ECCV 2022), over any method.

One step: a float pass in which the ranges of activations are observed; bits drawn for this step; a quantized pass of
the same weights over the same views. Both are held against the float pass's targets, and the loss is their mean. Both
passes update the BatchNorm statistics. The predictor stays float; the projector's weights are at 8 bits.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from ssql_det.core.errors import UserError
from ssql_det.quant import BitsSchedule, Quantization, QuantPoint, Scheme, Side, quant_points
from ssql_det.quant.points import PUBLISHED
from ssql_det.quant.scheme import TRAINED
from ssql_det.ssl.method import Encoder, Method, Views

PROJECTOR_BITS = 8


def encoder_points(encoder: Encoder) -> tuple[QuantPoint, ...]:
    """Those of the backbone, and the weights of the projector's linear layers at 8 bits."""
    backbone = (replace(point, path=f"backbone.{point.path}") for point in quant_points(encoder.backbone))
    linears = [path for path, layer in encoder.named_modules() if isinstance(layer, nn.Linear)]
    projector = (path for path in linears if path.startswith("projector."))
    return (*backbone, *(QuantPoint(path, Side.WEIGHT, PROJECTOR_BITS) for path in projector))


class SSQL(nn.Module):
    """``SSQL(method, bits)(views, step)`` is the loss of a step; ``bits`` gives each step its own.

    The switches are those of the paper's ablation (Table 8); by default it is SSQL as published.

    ======================  ====================================================================
    quantize_predictions    the quantized pass is trained (without: only the float one is)
    quantize_targets        the targets are those of a quantized pass, else of the float one
    auxiliary               the float loss is half of the loss, beside that of quantized predictions
    per_rank                each process quantizes by what it has seen alone, as published
    scheme                  other quantizers than the published ones
    ======================  ====================================================================

    >>> ssql = SSQL(SimSiam(build_backbone("resnet18")), SampledBits(seed=0))
    >>> ssql([view_1, view_2], step=0).backward()
    """

    def __init__(
        self,
        method: Method,
        bits: BitsSchedule,
        quantize_predictions: bool = True,
        quantize_targets: bool = False,
        auxiliary: bool = True,
        per_rank: bool = False,
        scheme: Scheme | None = None,
    ) -> None:
        if not quantize_predictions and not quantize_targets:
            raise UserError("SSQL quantizes predictions or targets, or both; without either it is the method itself")
        if quantize_targets and not method.may_quantize_targets:
            raise UserError(f"{method.title} says itself what it is held against; leave QUANTIZE_TARGETS off")
        if scheme is not None and scheme.placement != PUBLISHED:
            raise UserError("in training norms are not folded: use a scheme with placement=published")
        super().__init__()
        self.method = method
        self.bits = bits
        self.quantization = Quantization(method.encoder, encoder_points(method.encoder), scheme)
        if self.quantization.scheme.norms != TRAINED:
            raise UserError("in training norms have the statistics of each batch: a scheme without norms= serves it")
        self.quantizers = self.quantization.quantizers  # what they learn is trained with the network
        self.quantize_predictions, self.quantize_targets = quantize_predictions, quantize_targets
        self.auxiliary, self.per_rank = auxiliary, per_rank

    def forward(self, views: Views, step: int) -> Tensor:
        method, bits = self.method, self.bits(step)
        is_trained = self.auxiliary or not self.quantize_predictions
        with self.quantization.observing(self.per_rank), nullcontext() if is_trained else torch.no_grad():
            encoded = method.encode(views)
        # Before the quantized pass: behind it, amid two passes' memory, a moving average takes a quarter longer.
        targets = None if self.quantize_targets else method.targets(views, encoded)
        with nullcontext() if self.quantize_predictions else torch.no_grad(), self.quantization.at(bits):
            low = method.encode(views)
        if self.quantize_targets:
            targets = method.targets(views, low)
        if not self.quantize_predictions:
            return method.loss(encoded, targets)
        loss = method.loss(low, targets)
        return (method.loss(encoded, targets) + loss) / 2 if self.auxiliary else loss
