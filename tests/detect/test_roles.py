"""Calibration, reconstruction and selection take different training images."""

import itertools

import pytest
import torch
from support.detect.configs import C4, config

from ssql_det.core.errors import UserError
from ssql_det.d2 import DatasetCatalog
from ssql_det.detect.evaluation_data import select_calibration_images, select_role_images
from ssql_det.quant import Calibration

TRAIN = "toy_voc_2007_trainval"


def list_files(batches):
    return [image["file_name"] for (image,) in batches]


def select_files(calibration, **keys):
    """The files of each role."""
    images = select_role_images(config(C4, **keys), calibration)
    return tuple(map(list_files, (images.calibration, images.reconstruction, images.selection)))


@pytest.mark.parametrize("seed", [0, 7])
def test_roles_take_one_permutation_of_the_training_images_in_turn(seed):
    shuffled = torch.randperm(30, generator=torch.Generator().manual_seed(seed)).tolist()
    files = [DatasetCatalog.get(TRAIN)[index]["file_name"] for index in shuffled]
    torch.rand(1)
    found = select_files(Calibration(6, seed, reconstruction_images=10, selection_images=14))
    assert found == (files[:6], files[6:16], files[16:])
    assert len(set(itertools.chain(*found))) == 30
    images = select_role_images(config(C4), Calibration(1, seed, selection_images=1))
    assert len(images.reconstruction) == 0
    ((image,),) = images.selection
    assert min(image["image"].shape[1:]) == 64  # in test form
    assert "instances" not in image


@pytest.mark.parametrize("counts", [(0, 0), (5, 0), (0, 5), (12, 12)])
def test_the_calibration_images_do_not_depend_on_the_other_roles(counts):
    expected = list_files(select_calibration_images(config(C4), Calibration(6)))
    calibration = Calibration(6, 0, "", *counts)
    assert select_files(calibration)[0] == list_files(select_calibration_images(config(C4), calibration)) == expected


def test_no_image_has_two_roles_if_a_data_set_is_named_twice():
    twice = {"DATASETS__TRAIN": (TRAIN, TRAIN)}
    for seed in range(3):
        roles = [set(files) for files in select_files(Calibration(5, seed, "", 10, 10), **twice)]
        assert [len(files) for files in roles[1:]] == [10, 10]
        assert all(one.isdisjoint(other) for one, other in itertools.combinations(roles, 2))
    with pytest.raises(UserError, match=r"DATASETS\.TRAIN has 30 images"):
        select_role_images(config(C4, **twice), Calibration(1, 0, "", 10, 20))
    assert list(map(len, select_files(Calibration(1, 0, "", 10, 19), **twice))) == [1, 10, 19]


@pytest.mark.parametrize("counts", [(29, 1, 1), (31, 1, 0), (20, 0, 11), (10, 21, 0)])
def test_too_few_images_for_all_roles_are_an_error(counts):
    calibration = Calibration(counts[0], 0, "", *counts[1:])
    expected = (
        r"DATASETS\.TRAIN has 30 images, but calibration needs {}, reconstruction {} and selection {} different ones; "
        "use fewer for a role, or name more training data"
    ).format(*counts)
    for select in (select_role_images, select_calibration_images):
        with pytest.raises(UserError, match=f"^{expected}$"):
            select(config(C4), calibration)


def test_calibration_alone_takes_fewer_images_if_there_are_no_more():
    assert list(map(len, select_files(Calibration(31)))) == [30, 0, 0]


@pytest.mark.parametrize("counts", [(-1, 0), (0, -2)])
def test_negative_numbers_are_refused(counts):
    with pytest.raises(UserError, match=f"must be 0 or more, got {counts[0]}, {counts[1]}"):
        select_role_images(config(C4), Calibration(4, 0, "", *counts))
