"""AP on selection images is the AP of the engine's evaluators on a data set of these images."""

import math

import pytest
import torch
from support.detect.configs import C4, FPN, config, randomize_norms

from ssql_det.core.errors import UserError
from ssql_det.d2 import Boxes, BoxMode, DatasetCatalog, DatasetMapper, Instances, MetadataCatalog
from ssql_det.detect.detector import build_detector
from ssql_det.detect.evaluation import evaluate
from ssql_det.detect.evaluation_data import CalibrationImages, build_evaluation_loader
from ssql_det.detect.selection_data import registering_selection

pytestmark = pytest.mark.slow
VOC, COCO = "toy_voc_2007_test", "toy_coco_2017_val"
MANY = {"MODEL__RPN__POST_NMS_TOPK_TEST": 30, "TEST__DETECTIONS_PER_IMAGE": 60}
CASES = [(C4, VOC), (FPN, COCO)]


def make_images(cfg, dataset_dicts):
    return CalibrationImages(dataset_dicts, DatasetMapper(cfg, is_train=False))


def evaluate_on(cfg, model, dataset_dicts):
    with registering_selection(cfg, make_images(cfg, dataset_dicts)) as (name, loader):
        assert name in MetadataCatalog
        metrics = evaluate(model, loader, name)
    assert name not in MetadataCatalog
    return metrics


@pytest.fixture
def build():
    """A detector that finds some objects, by chance."""

    def build(name, dataset, **keys):
        torch.manual_seed(3)
        cfg = config(name, DATASETS__TRAIN=(dataset,), **MANY, **keys)
        return cfg, randomize_norms(build_detector(cfg))

    return build


@pytest.mark.parametrize(("name", "dataset"), CASES)
def test_all_images_of_a_data_set_have_its_ap(name, dataset, build):
    cfg, model = build(name, dataset)
    expected = evaluate(model, build_evaluation_loader(cfg, dataset), dataset)
    assert expected["bbox/AP"] > 0
    assert evaluate_on(cfg, model, DatasetCatalog.get(dataset)) == pytest.approx(expected, abs=0, nan_ok=True)


@pytest.mark.parametrize(("name", "dataset"), CASES)
def test_the_objects_of_other_images_do_not_count(name, dataset):
    """A detector that returns the objects has AP 100, in any order of the images; without those of one image less."""
    cfg = config(name, DATASETS__TRAIN=(dataset,), MODEL__MASK_ON=False)
    images = DatasetCatalog.get(dataset)[:2:-1]
    oracle = Oracle(images)
    assert evaluate_on(cfg, oracle, images)["bbox/AP"] == pytest.approx(100, abs=1e-4)
    oracle.files.popitem()
    assert evaluate_on(cfg, oracle, images)["bbox/AP"] < 99


class Oracle(torch.nn.Module):
    """Detects the objects of these images, by file name."""

    def __init__(self, images):
        super().__init__()
        self.files = {image["file_name"]: image for image in images}

    def forward(self, batch):
        return [{"instances": self.detect(inputs)} for inputs in batch]

    def detect(self, inputs):
        objects = self.files.get(inputs["file_name"], {"annotations": []})["annotations"]
        boxes = [BoxMode.convert(list(each["bbox"]), each["bbox_mode"], BoxMode.XYXY_ABS) for each in objects]
        fields = {"pred_boxes": Boxes(torch.tensor(boxes).reshape(-1, 4)), "scores": torch.ones(len(boxes))}
        fields["pred_classes"] = torch.tensor([each["category_id"] for each in objects], dtype=torch.long)
        return Instances((inputs["height"], inputs["width"]), **fields)


def test_images_of_one_name_in_two_data_sets_stay_apart(build):
    for name, dataset, other in ((C4, VOC, "toy_voc_2007_trainval"), (FPN, COCO, "toy_coco_2017_train")):
        cfg, model = build(name, dataset)
        cfg = config(name, DATASETS__TRAIN=(dataset, other), **MANY)
        images = [*DatasetCatalog.get(dataset)[:6], *DatasetCatalog.get(other)[:6]]
        images[6] = {**images[6], "image_id": images[0]["image_id"]} if name == FPN else images[6]
        with registering_selection(cfg, make_images(cfg, images)) as (_, loader):
            ids = [batch[0]["image_id"] for batch in loader]
        assert len({*ids}) == 12
        assert not math.isnan(evaluate_on(cfg, model, images)["bbox/AP"])


def test_data_sets_of_two_kinds_are_refused(build):
    cfg, _ = build(C4, VOC)
    cfg = config(C4, DATASETS__TRAIN=(VOC, COCO))
    with (
        pytest.raises(UserError, match=r"needs data sets of one kind .* use --fast, which needs no objects"),
        registering_selection(cfg, make_images(cfg, DatasetCatalog.get(VOC)[:2])),
    ):
        pass
