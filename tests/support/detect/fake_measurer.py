"""A measurer whose losses are known, in place of a detector on selection images."""

from dataclasses import dataclass, field

from ssql_det.detect.measurements import AP, Measurement
from ssql_det.quant import Scheme
from ssql_det.quant.points import assign_bits

FLOAT_AP = 40.0


@dataclass
class FakeMeasurer:
    """Each quantized point loses AP by the power of its error, times a weight; wholes lose more than their parts."""

    points: tuple
    weights: dict  # by the first part of a path
    interaction: float = 0.0  # times the square of the sum
    scheme: Scheme = field(default_factory=lambda: Scheme(norms="matched"))
    asked: list = field(default_factory=list)

    def compute_loss(self, bits, overrides):
        assigned = assign_bits(self.points, bits, overrides)
        total = sum(self.weights[point.path.split(".")[0]] * 4.0**-own for point, own in assigned.items() if own)
        return total + self.interaction * total**2

    def measure(self, quantity, bits, overrides=None):
        self.asked.append((quantity, bits, dict(overrides or {})))
        loss = self.compute_loss(bits, overrides)
        return Measurement(quantity, str(bits), {}, FLOAT_AP - loss if quantity == AP else 0.1 * loss, repair_bytes=400)

    def measure_loss(self, quantity, bits, overrides=None):
        value = self.measure(quantity, bits, overrides).value
        return FLOAT_AP - value if quantity == AP else value
