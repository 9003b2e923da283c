"""``Quantization``: the quantizers of one network, with contexts that run it quantized from one copy of its weights."""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sized
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ssql_det.core.console import track
from ssql_det.core.distributed import broadcast_from_main
from ssql_det.core.errors import UserError
from ssql_det.core.rows import Calibration
from ssql_det.quant.bits import Bits, format_bits
from ssql_det.quant.equalization import Equalization, compute_equalization
from ssql_det.quant.folding import check_chains, find_foldable_chains, folding_norms
from ssql_det.quant.forward import Forward, evaluating, forward_images, get_device
from ssql_det.quant.hooks import get_float_weight, get_tensor_spec, hooking
from ssql_det.quant.norms import check_norms, correct_norms
from ssql_det.quant.points import INTEGER, QuantPoint, assign_bits, quant_points, select_inside
from ssql_det.quant.quantization_file import (
    QuantizationContent,
    collect_tensors,
    compute_signature,
    damaged_file_error,
    read_quantization,
    restore_tensors,
    write_quantization,
)
from ssql_det.quant.quantizers import Observer, Quantizer
from ssql_det.quant.quantizers.observers import all_reduce_observers, check_finite
from ssql_det.quant.readiness import check_calibrated, check_learned
from ssql_det.quant.repair import Repair
from ssql_det.quant.scheme import NORM_CORRECTION, SWITCHABLE_NORMS, YES, Scheme
from ssql_det.quant.switchable_norms import SwitchableNorms
from ssql_det.quant.tracing import Chain, trace_pass


