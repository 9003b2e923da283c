"""What was learned about quantizing one network, and the modes that it has by that, from one copy of weights."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ssql_det.core.console import track
from ssql_det.core.distributed import broadcast_from_main
from ssql_det.core.errors import UserError
from ssql_det.core.rows import Calibration
from ssql_det.quant import quantization_file
from ssql_det.quant.bits import Bits, format_bits
from ssql_det.quant.forward import Forward, evaluating, forward_images
from ssql_det.quant.hooks import Action, get_float_weight, get_module, hooking
from ssql_det.quant.integer import find_chains, folded
from ssql_det.quant.norms import Statistics, estimate_norm_statistics, overriding_statistics
from ssql_det.quant.points import INTEGER, QuantPoint, assign_bits, quant_points
from ssql_det.quant.quantization_file import Content
from ssql_det.quant.quantizers import Observer, Quantizer, TensorSpec
from ssql_det.quant.quantizers.observers import all_reduce, require_finite
from ssql_det.quant.scheme import RE_ESTIMATED, Scheme
from ssql_det.quant.tracing import Chain, trace_pass

_LEARNED, _NORMS = "learned.", "norms."  # what names in a file begin with


class Quantization:
    """A quantizer for each point of a network, and what norms have at each width.

    Contexts nest (the innermost decides what happens at its points) and restore what they found. No module is swapped;
    a ``state_dict`` taken at any time is the ordinary, float one. ``backward`` may be called between two passes, and
    with activation checkpointing it is called inside the context, since it runs forward passes again. Inside: no
    deepcopy, and no step of what quantizers learn. ``torch.compile`` does not see contexts: call the model itself.

    ``quantizers`` are a module of their own: who trains what they learn hands its parameters to an optimizer.

    >>> quantization = Quantization(model, quant_points(model), Scheme.parse("act=mse"))
    >>> quantization.calibrate(loader)
    >>> with quantization.at(Bits(4, 4)):
    ...     features = model(images)
    """

    def __init__(
        self, model: nn.Module, points: Iterable[QuantPoint] | None = None, scheme: Scheme | None = None
    ) -> None:
        if hasattr(model, "_orig_mod"):  # torch.compile's wrapper
            raise UserError("a compiled graph does not see these contexts; give and call the model that was compiled")
        self.model = model
        self.scheme = scheme or Scheme()
        self.points = quant_points(model, self.scheme.placement) if points is None else tuple(points)
        self.calibration: Calibration | None = None
        self.quantizers = nn.ModuleDict(
            {module_name(point): self.scheme.build_quantizer(_place(model, point)) for point in self.points}
        )
        self.norm_statistics: dict[str, Statistics] = {}  # by ``format_bits``
        self.chains: tuple[Chain, ...] = ()  # placement ``integer``: what is folded

    def __getitem__(self, point: QuantPoint) -> Quantizer:
        quantizer = self.quantizers[module_name(point)]
        assert isinstance(quantizer, Quantizer)
        return quantizer

    # ---- modes -----------------------------------------------------------------------------------------------------

    @contextmanager
    def at(self, bits: Bits, overrides: Mapping[str, Bits] | None = None) -> Iterator[None]:
        """Run at ``bits``; ``overrides`` give paths their own, as ``{"layer1.*": Bits(8, 8)}``.

        Weights are quantized once and shared by the passes inside.
        """
        widths = assign_bits(self.points, bits, overrides)
        as_integers = folded(self.model, self.chains, widths, self.__getitem__)
        with self._rounded(widths), self._with_norms(bits, overrides), as_integers:
            yield

    @contextmanager
    def _rounded(self, widths: Mapping[QuantPoint, int | None]) -> Iterator[None]:
        self._require_widths(widths)
        with ExitStack() as stack:
            for point, width in widths.items():
                action = None if width is None else partial(self[point], bits=width)
                stack.enter_context(hooking(self.model, point, action))
            yield

    def _with_norms(self, bits: Bits, overrides: Mapping[str, Bits] | None) -> AbstractContextManager[None]:
        if self.scheme.norms != RE_ESTIMATED:
            return nullcontext()
        if not self.has_norm_statistics(bits, overrides):
            name = format_bits(bits, overrides)
            raise UserError(f"the norms of {name} are not re-estimated yet; calibrate this width as well")
        return overriding_statistics(self.model, self.norm_statistics[format_bits(bits, overrides)])

    @contextmanager
    def observing(self, per_rank: bool = False) -> Iterator[None]:
        """Run float, and begin anew to observe what passes the activation points.

        Afterwards every rank has the observations of all, in one collective (in two, where something is counted), or
        with ``per_rank`` its own. If the block fails, what was observed before stays.

        >>> with quantization.observing():
        ...     model(view_1), model(view_2)
        """
        before = self._observers
        for quantizer, observer in before.items():
            quantizer.observer = type(observer)()
        try:
            with ExitStack() as stack:
                for point in self.points:
                    stack.enter_context(hooking(self.model, point, None if point.is_weight else _watch(self[point])))
                yield
            if not per_rank:
                all_reduce(self._observers.values(), _device(self.model))
            self._require_finite()
        except BaseException:
            for quantizer, observer in before.items():
                quantizer.observer = observer
            raise

    # ---- calibration -----------------------------------------------------------------------------------------------

    def calibrate(self, loader: Iterable[Any], batches: int | None = None, forward: Forward = forward_images) -> None:
        """Observe the activations in evaluation mode, without gradients, over the loader's batches.

        Under a process group each rank brings its share of the images, and all get the ranges of all.
        ``forward(model, batch)`` says how a batch is fed; by default it is a tensor of images, or a tuple that begins
        with one. The model's training flags are put back.

        >>> quantization.calibrate(loader, batches=8)
        """
        if batches is not None and batches < 1:
            raise UserError(f"calibration needs at least 1 batch, got batches={batches}")
        length = len(loader) if isinstance(loader, Sized) else None
        total = batches if length is None else length if batches is None else min(length, batches)
        fed = 0
        with self.observing(), evaluating(self.model), torch.no_grad():
            for batch in track(itertools.islice(loader, batches), "calibrating", total):
                if self.scheme.placement == INTEGER and not fed:
                    self.chains = find_chains(trace_pass(self.model, self.points, batch, forward), self.points)
                forward(self.model, batch)
                self._require_finite()
                fed += 1
            if not fed:
                raise UserError(
                    "the calibration loader is empty; give it images, and check the folder and the batch size"
                )
        self.norm_statistics.clear()

    def reestimate_norms(
        self,
        bits: Bits,
        batches: Iterable[Any],
        overrides: Mapping[str, Bits] | None = None,
        forward: Forward = forward_images,
    ) -> None:
        """Give the norms, for this width, the statistics of these batches as the quantized network sees them."""
        with self._rounded(assign_bits(self.points, bits, overrides)):
            self.norm_statistics[format_bits(bits, overrides)] = estimate_norm_statistics(self.model, batches, forward)

    def has_norm_statistics(self, bits: Bits, overrides: Mapping[str, Bits] | None = None) -> bool:
        """Whether the norms' statistics at this width are there."""
        return format_bits(bits, overrides) in self.norm_statistics

    def merge(self, other: Quantization) -> None:
        """Observe what both have observed: calibration in shards."""
        if (self.points, self.scheme) != (other.points, other.scheme):
            raise ValueError("only quantizations of the same points and scheme can be merged")
        for point in self.points:
            observer, theirs = self[point].observer, other[point].observer
            if observer is not None and theirs is not None:
                observer.merge(theirs)
        self.chains = self.chains or other.chains
        self.norm_statistics.clear()

    # ---- files -----------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """One safetensors file, tied to the weights. Its header tells what is in it."""
        signature = quantization_file.compute_signature(self.model)
        content = Content(self.scheme, self.points, self.calibration, signature, self._tensors(), self.chains)
        quantization_file.write(path, content)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: nn.Module, scheme: Scheme | None = None) -> Quantization:
        """Read the quantization of this model. One of other weights is refused, and one of another scheme than is asked
        for. Under a process group every rank calls it, and rank 0 reads.

        >>> quantization = Quantization.load("quantization.safetensors", model)
        """
        content = broadcast_from_main(lambda: quantization_file.read(path))
        quantization_file.compute_signature(model).require_same(content.signature, path)
        if scheme is not None and scheme != content.scheme:
            raise UserError(f"{path} is of the scheme {content.scheme}, asked for is {scheme}; calibrate again for it")
        quantization = cls(model, content.points, content.scheme)
        quantization.calibration, quantization.chains = content.calibration, content.chains
        try:
            quantization._take(dict(content.tensors))
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as damage:
            raise quantization_file.damaged(path, damage) from None
        return quantization

    def _tensors(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for point in self.points:
            quantizer = self[point]
            for name, tensor in quantizer.state_dict().items():
                found[f"{point.key}/{_LEARNED}{name}"] = tensor
            if quantizer.observer is not None and quantizer.observer.min_val is not None:
                found[f"{point.key}/ends"] = torch.stack(quantizer.observer.range)
                if quantizer.observer.sums is not None:
                    found[f"{point.key}/sums"] = quantizer.observer.sums
        for width, statistics in self.norm_statistics.items():
            found |= {f"{width}/{_NORMS}{name}": tensor for name, tensor in statistics.items()}
        return found

    def _take(self, tensors: dict[str, Tensor]) -> None:
        """What :meth:`_tensors` gave; a ``ValueError`` where something is left, missing or not what it should be."""
        device = _device(self.model)
        tensors = {name: tensor.to(device, copy=True) for name, tensor in tensors.items()}  # not pages of the file
        for point in self.points:
            quantizer, prefix = self[point], f"{point.key}/"
            own = {name.removeprefix(prefix): tensors.pop(name) for name in [*tensors] if name.startswith(prefix)}
            if quantizer.observer is not None and "ends" in own:
                quantizer.observer.restore(own.pop("ends"), own.pop("sums", None))
            learned = {name.removeprefix(_LEARNED): tensor for name, tensor in own.items() if name.startswith(_LEARNED)}
            quantizer.load_state_dict(learned)
            if len(learned) != len(own):
                raise ValueError(f"{point.key} has more than it should")
        buffers = dict(self.model.named_buffers())
        for name, tensor in tensors.items():
            width, _, buffer = name.partition(f"/{_NORMS}")
            if tensor.shape != buffers[buffer].shape or not tensor.isfinite().all():
                raise ValueError(f"{name} is not what its norm has")
            self.norm_statistics[width] = {**self.norm_statistics.get(width, {}), buffer: tensor}

    # ---- what was observed -----------------------------------------------------------------------------------------

    @property
    def _observers(self) -> dict[Quantizer, Observer]:
        quantizers = (self[point] for point in self.points)
        return {quantizer: each for quantizer in quantizers if (each := quantizer.observer) is not None}

    def _require_finite(self) -> None:
        require_finite({quantizer.spec.point.key: observer for quantizer, observer in self._observers.items()})

    def _require_widths(self, widths: Mapping[QuantPoint, int | None]) -> None:
        activations = {point for point, width in widths.items() if width is not None and not point.is_weight}
        observers = self._observers
        if observers and activations and all(observer.min_val is None for observer in observers.values()):
            first = next(point.key for point in widths if point in activations)
            raise UserError(f"nothing was observed yet, at {first} or elsewhere: calibrate first")
        if self.scheme.placement == INTEGER and activations and not self.chains:
            raise UserError(f"placement={INTEGER} folds norms as calibrate() traces them: calibrate first")
        for point, width in widths.items():
            if width is not None and width not in self[point].supported_bits:
                given = self[point].supported_bits
                side = "weight" if point.is_weight else "act"
                raise UserError(
                    f"{side}={getattr(self.scheme, side)} gives {given[0]} to {given[-1]} bits, {point.key} is asked "
                    f"for {width}"
                )


def module_name(point: QuantPoint) -> str:
    """A point's key, as torch lets modules be called."""
    return point.key.replace(".", "/")


def _place(model: nn.Module, point: QuantPoint) -> TensorSpec:
    module = get_module(model, point)
    if not point.is_weight:
        return TensorSpec(point)
    shape = tuple(get_float_weight(model, point).shape)
    return TensorSpec(point, shape, axis=1 if isinstance(module, nn.ConvTranspose2d) else 0)


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _watch(quantizer: Quantizer) -> Action:
    def watch(x: Tensor) -> Tensor:
        # A pass that activation checkpointing runs again, in the middle of a backward pass, was seen the first time.
        if quantizer.observer is not None and torch._C._current_graph_task_id() == -1:
            quantizer.observer.update(x)
        return x

    return watch
