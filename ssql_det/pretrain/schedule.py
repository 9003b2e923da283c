"""``OPTIM.LEAST_STEPS``: a batch and a number of epochs that follow the number of images."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

from ssql_det.pretrain.config import PretrainConfig
from ssql_det.pretrain.view_loader import steps_per_epoch

_logger = logging.getLogger(__name__)


def fit_schedule(config: PretrainConfig) -> PretrainConfig:
    """The config with the schedule that ``OPTIM.LEAST_STEPS`` stands for, as explicit values; with 0 it is as it is.

    ``OPTIM.BATCH`` is halved until the images fill one, and ``OPTIM.LR`` follows it. ``OPTIM.EPOCHS`` become so many
    that there are at least these steps; ``OPTIM.WARMUP_EPOCHS`` keep their share. What was set is logged.
    """
    optim = config.optim
    if not optim.least_steps:
        return config
    num_images, batch = len(config.data.open()), optim.batch
    while batch > num_images and batch % 2 == 0:
        batch //= 2
    epochs = optim.epochs
    if epoch_steps := steps_per_epoch(num_images, batch):  # else the training says that there are too few images
        epochs = max(epochs, math.ceil(optim.least_steps / epoch_steps))
    warmup, lr = optim.warmup_epochs * epochs / optim.epochs, optim.lr * batch / optim.batch
    fitted = replace(optim, batch=batch, epochs=epochs, lr=lr, warmup_epochs=warmup, least_steps=0)
    names = ("batch", "epochs", "lr", "warmup_epochs", "least_steps")
    values = {f"OPTIM.{name.upper()}": getattr(fitted, name) for name in names}
    message = "%d images: OPTIM.EPOCHS is set to %d, BATCH to %d, LR to %g, WARMUP_EPOCHS to %g"
    _logger.info(message, num_images, epochs, batch, lr, warmup)
    return replace(config, optim=fitted, values={**config.values, **values})
