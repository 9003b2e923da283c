"""Groups of a detector's modules that get a bit-width together: its stages, its neck, its heads, or patterns of yours.

A group at a bit-width is as in the network at this bit-width: points with bits of their own, such as the predictors of
the RPN or what placement ``integer`` adds, keep them. A group that has no other points, such as the stem, takes the
bit-width.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ssql_det.core.errors import UserError, did_you_mean
from ssql_det.quant import Bits, QuantPoint
from ssql_det.quant.points import assign_bits, matches_pattern

_PARTS = (  # regular expression of module paths, and the pattern of the group in a bits file
    (r"(backbone(?:\.bottom_up)?\.stem).*", r"\1*"),
    (r"(backbone(?:\.bottom_up)?\.res\d)\..*", r"\1.*"),
    (r"backbone(?:\.fpn_.*)?", r"backbone.fpn_*"),  # the path of the FPN's sums is that of the backbone
    (r"(proposal_generator|roi_heads\.\w+)\..*", r"\1.*"),
)
_INDEX = re.compile(r"(?<=\.)\d+(?=\.)")  # of a block


@dataclass(frozen=True)
class ModuleGroup:
    """The points that a pattern of module paths matches, and how a bits file gives them a bit-width."""

    pattern: str
    points: tuple[QuantPoint, ...]
    own_bits: int | None = None  # of all points, if these have bits of their own
    kept: Mapping[str, int] = field(default_factory=dict)  # patterns of the points that keep bits of their own

    def at(self, bits: Bits) -> dict[str, Bits]:
        """The overrides, as in a bits file, with which the group is as in the network at ``bits``."""
        kept = {pattern: _replace_bits(bits, own_bits) for pattern, own_bits in self.kept.items()}
        return {self.pattern: bits, **{pattern: each for pattern, each in kept.items() if each != bits}}

    def assign(self, bits: Bits) -> dict[QuantPoint, int | None]:
        """The bit-width of each point."""
        return assign_bits(self.points, bits, self.at(bits))

    def get_uniform_bits(self, bits: Bits) -> Bits:
        """The group's bits where the whole network is at ``bits``: its own, if it has such."""
        return bits if self.own_bits is None else _replace_bits(bits, self.own_bits)

    def list_choices(self, bit_widths: Sequence[Bits]) -> list[Bits]:
        """The bit-widths that a search tries: these, and the group's own, so that it can find a uniform bit-width."""
        return list(dict.fromkeys([*map(self.get_uniform_bits, bit_widths), *bit_widths]))


def list_groups(points: Sequence[QuantPoint], patterns: Sequence[str] = ()) -> list[ModuleGroup]:
    """The groups of a detector's points: its parts, in the order of the points, or those that the patterns name.

    Each point must be in exactly one group; only points with bits of their own may be in none.

    >>> from ssql_det.quant import Side
    >>> points = [QuantPoint("backbone.res2.0.conv1", Side.WEIGHT), QuantPoint("backbone.res2.0", Side.OUTPUT, 8)]
    >>> (group,) = list_groups(points)
    >>> {pattern: str(bits) for pattern, bits in group.at(Bits(4, 4)).items()}
    {'backbone.res2.*': '4w4a', 'backbone.res2.0': '8w8a'}
    """
    members: dict[str, list[QuantPoint]] = {pattern: [] for pattern in patterns}
    for point in points:
        found = [each for each in patterns if matches_pattern(point, each)] if patterns else _find_part(point)
        if len(found) > 1:
            raise UserError(f"{point.key} is in two groups, {found[0]!r} and {found[1]!r}; let one of them match it")
        if not found and point.bits is None:
            advice = "add a pattern that matches it" if patterns else "name the groups by --groups"
            raise UserError(f"{point.key} is in no group; {advice}")
        for pattern in found:
            members.setdefault(pattern, []).append(point)
    for pattern, inside in members.items():
        if not inside:
            paths = [point.path for point in points]
            raise UserError(f"no quantization point matches the group {pattern!r}{did_you_mean(pattern, paths)}")
    return [_make_group(pattern, tuple(inside), points) for pattern, inside in members.items()]


def join_overrides(groups: Sequence[ModuleGroup], bit_widths: Sequence[Bits]) -> dict[str, Bits]:
    """The overrides that give each group its bit-width."""
    overrides: dict[str, Bits] = {}
    for group, bits in zip(groups, bit_widths, strict=True):
        overrides |= group.at(bits)
    return overrides


def _find_part(point: QuantPoint) -> list[str]:
    matches = ((re.fullmatch(expression, point.path), pattern) for expression, pattern in _PARTS)
    return [match.expand(pattern) for match, pattern in matches if match][:1]


def _make_group(pattern: str, inside: tuple[QuantPoint, ...], points: Sequence[QuantPoint]) -> ModuleGroup:
    own_bits = {point.bits for point in inside}
    if len(own_bits) == 1:
        return ModuleGroup(pattern, inside, own_bits.pop())
    kept = {
        _find_pattern(point, inside, points): point.bits for point in inside if point.bits is not None
    }  # several points may have one pattern
    return ModuleGroup(pattern, inside, None, kept)


def _find_pattern(point: QuantPoint, inside: Sequence[QuantPoint], points: Sequence[QuantPoint]) -> str:
    """The widest pattern that matches a point with bits of its own, and besides only points of its group that have the
    same: without the index of the block, of its whole module, or of the point alone."""
    names = (glob.escape(point.path), glob.escape(point.key))
    for pattern in (_INDEX.sub("*", names[0]), names[0], _INDEX.sub("*", names[1])):
        matched = [each for each in points if matches_pattern(each, pattern)]
        if all(each.bits == point.bits and each in inside for each in matched):
            return pattern
    return names[1]


def _replace_bits(bits: Bits, own_bits: int) -> Bits:
    """Points keep bits of their own only where weights, or activations, are quantized at all."""
    return Bits(*(None if each is None else own_bits for each in (bits.weight, bits.act)))
