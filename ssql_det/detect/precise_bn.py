"""Precise BN: after training, the norms' statistics are the average over many batches, not an exponential one.

Wu and Johnson, "Rethinking Batch in BatchNorm" (2021); the computation is fvcore's. Detectron2's keys say whether and
over how many batches: ``TEST.PRECISE_BN``.
"""

from __future__ import annotations

from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import nn

from ssql_det.core.choices import RngState
from ssql_det.core.ranks import mean, share_from_main
from ssql_det.d2 import CfgNode, EventStorage
from ssql_det.detect.answers import answered
from ssql_det.detect.stream import training_batches


def estimate_norms(cfg: CfgNode, model: nn.Module, seed: int) -> None:
    """Estimate the statistics anew, where the config says so and norms are not frozen; generators stay as they are.

    The images are the beginning of a stream of their own, the same each time, which the ranks share. Afterwards every
    rank has the same statistics: those of all, or where nothing is estimated the main process's.
    """
    norms = get_bn_modules(model) if cfg.TEST.PRECISE_BN.ENABLED else []
    if norms:
        generators = RngState.capture()
        is_training = model.training
        model.train()
        with EventStorage(), answered("the norms' statistics cannot be estimated"):  # losses report to a storage
            update_bn_stats(model, training_batches(cfg, seed + 1), cfg.TEST.PRECISE_BN.NUM_ITER)
        model.train(is_training)
        generators.restore()
    for norm in norms:
        _average(norm)
    share_from_main(model.buffers())


def _average(norm: nn.Module) -> None:
    """Over the ranks, which count the same: the variance of all is that within each and that of their means."""
    average, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    of_all = mean(average)
    variance.copy_(mean(variance + (average - of_all).square()))
    average.copy_(of_all)