class Quantization:
    """A quantizer for each point of a network, and the repair of each bit-width.

    Contexts nest (at each point the innermost one is active) and restore the previous state at the end. No module is
    replaced, and ``state_dict`` always holds the float weights. ``backward`` may be called between two forward passes;
    with activation checkpointing call it inside the context, since it repeats forward passes. Inside a context, do not
    deepcopy the model and do not update parameters of quantizers. ``torch.compile`` ignores contexts: call the model
    itself.

    ``quantizers`` is a module that is not part of the model. To train its parameters, pass them to an optimizer.

    >>> from ssql_det.quant import Bits, Quantization, Scheme, quant_points
    >>> quantization = Quantization(model, quant_points(model), Scheme.parse("act=mse"))
    >>> quantization.calibrate(loader)
    >>> with quantization.at(Bits(4, 4)):
    ...     features = model(images)
    """

    def __init__(
        self, model: nn.Module, points: Iterable[QuantPoint] | None = None, scheme: Scheme | None = None
    ) -> None:
        if hasattr(model, "_orig_mod"):  # torch.compile's wrapper
            raise UserError("quantization does not work on a compiled model; pass and call the model that was compiled")
        self.model = model
        self.scheme = scheme or Scheme()
        check_norms(model, self.scheme.norms)
        self.points = quant_points(model, self.scheme.placement) if points is None else tuple(points)
        self.calibration: Calibration | None = None  # describes the images; ``calibrate`` does not set it
        self.quantizers = nn.ModuleDict(
            {_module_name(point): self.scheme.build_quantizer(get_tensor_spec(model, point)) for point in self.points}
        )
        self.equalization = Equalization()
        self.repairs: dict[str, Repair] = {}  # by the text of ``format_bits``
        self.switchable_norms: SwitchableNorms | None = None
        self.chains: tuple[Chain, ...] = ()  # in placement ``integer``: the quantized layers, with their norms

    def __getitem__(self, point: QuantPoint) -> Quantizer:
        quantizer = self.quantizers[_module_name(point)]
        assert isinstance(quantizer, Quantizer)
        return quantizer

    def get_weight(self, point: QuantPoint) -> Tensor:
        """The float weight at a point as its quantizer gets it, equalized."""
        return self.equalization.divide(point, get_float_weight(self.model, point))

    # ---- contexts --------------------------------------------------------------------------------------------------

    @contextmanager
    def at(self, bits: Bits, overrides: Mapping[str, Bits] | None = None) -> Iterator[None]:
        """Run quantized at ``bits``; ``overrides`` give modules other bit-widths, as in ``{"layer1.*": Bits(8, 8)}``.

        Weights are quantized once for all forward passes inside the context. The repairs that the scheme names must
        have been made for this bit-width; full precision needs none.
        """
        self.check_ready(bits, overrides)
        with self.applying(bits, overrides):
            yield

    @contextmanager
    def applying(
        self,
        bits: Bits,
        overrides: Mapping[str, Bits] | None = None,
        inside: Collection[str] | None = None,
        folded: bool = True,
    ) -> Iterator[None]:
        """As :meth:`at`, with the repairs that were made so far: for what makes them.

        With ``inside``, paths of modules, only points in these modules are quantized. ``folded=False``: with placement
        ``integer`` norms and biases stay float.
        """
        label = format_bits(bits, overrides)
        widths, repair = assign_bits(self.points, bits, overrides), self.get_repair(bits, overrides)
        with self._quantizing(widths, label, inside, folded), repair.overriding_tensors(self.model):
            layers = {point.path for point in select_inside(widths, inside)} if folded else ()
            get_quantizer = partial(self.get_quantizer, label=label)
            with folding_norms(self.model, self.chains, layers, widths, get_quantizer, self.get_weight):
                yield

    @contextmanager
    def _quantizing(
        self, bits: dict[QuantPoint, int | None], label: str, inside: Collection[str] | None = None, folded: bool = True
    ) -> Iterator[None]:
        check_calibrated(self, bits, folded)
        with ExitStack() as stack:
            for point, bit_width in select_inside(bits, inside).items():
                quantizer = self.get_quantizer(point, label)
                action = self.equalization.rescaling(point, partial(quantizer, bits=bit_width))
                stack.enter_context(hooking(self.model, point, None if bit_width is None else action))
            yield

    def get_quantizer(self, point: QuantPoint, label: str) -> Quantizer:
        """The quantizer that was learned for a bit-width, else the calibrated one."""
        return self._get_repair(label).quantizers.get(point) or self[point]

    def get_repair(self, bits: Bits, overrides: Mapping[str, Bits] | None = None) -> Repair:
        """What was learned for a bit-width, with the switchable norms of its weights; at full precision and before
        anything was learned, nothing. With ``overrides`` the norms are those of ``bits`` everywhere."""
        repair, norms = self._get_repair(format_bits(bits, overrides)), self.switchable_norms
        if norms is None or bits.weight not in norms.weight_bits:
            return repair
        return replace(repair, tensors=norms.get_tensors(bits.weight) | repair.tensors)

    def add_switchable_norms(self, weight_bits: Iterable[int]) -> SwitchableNorms:
        """Give each of these bit-widths of weights norms of its own, as ``norms=switchable`` says, to train them."""
        self.switchable_norms = SwitchableNorms(self.model, weight_bits)
        return self.switchable_norms

    def _get_repair(self, label: str) -> Repair:
        return Repair() if label == str(Bits.FP) else self.repairs.get(label, Repair())

    @contextmanager
    def observing(self, per_rank: bool = False, restart: bool = True) -> Iterator[None]:
        """Run in float and observe the activations, replacing previous observations.

        Afterwards the observations of all ranks are merged, in one collective (two if there are histograms); with
        ``per_rank`` each rank keeps its own observations. After an error the previous observations are restored.
        ``restart=False``, for steps of training: quantizers that observe once, such as ``lsq``, keep what they have.

        >>> from ssql_det.quant import Quantization
        >>> quantization = Quantization(model)
        >>> with quantization.observing():
        ...     features = model(images[:2]), model(images[2:])
        """
        previous = {each: observer for each, observer in self._observers.items() if restart or each.needs_observation}
        for quantizer, observer in previous.items():
            quantizer.observer = type(observer)()
        try:
            with ExitStack() as stack:
                for point in self.points:
                    observe = self.equalization.observing(point, self[point].observe)
                    stack.enter_context(hooking(self.model, point, observe if self[point] in previous else None))
                yield
            if not per_rank:
                all_reduce_observers([self._observers[each] for each in previous], get_device(self.model))
            self._check_finite()
        except BaseException:
            for quantizer, observer in previous.items():
                quantizer.observer = observer
            raise

    @property
    def needs_observation(self) -> bool:
        """Whether a step of training must observe activations; not once all quantizers train ranges of their own."""
        return any(quantizer.needs_observation for quantizer in self._observers)

    # ---- calibration -----------------------------------------------------------------------------------------------

    def calibrate(
        self,
        loader: Iterable[Any],
        num_batches: int | None = None,
        forward: Forward = forward_images,
        restart: bool = True,
    ) -> None:
        """Observe the activations over the loader's first ``num_batches`` (default: all) batches, in evaluation mode.

        With several processes, each one passes its share of the images, and the observations are merged.
        ``forward(model, batch)`` runs the model; by default a batch is a tensor of images, or a tuple that begins with
        one. The model's training mode is restored. ``restart`` is that of :meth:`observing`. With ``equalize=yes`` the
        batches are passed twice, so they are kept in memory.
        """
        if num_batches is not None and num_batches < 1:
            raise UserError(f"calibration needs at least 1 batch, got num_batches={num_batches}")
        length = len(loader) if isinstance(loader, Sized) else None
        total = num_batches if length is None else length if num_batches is None else min(length, num_batches)
        images = itertools.islice(loader, num_batches)
        has_batches = False
        with (
            self._equalizing(images, forward) as batches,
            self.observing(restart=restart),
            evaluating(self.model),
            torch.no_grad(),
        ):
            for batch in track(batches, "calibrating", total):
                if self.scheme.placement == INTEGER and not has_batches:
                    trace = trace_pass(self.model, self.points, batch, forward)
                    self.chains = find_foldable_chains(trace, self.points)
                forward(self.model, batch)
                self._check_finite()
                has_batches = True
            if not has_batches:
                raise UserError("the calibration loader is empty; check the folder of images and the batch size")
        self.repairs.clear()

    @contextmanager
    def _equalizing(self, batches: Iterator[Any], forward: Forward) -> Iterator[Iterable[Any]]:
        """Equalize channels, if the scheme says so, before the batches are observed; after an error, undo it."""
        if self.scheme.equalize != YES:
            yield batches
            return
        kept, former = [*batches], self.equalization
        try:
            if kept:
                self.equalization = compute_equalization(self.model, self.points, kept, forward)
            yield kept
        except BaseException:
            self.equalization = former
            raise

    def correct_norms(
        self,
        bits: Bits,
        batches: Iterable[Any],
        overrides: Mapping[str, Bits] | None = None,
        forward: Forward = forward_images,
    ) -> None:
        """Match or re-estimate the norms at a bit-width, as the scheme says, on these batches of images."""
        label = format_bits(bits, overrides)
        quantizing = partial(self._quantizing, assign_bits(self.points, bits, overrides), label)
        repair = self.repairs.setdefault(label, Repair())
        repair.tensors |= correct_norms(self.model, self.scheme, quantizing, self.points, batches, forward)
        repair.made += (NORM_CORRECTION,)

    def list_missing_repairs(self, bits: Bits, overrides: Mapping[str, Bits] | None = None) -> list[str]:
        """The repairs of ``Scheme.repairs`` that a bit-width still needs; the float network is never changed."""
        label = format_bits(bits, overrides)
        if label == str(Bits.FP):
            return []
        made = {*self._get_repair(label).made}
        if bits.weight is None or (self.switchable_norms and bits.weight in self.switchable_norms.weight_bits):
            made.add(SWITCHABLE_NORMS)
        return [each for each in self.scheme.repairs if each not in made]

    def check_repairs(self, bits: Bits, overrides: Mapping[str, Bits] | None = None) -> None:
        """Raise an error that names the bit-widths there are, if what must be learned beforehand is missing at one."""
        check_learned(self, format_bits(bits, overrides), self.list_missing_repairs(bits, overrides))

    def merge(self, other: Quantization) -> None:
        """Add the observations of another quantization, as when shards of the images are calibrated separately."""
        if (self.points, self.scheme) != (other.points, other.scheme):
            raise ValueError("only quantizations of the same points and scheme can be merged")
        if self.scheme.equalize == YES:
            raise ValueError("equalize=yes: shards would be rescaled differently; calibrate in several processes")
        for point in self.points:
            observer, other_observer = self[point].observer, other[point].observer
            if observer is not None and other_observer is not None:
                observer.merge(other_observer)
        self.chains = self.chains or other.chains
        self.repairs.clear()

    # ---- files -----------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, which is tied to the model's weights. The header describes the content."""
        tensors = collect_tensors(self._quantizers_by_point, self.equalization, self.repairs, self.switchable_norms)
        repairs = {label: repair.made for label, repair in sorted(self.repairs.items())}
        content = (compute_signature(self.model), tensors, self.chains, repairs)
        write_quantization(path, QuantizationContent(self.scheme, self.points, self.calibration, *content))

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: nn.Module, scheme: Scheme | None = None) -> Quantization:
        """Read a quantization of this model; raise an error if the weights or the scheme differ from those of the file.

        ``scheme=None`` accepts any scheme. With several processes every rank calls it, and rank 0 reads.

        >>> from ssql_det.quant import Quantization
        >>> quantization = Quantization(model)
        >>> quantization.calibrate(loader)
        >>> quantization.save("quantization.safetensors")
        >>> quantization = Quantization.load("quantization.safetensors", model)
        """
        content = broadcast_from_main(lambda: read_quantization(path))
        compute_signature(model).check_same(content.signature, path)
        if scheme is not None and scheme != content.scheme:
            raise UserError(f"{path} has scheme {content.scheme}, not {scheme}; calibrate again with this scheme")
        quantization = cls(model, content.points, content.scheme)
        quantization.calibration, quantization.chains = content.calibration, content.chains
        try:
            quantizers = quantization._quantizers_by_point
            restored = restore_tensors(content, model, quantizers)
            quantization.equalization, quantization.repairs, quantization.switchable_norms = restored
            check_chains(model, content.chains, content.points)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise damaged_file_error(path, error) from None
        return quantization

    # ---- checks ----------------------------------------------------------------------------------------------------

    @property
    def _quantizers_by_point(self) -> dict[QuantPoint, Quantizer]:
        return {point: self[point] for point in self.points}

    @property
    def _observers(self) -> dict[Quantizer, Observer]:
        quantizers = self._quantizers_by_point.values()
        return {quantizer: each for quantizer in quantizers if (each := quantizer.observer) is not None}

    def _check_finite(self) -> None:
        check_finite({quantizer.spec.point.key: observer for quantizer, observer in self._observers.items()})

    def check_ready(self, bits: Bits, overrides: Mapping[str, Bits] | None = None) -> None:
        """Raise an error if :meth:`at` has no result for a bit-width, as it is not calibrated or not repaired."""
        if self.list_missing_repairs(bits, overrides)[:1] == [NORM_CORRECTION]:
            text = f"{self.scheme}: norms and biases are not computed at {format_bits(bits, overrides)} yet"
            raise UserError(f"{text}; call correct_norms() for these bits")
        self.check_repairs(bits, overrides)
        check_calibrated(self, assign_bits(self.points, bits, overrides))


def _module_name(point: QuantPoint) -> str:
    """The point's key without dots, which torch does not allow in names of modules."""
    return point.key.replace(".", "/")
