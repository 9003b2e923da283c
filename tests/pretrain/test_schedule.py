"""``OPTIM.LEAST_STEPS``: the schedule that follows the number of images."""

import logging

import numpy as np
import pytest
from PIL import Image

from ssql_det.pretrain.config import read_config
from ssql_det.pretrain.schedule import fit_schedule


@pytest.fixture
def fit(tmp_path):
    """A config fitted to so many images: of 12 epochs, 3 of them to warm up, in batches of 64 with a rate of .1."""

    def fit(num_images, *overrides):
        for index in range(num_images):
            Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / f"{index}.png")
        solver = ["OPTIM.BATCH", "64", "OPTIM.EPOCHS", "12", "OPTIM.WARMUP_EPOCHS", "3.0", "OPTIM.LR", "0.1"]
        return fit_schedule(read_config(None, ["DATA.TRAIN", str(tmp_path), *solver, *overrides]))

    return fit


@pytest.mark.parametrize(
    ("num_images", "batch", "epochs", "lr", "warmup"),
    [
        (640, 64, 12, 0.1, 3.0),  # 120 steps
        (130, 64, 50, 0.1, 12.5),  # 2 steps an epoch
        (40, 32, 100, 0.05, 25.0),
        (9, 8, 100, 0.0125, 25.0),
    ],
)
def test_the_epochs_and_the_batch_follow_the_images(num_images, batch, epochs, lr, warmup, fit, caplog):
    caplog.set_level(logging.INFO, "ssql_det")
    config = fit(num_images, "OPTIM.LEAST_STEPS", "100")
    optim = config.optim
    assert (optim.batch, optim.epochs, optim.lr, optim.warmup_epochs) == (batch, epochs, lr, warmup)
    saved = [config.values[f"OPTIM.{name}"] for name in ("BATCH", "EPOCHS", "LR", "WARMUP_EPOCHS", "LEAST_STEPS")]
    assert saved == [batch, epochs, lr, warmup, 0]
    assert fit_schedule(config) is config
    assert caplog.messages == [
        f"{num_images} images: OPTIM.EPOCHS is set to {epochs}, BATCH to {batch}, LR to {lr:g}, "
        f"WARMUP_EPOCHS to {warmup:g}"
    ]


def test_without_it_nothing_is_read_or_changed(fit):
    config = read_config(None, ["DATA.TRAIN", "nowhere"])
    assert fit_schedule(config) is config


def test_an_odd_batch_stays_and_the_training_says_that_there_are_too_few_images(fit):
    assert fit(9, "OPTIM.BATCH", "63", "OPTIM.LEAST_STEPS", "100").optim.batch == 63
