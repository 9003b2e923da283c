"""Precise BN: after training, the norms' statistics are the average over many batches, not an exponential one.

Wu and Johnson, "Rethinking Batch in BatchNorm" (2021); the computation is fvcore's. Detectron2's keys say whether and
over how many batches: ``TEST.PRECISE_BN``.
"""

from __future__ import annotations

from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import nn

from ssql_det.core.resume import RngState
from ssql_det.d2 import CfgNode, EventStorage
from ssql_det.detect.stream import training_batches


def estimate_norms(cfg: CfgNode, model: nn.Module, seed: int) -> None:
    """Estimate the statistics anew, where the config says so and norms are not frozen; generators stay as they are.

    The images are the beginning of a stream of their own, the same each time.
    """
    if not cfg.TEST.PRECISE_BN.ENABLED or not get_bn_modules(model):
        return
    generators = RngState.capture()
    is_training = model.training
    model.train()
    batches = training_batches(cfg, cfg.SOLVER.IMS_PER_BATCH // cfg.SSQL.MICRO_BATCHES, seed + 1)
    with EventStorage():  # the losses report to one; nobody reads it
        update_bn_stats(model, batches, cfg.TEST.PRECISE_BN.NUM_ITER)
    model.train(is_training)
    generators.restore()
