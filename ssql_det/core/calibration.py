"""Which images a network was calibrated with: one value, with one default, for commands, files and rows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Calibration:
    """So many ``images`` of ``data``, chosen by the ``seed``. Asked for without ``data``: those that there are.

    >>> str(Calibration(64, 0, "toy_voc_2007_trainval"))
    '64 images of toy_voc_2007_trainval, seed 0'
    """

    images: int = 256  # as QDrop's detectors are calibrated with (Wei et al., ICLR 2022)
    seed: int = 0
    data: str = ""

    def __str__(self) -> str:
        data = f" of {self.data}" if self.data else ""
        return f"{self.images} images{data}, seed {self.seed}"
