"""Reconstruct a quantized network block by block: learn the rounding of its weights, and the steps of its activations.

For each block in order: record its inputs in the quantized network, whose earlier blocks are reconstructed, and its
outputs in the float network; learn to give these outputs; keep what was learned if the error on images that were kept
for that is lower than with nearest rounding.

The loss of a block is the squared error of its outputs, summed over channels, averaged over positions and images, and
divided by the mean square of the float outputs, so that no loss depends on the scale of the network; with several
outputs it is the sum of theirs. A weighted ``Method`` weighs each square: see ``fisher``. AdaRound's regularization is
added, as the ``Method`` says.

While it is learned, a block's own output is not quantized, and the step of its point stays as calibrated: gradients
that pass straight through the rounding of an output would push values below half a step up, without any effect on the
error.
(Toy C4 at 3w3a, errors of three blocks: .048, .063, .073; with quantized outputs .059, .077, .084.)
Errors that are compared are those of quantized outputs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ssql_det.core.console import track
from ssql_det.core.errors import UserError
from ssql_det.ptq.blocks import Block, recording_inputs
from ssql_det.ptq.errors import BlockResult, compute_errors, compute_powers
from ssql_det.ptq.fisher import compute_gradients, make_weights
from ssql_det.ptq.method import FloatActivation, Method
from ssql_det.ptq.records import HELD_OUT_PERIOD, MAX_BYTES, Recorder, Records, Samples, make_generator, split_held_out
from ssql_det.ptq.rounding import build_soft_rounding, get_iterations, round_to_nearest, store_integers
from ssql_det.ptq.steps import copy_trainable, make_groups
from ssql_det.ptq.tuning import ComputeLoss
from ssql_det.quant import Bits, Quantization, Quantizer, QuantPoint, Side
from ssql_det.quant.bits import format_bits
from ssql_det.quant.forward import Forward, evaluating, freezing, get_device
from ssql_det.quant.points import INTEGER, assign_bits, select_inside
from ssql_det.quant.quantizers import GridQuantizer, LearnedRounding
from ssql_det.quant.quantizers.centred import CentredWeight
from ssql_det.quant.quantizers.mse import MseWeight
from ssql_det.quant.repair import Repair

_EXPONENT = 2.4  # of the grid ``mse``, as in QDrop
_EVERYWHERE = ("",)  # the path of the network itself
_logger = logging.getLogger(__name__)


def reconstruct(
    quantization: Quantization,
    bits: Bits,
    overrides: Mapping[str, Bits] | None,
    blocks: Sequence[Block],
    batches: Sequence[Any],
    forward: Forward,
    method: Method,
    seed: int = 0,
    on_block_done: Callable[[BlockResult], None] | None = None,
    max_bytes: int = MAX_BYTES,
    compute_loss: ComputeLoss | None = None,
) -> list[BlockResult]:
    """Learn the rounding at a bit-width, for its ``Repair``, and return the results of the blocks.

    Blocks whose weights were learned already are skipped; the others are as if they had not been, so a run that was
    interrupted can go on. ``on_block_done`` is called after each block, as to save the quantization. A batch should
    have one image. ``compute_loss`` is that of a batch, for methods whose errors are weighted.
    """
    if method.is_weighted and compute_loss is None:
        raise ValueError(f"{type(method).__name__} weighs errors by the gradients of a loss; pass compute_loss")
    reconstruction = _Reconstruction(quantization, bits, overrides, forward, method, seed, max_bytes, compute_loss)
    parts = reconstruction.select_blocks(blocks)
    if parts and len(batches) < HELD_OUT_PERIOD:
        raise UserError(f"reconstruction needs at least {HELD_OUT_PERIOD} images, got {len(batches)}")
    results = []
    with evaluating(quantization.model), freezing(quantization.model):
        for block in track(parts, f"reconstructing at {format_bits(bits, overrides)}"):
            results.append(reconstruction.reconstruct_block(block, batches))
            _logger.info("%s", results[-1])
            if on_block_done is not None:
                on_block_done(results[-1])
    return results


class _Reconstruction:
    """The reconstruction of a network at one bit-width."""

    def __init__(
        self,
        quantization: Quantization,
        bits: Bits,
        overrides: Mapping[str, Bits] | None,
        forward: Forward,
        method: Method,
        seed: int,
        max_bytes: int,
        compute_loss: ComputeLoss | None,
    ) -> None:
        self._quantization, self._bits, self._overrides = quantization, bits, overrides
        self._forward, self._method, self._seed, self._max_bytes = forward, method, seed, max_bytes
        self._compute_loss, self._model = compute_loss, quantization.model
        self._parts: tuple[Block, ...] = ()  # all blocks, as the method wants them
        point_bits = assign_bits(quantization.points, bits, overrides)
        self._point_bits = {point: bit_width for point, bit_width in point_bits.items() if bit_width is not None}
        self._repair = quantization.repairs.setdefault(format_bits(bits, overrides), Repair())
        mse, centred = self._build_grids(MseWeight, _EXPONENT), self._build_grids(CentredWeight)
        if quantization.scheme.placement == INTEGER:  # where the integers 2q + 1 of 8 bits would not fit into 8 bits
            centred = {point: each if self._point_bits[point] < 8 else mse[point] for point, each in centred.items()}
        self._grids = {"mse": mse, "centred": centred}

    def _build_grids(self, kind: Callable[..., GridQuantizer], *parameters: float) -> dict[QuantPoint, GridQuantizer]:
        weights = (point for point in self._point_bits if point.is_weight)
        return {point: kind(self._quantization[point].spec, *parameters) for point in weights}

    def select_blocks(self, blocks: Sequence[Block]) -> list[Block]:
        """The parts of these blocks, as the method wants them, that have weights to be learned."""
        weights = {point.path for point in self._grids["mse"]}
        parts = self._parts = self._method.split_blocks(blocks, [*weights])
        inside = [point for block in parts for point in self._select_weights(block)]
        missing = [point.key for point in self._grids["mse"] if inside.count(point) != 1]
        if missing:
            raise UserError(f"{missing[0]} is not in exactly one block ({len(missing)} such weight(s))")
        for point in inside:
            if not isinstance(self._quantization[point], LearnedRounding):
                raise UserError(
                    f"weight={self._quantization.scheme.weight} does not learn its rounding; use weight=brecq"
                )
        return [
            block
            for block in parts
            if any(point not in self._repair.quantizers for point in self._select_weights(block))
        ]

    def _select_weights(self, block: Block) -> list[QuantPoint]:
        return [point for point in select_inside(self._point_bits, block.modules) if point.is_weight]

    def reconstruct_block(self, block: Block, batches: Sequence[Any]) -> BlockResult:
        recorder, samples = self._record(block, batches)
        records, held_out = map(Records, split_held_out(samples))
        del samples  # the records are copies
        if not len(records) or not len(held_out):
            raise UserError(f"{block.name} has no inputs in the images for reconstruction; use more images")
        weights = self._select_weights(block)
        powers = [power.clamp(min=torch.finfo(power.dtype).tiny) for power in compute_powers(records)]
        nearest = {
            name: self._compute_error(block, held_out, powers, {point: grid[point] for point in weights})
            for name, grid in self._grids.items()
        }
        name = min(nearest, key=lambda each: nearest[each])
        grid, before = {point: self._grids[name][point] for point in weights}, nearest[name]
        factors = self._weigh_errors(block, recorder, powers, grid) if self._method.is_weighted else None
        if factors is not None:
            for part, own in zip((records, held_out), split_held_out(factors), strict=True):
                part.set_weights(own)
            before = self._compute_error(block, held_out, powers, grid)
        learned = self._learn(block, records, powers, grid)
        after = self._compute_error(block, held_out, powers, learned)
        is_kept = after < before
        if not is_kept:
            learned = round_to_nearest(self._quantization, grid, self._point_bits)
        self._repair.quantizers |= learned
        has_no_gradient = self._method.is_weighted and factors is None
        return BlockResult(block.name, name, before, after, is_kept, has_no_gradient)

    # ---- recording -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _record(self, block: Block, batches: Sequence[Any]) -> tuple[Recorder, list[Samples]]:
        has_weights = self._method.is_weighted
        recorder = Recorder(self._model, block, len(batches), self._seed, self._max_bytes, has_weights)
        for batch in batches:
            with recording_inputs(self._model, block) as record:
                inputs = record(self._forward, batch)
            recorder.add_float(inputs)
        # Later blocks are not reached, so any quantizer will do for them.
        with recording_inputs(self._model, block) as record, self._quantizing(self._grids["mse"], keep_learned=True):
            inputs_of_batches = (record(self._forward, batch) for batch in batches)
            samples = [recorder.make_samples(index, inputs) for index, inputs in enumerate(inputs_of_batches)]
        if recorder.is_cropped:
            _logger.info("%s: a window of each image, to stay within %d MB", block.name, self._max_bytes // 2**20)
        return recorder, samples

    def _weigh_errors(
        self, block: Block, recorder: Recorder, powers: Sequence[Tensor], nearest: Mapping[QuantPoint, Quantizer]
    ) -> list[Any] | None:
        """The weights of each batch; ``None`` if the loss has no gradient."""
        assert self._compute_loss is not None
        former = self._parts[: self._parts.index(block) + 1]
        inside = [path for part in former for path in part.modules]
        gradients = []
        with self._quantizing(nearest, inside), freezing(self._quantization.quantizers):
            for index in range(recorder.num_batches):
                found = compute_gradients(self._model, block, partial(self._compute_loss, self._model, index))
                gradients.append(recorder.cut_outputs(index, found))
        return make_weights(gradients, powers)

    @contextmanager
    def _quantizing(
        self,
        quantizers: Mapping[QuantPoint, Quantizer],
        inside: Sequence[str] = _EVERYWHERE,
        keep_learned: bool = False,
    ) -> Iterator[None]:
        """Run quantized with these quantizers in place of those of the repair, or only where it has none."""
        original = dict(self._repair.quantizers)
        self._repair.quantizers = {**quantizers, **original} if keep_learned else {**original, **quantizers}
        try:
            with self._quantization.applying(self._bits, self._overrides, inside):
                yield
        finally:
            self._repair.quantizers = original

    # ---- learning --------------------------------------------------------------------------------------------------

    def _learn(
        self, block: Block, records: Records, powers: Sequence[Tensor], grids: Mapping[QuantPoint, GridQuantizer]
    ) -> dict[QuantPoint, Quantizer]:
        """Learn the rounding of the weights on these grids, and the steps of trainable activation quantizers."""
        method = self._method
        quantization = self._quantization
        roundings = {
            point: build_soft_rounding(quantization, point, grid, self._point_bits[point])
            for point, grid in grids.items()
        }
        activations = {
            point: self._repair.quantizers.get(point, self._quantization[point])
            for point in select_inside(self._point_bits, block.modules)
            if not point.is_weight
        }
        inner = {point: each for point, each in activations.items() if not _is_output(point, block)}
        trained = copy_trainable(inner)
        device = get_device(self._model)
        generator, draws = (
            make_generator(self._seed, block.name, "elements", device=device),
            make_generator(self._seed, block.name, "samples"),
        )
        wrapped = {
            point: FloatActivation(quantizer)
            if _is_output(point, block)
            else method.wrap_activation(trained.get(point, quantizer), generator)
            for point, quantizer in activations.items()
        }
        iterations = get_iterations(quantization, grids)
        count = records.choose_num_samples()
        rounding_optimizer = torch.optim.Adam([each.v for each in roundings.values()], method.learning_rate)
        optimizers = [rounding_optimizer]
        if trained:
            optimizers.append(torch.optim.Adam(make_groups(trained, self._point_bits, method.step_learning_rate)))
        schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(each, iterations) for each in optimizers[1:]]
        with self._quantizing(roundings | wrapped, block.modules), torch.enable_grad():
            for iteration in range(iterations):
                loss = torch.zeros((), device=device)
                for index, rows in records.draw(count, draws):
                    samples = records.groups[index].select(rows, device)
                    inputs = method.mix_inputs(samples.inputs, samples.float_inputs, generator)
                    errors = compute_errors(block.run(self._model, inputs), samples.outputs, samples.weights)
                    part = sum(
                        error / power * channels for (error, channels), power in zip(errors, powers, strict=True)
                    )
                    loss = loss + part * (len(rows) / count)
                beta = method.compute_beta(iteration / iterations)
                if beta is not None:
                    penalty = sum(rounding.regularization(beta) for rounding in roundings.values())
                    loss = loss + method.rounding_weight * penalty
                for optimizer in optimizers:
                    optimizer.zero_grad()
                loss.backward()
                for optimizer in optimizers:
                    optimizer.step()
                for schedule in schedules:
                    schedule.step()
        for quantizer in trained.values():
            quantizer.requires_grad_(False)
        hardened = {point: rounding.harden() for point, rounding in roundings.items()}
        return {point: store_integers(quantization, point, each) for point, each in hardened.items()} | trained

    @torch.no_grad()
    def _compute_error(
        self, block: Block, records: Records, powers: Sequence[Tensor], quantizers: Mapping[QuantPoint, Quantizer]
    ) -> float:
        """The squared error relative to the mean square of the float outputs, averaged over the outputs."""
        total = 0.0
        with self._quantizing(quantizers, block.modules):
            for index, rows in records.split(records.choose_num_samples()):
                samples = records.groups[index].select(rows, get_device(self._model))
                errors = compute_errors(block.run(self._model, samples.inputs), samples.outputs, samples.weights)
                relative = [error / power for (error, _), power in zip(errors, powers, strict=True)]
                total += len(rows) * float(sum(relative)) / len(relative)
        return total / len(records)


def _is_output(point: QuantPoint, block: Block) -> bool:
    return point.side is Side.OUTPUT and point.path == block.modules[-1] and not point.function
