"""``brecq-fisher``: as ``brecq``, with each squared error of a block's outputs weighted by its Fisher information.

The weights are those of eq. 10 in the source of ``brecq``, from the loss of the whole network: see ``fisher``.
"""

from __future__ import annotations

from dataclasses import dataclass

from ssql_det.ptq.brecq import Brecq
from ssql_det.ptq.method import METHODS


@METHODS.register("brecq-fisher")
@dataclass(frozen=True)
class BrecqFisher(Brecq):
    """Whole blocks, with activations quantized and errors weighted."""

    is_weighted: bool = True
