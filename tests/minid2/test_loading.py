"""Data: what is wrong is said with its place, and what every loader must hold. The numbers are in ``loading.py``."""

import itertools
import json
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.minid2.layouts import CLASSES, picture, write_coco, write_voc

from ssql_det.minid2 import data
from ssql_det.minid2.config import get_cfg
from ssql_det.minid2.data import build
from ssql_det.minid2.data import detection_utils as utils
from ssql_det.minid2.data import transforms as T
from ssql_det.minid2.data.common import MapDataset
from ssql_det.minid2.data.datasets import (
    load_coco_json,
    load_voc_instances,
    register_coco_instances,
    register_pascal_voc,
)
from ssql_det.minid2.data.datasets.files import root_folder
from ssql_det.minid2.data.samplers import InferenceSampler, TrainingSampler
from ssql_det.minid2.structures import BoxMode
from ssql_det.minid2.utils import comm


@pytest.fixture
def names():
    """Register under these; they are taken away afterwards."""
    yield ("own", "other")
    for name in ("own", "other"):
        data.DatasetCatalog.pop(name, None)
        data.MetadataCatalog.pop(name, None)


@pytest.fixture
def voc(tmp_path):
    write_voc(tmp_path / "VOC2007")
    return tmp_path / "VOC2007"


@pytest.fixture
def coco(tmp_path):
    return write_coco(tmp_path / "coco")


def changed(path, change):
    """A JSON file with a change, in place."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


def config(*keys):
    cfg = get_cfg()
    cfg.merge_from_list(["DATALOADER.NUM_WORKERS", 0, "INPUT.MIN_SIZE_TRAIN", (40,), *keys])
    return cfg


# --- data sets that are not what they should be


def test_a_missing_data_set_says_where_it_is_looked_for(tmp_path, monkeypatch, names):
    register_pascal_voc("own", str(tmp_path / "VOC2007"), "test", 2007)
    register_coco_instances("other", {}, str(tmp_path / "coco/annotations/instances_val2017.json"), str(tmp_path))
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/elsewhere")
    with pytest.raises(FileNotFoundError, match=r"Main/test\.txt: .*\$DETECTRON2_DATASETS .*is '~/elsewhere'"):
        data.get_detection_dataset_dicts("own")
    assert root_folder() == str(Path.home() / "elsewhere")
    monkeypatch.delenv("DETECTRON2_DATASETS")
    with pytest.raises(FileNotFoundError, match=r"instances_val2017\.json: .*is not set"):
        data.get_detection_dataset_dicts("other")
    assert root_folder() == "datasets"


def test_a_name_that_is_not_registered_is_told_with_those_that_are():
    with pytest.raises(KeyError, match=r"'voc_2008' is not registered.*voc_2007_test"):
        data.get_detection_dataset_dicts(["voc_2008"])
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN"):
        build.build_detection_train_loader(config())


WRONG_XML = {  # what is replaced by what, and how that is told
    "no XML": ("</annotation>", "<", "not well-formed|no element found|unclosed token"),
    "another class": ("<name>s", "<name>un-s", "class 'un-square' is not in"),
    "no size": ("width", "length", "<annotation> has no <size/width>"),
    "no corner": ("ymin", "top", "<object> has no <bndbox/ymin>"),
    "no number": ("<ymax>", "<ymax>x", "could not convert string to float"),
}


@pytest.mark.parametrize("name", WRONG_XML)
def test_a_wrong_voc_annotation_is_named(voc, name):
    old, new, fault = WRONG_XML[name]
    path = voc / "Annotations/000001.xml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=rf"Annotations/000001\.xml is not a valid VOC annotation: .*({fault})"):
        load_voc_instances(str(voc), "train", CLASSES)


def test_a_listed_image_without_annotation_is_named_and_one_image_is_enough(voc):
    (voc / "ImageSets/Main/one.txt").write_text("000003\n\n")
    (record,) = load_voc_instances(str(voc), "one", CLASSES)
    assert record["image_id"] == "000003"
    (voc / "Annotations/000003.xml").unlink()
    with pytest.raises(FileNotFoundError, match=r"Annotations/000003\.xml"):
        load_voc_instances(str(voc), "one", CLASSES)


WRONG_JSON = {  # what is changed, and how that is told
    "category": (lambda file: file["annotations"][2].update(category_id=8), "annotation 3 .*{} .*category 8, which is"),
    "no size": (lambda file: file["images"][0].pop("width"), "{} is not .*has no 'width'"),
    "no images": (lambda file: file.pop("images"), "{} is not .*has no 'images'"),
    "no dicts": (lambda file: file.update(images=[1]), "{} is not .*subscriptable"),
    "flat polygon": (lambda file: file["annotations"][0].update(segmentation=[1, 2, 3]), "{} is not .*has no len"),
    "no categories": (lambda file: file.pop("categories"), "{} is not .*has no 'categories'"),
    "no box": (lambda file: file["annotations"][0].update(bbox=[]), "annotation 1 .*{} .*empty 'bbox'"),
    "ignored": (lambda file: file["annotations"][0].update(ignore=1), "annotation 1 .*{} .*'ignore'"),
    "twice": (lambda file: file["annotations"][0].update(id=2), "{}' are not unique: 2"),
}


@pytest.mark.parametrize("name", WRONG_JSON)
def test_a_wrong_coco_file_is_named(coco, names, name):
    change, fault = WRONG_JSON[name]
    with pytest.raises(ValueError, match=fault.format(r"instances_False\.json")):
        load_coco_json(changed(coco, change), "images", "own")


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "[" * 100_000, "\ud800"])
def test_what_is_no_json_is_named(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=r"a\.json is not"):
        load_coco_json(path, tmp_path)


def test_the_published_minival_files_may_repeat_ids_and_test_files_have_no_annotations(coco, tmp_path, names):
    minival = tmp_path / "instances_minival2014.json"
    minival.write_bytes(coco.read_bytes())
    changed(minival, lambda document: document["annotations"][0].update(id=2))
    count = len(load_coco_json(minival, "images", "own"))
    assert len(load_coco_json(changed(minival, lambda document: document.pop("annotations")), "images")) == count


def test_without_a_name_ids_stay_and_nothing_is_kept(coco):
    known = data.MetadataCatalog.list()
    ids = {each["category_id"] for record in load_coco_json(coco, "images") for each in record["annotations"]}
    assert ids == {3, 7, 90}
    assert data.MetadataCatalog.list() == known


def test_data_sets_with_nothing_in_them(names):
    data.DatasetCatalog.register("own", list)
    with pytest.raises(ValueError, match="'own' is empty"):
        data.get_detection_dataset_dicts("own")
    crowd = {"iscrowd": 1, "category_id": 0}
    data.DatasetCatalog.register("other", lambda: [{"annotations": [crowd]}, {"annotations": []}])
    with pytest.raises(ValueError, match="no image in other"):
        data.get_detection_dataset_dicts("other")
    assert len(data.get_detection_dataset_dicts("other", filter_empty=False)) == 2
    with pytest.raises(ValueError, match="category_id=3 for a dataset of 2 classes"):
        data.print_instances_class_histogram([{"annotations": [{"category_id": 3}]}], ["a", "b"])


def test_metadata_are_not_changed(names):
    known = data.MetadataCatalog.get("own").set(thing_classes=["a"])
    with pytest.raises(AssertionError, match=r"(?s)'thing_classes' in the metadata of 'own'.*\['a'\] != \['b'\]"):
        known.thing_classes = ["b"]
    with pytest.raises(AttributeError, match=r"'colours' does not exist in the .* 'own'\. Available .*thing_classes"):
        _ = known.colours
    data.DatasetCatalog.register("own", list)
    with pytest.raises(AssertionError, match="'own' is already registered"):
        data.DatasetCatalog.register("own", list)


# --- images that are not what they should be


def test_an_image_that_cannot_be_decoded_is_named(tmp_path):
    whole = tmp_path / "whole.jpg"
    Image.fromarray(picture(0, 60, 70)).save(whole)
    for name, content in {
        "text.jpg": b"<html>not found</html>",
        "empty.jpg": b"",
        "cut.jpg": whole.read_bytes()[:-200],
        "header.png": b"\x89PNG\r\n\x1a\n" + b"\0" * 40,
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} cannot be decoded"):
            utils.read_image(str(tmp_path / name), "BGR")
    with pytest.raises(FileNotFoundError, match=r"absent\.jpg is missing or not a regular file"):
        utils.read_image(str(tmp_path / "absent.jpg"), "BGR")
    with pytest.raises(ValueError, match=r"INPUT\.FORMAT.*'YUV-BT\.601'"):
        utils.read_image(str(whole), "YUV-BT.601")


def test_broken_exif_does_not_make_an_image_unreadable(tmp_path):
    Image.fromarray(picture(0, 6, 7)).save(tmp_path / "a.png", exif=b"Exif\0\0nonsense")
    with pytest.raises(SyntaxError), Image.open(tmp_path / "a.png") as image:
        image.getexif()
    assert utils.read_image(str(tmp_path / "a.png"), "RGB").shape == (6, 7, 3)


def test_an_image_of_another_size_is_named(voc):
    record = load_voc_instances(str(voc), "train", CLASSES)[0]
    width = record["width"]
    with pytest.raises(utils.SizeMismatchError, match=rf"000000\.jpg has .*\({width}, .*\({width + 1}, "):
        data.DatasetMapper(config())({**record, "width": width + 1})


# --- configs that ask for what is not there


@pytest.mark.parametrize(
    ("keys", "error", "named"),
    [
        (["INPUT.CROP.ENABLED", True], NotImplementedError, r"INPUT\.CROP\.ENABLED"),
        (["MODEL.KEYPOINT_ON", True], NotImplementedError, r"MODEL\.KEYPOINT_ON"),
        (["INPUT.RANDOM_FLIP", "both"], ValueError, r"INPUT\.RANDOM_FLIP .*'both'"),
        (
            ["DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler"],
            ValueError,
            r"DATALOADER\.SAMPLER_TRAIN .*Random",
        ),
        (["SOLVER.IMS_PER_BATCH", 0], ValueError, r"SOLVER\.IMS_PER_BATCH.*got 0"),
        (["MODEL.LOAD_PROPOSALS", True], NotImplementedError, r"MODEL\.LOAD_PROPOSALS"),
    ],
)
def test_a_config_that_asks_for_more_is_refused_by_name(voc, names, keys, error, named):
    register_pascal_voc("own", str(voc), "train", 2007, CLASSES)
    with pytest.raises(error, match=named):
        build.build_detection_train_loader(config("DATASETS.TRAIN", ("own",), *keys))


def test_cropping_is_for_training_only():
    cfg = config("INPUT.CROP.ENABLED", True)
    assert len(data.DatasetMapper(cfg, False).augmentations.augs) == 1


def test_a_batch_divides_among_the_processes(monkeypatch):
    monkeypatch.setattr(build, "get_world_size", lambda: 3)
    loader = build.build_batch_data_loader([1], TrainingSampler(1, seed=0), 12)
    assert next(iter(loader)) == [1] * 4
    with pytest.raises(ValueError, match=r"gpus \(3\), got 16"):
        build.build_batch_data_loader([1], TrainingSampler(1, seed=0), 16)
    with pytest.raises(ValueError, match="mutually exclusive"):
        build.build_batch_data_loader([1], TrainingSampler(1, seed=0), 3, single_gpu_batch_size=1)


def test_rle_needs_bitmaps(tmp_path):
    records = load_coco_json(write_coco(tmp_path, rle=True), tmp_path / "images")
    record = next(each for each in records if any(isinstance(one["segmentation"], dict) for one in each["annotations"]))
    for one in record["annotations"]:
        one["iscrowd"] = 0
    assert len(data.DatasetMapper(config("MODEL.MASK_ON", True, "INPUT.MASK_FORMAT", "bitmask"))(record)["instances"])
    with pytest.raises(ValueError, match=r"INPUT\.MASK_FORMAT to 'bitmask'"):
        data.DatasetMapper(config("MODEL.MASK_ON", True))(record)


def test_a_flip_has_one_direction():
    for both in (True, False):
        with pytest.raises(ValueError, match="either horizontal or vertical"):
            T.RandomFlip(horizontal=both, vertical=both)


# --- what holds for every image


@pytest.mark.parametrize("seed", range(10))
def test_boxes_polygons_and_pixels_move_together(seed):
    """After resizing and flipping, the box of a shape is the box of its polygon, and to a pixel that of its pixels."""
    np.random.seed(seed)
    height, width, x, y = (np.random.randint(*ends) for ends in ((60, 120), (60, 120), (0, 20), (0, 20)))
    pixels = np.zeros((height, width), np.uint8)
    pixels[y : y + 31, x : x + 25] = 255
    given = T.AugInput(pixels, boxes=np.array([[x, y, x + 25.0, y + 31.0]]))
    flips = [T.RandomFlip(), T.RandomFlip(horizontal=False, vertical=True)]
    transforms = T.AugmentationList([T.ResizeShortestEdge([40, 200]), *flips])(given)
    corners = [x, y, x + 25.0, y, x + 25.0, y + 31.0, x, y + 31.0]
    one = {"bbox": [x, y, 25.0, 31.0], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "segmentation": [corners]}
    size = given.image.shape[:2]
    moved = utils.annotations_to_instances([utils.transform_instance_annotations(one, transforms, size)], size)
    rows, columns = np.nonzero(given.image > 127)
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(moved.gt_boxes.tensor[0], seen, atol=1.01)
    np.testing.assert_allclose(moved.gt_masks.get_bounding_boxes().tensor, moved.gt_boxes.tensor, atol=1e-4)
    np.testing.assert_allclose(given.boxes, moved.gt_boxes.tensor, atol=1e-4)
    back = T.TransformList([each.inverse() for each in reversed(transforms.transforms)])
    np.testing.assert_allclose(back.apply_box(given.boxes), [[x, y, x + 25, y + 31]], atol=1e-9)


@pytest.mark.parametrize("size", [1, 5, 12])
def test_processes_share_images_evenly(size):
    for world in range(1, 7):
        shards = [[*InferenceSampler._get_local_indices(size, world, rank)] for rank in range(world)]
        assert [*itertools.chain(*shards)] == [*range(size)]
        assert max(map(len, shards)) - min(map(len, shards)) <= 1
        streams = []
        for rank in range(world):
            sampler = TrainingSampler(size, seed=3)
            sampler._rank, sampler._world_size = rank, world
            streams.append(itertools.islice(sampler, 3 * size))
        order = [index for turn in zip(*streams, strict=True) for index in turn]
        epochs = [order[start : start + size] for start in range(0, len(order), size)]
        assert all(sorted(epoch) == [*range(size)] for epoch in epochs)
    assert size == 1 or epochs[0] != epochs[1]


def test_without_a_seed_processes_agree_on_one(monkeypatch):
    for name, value in {"shared_random_seed": 11, "get_rank": 1, "get_world_size": 3}.items():
        monkeypatch.setattr(comm, name, lambda value=value: value)
    alone = TrainingSampler(7, seed=11)
    alone._rank, alone._world_size = 0, 1
    order = list(itertools.islice(alone, 21))
    assert list(itertools.islice(TrainingSampler(7), 7)) == order[1::3]
    assert list(InferenceSampler(7)) == [3, 4]


class Draw:
    """A mapper that draws."""

    def __call__(self, item):
        worker = torch.utils.data.get_worker_info()
        return {**item, "worker": worker.id, "drawn": (np.random.rand(), torch.rand(()).item())}


@pytest.mark.slow
def test_workers_draw_differently_and_again_the_same():
    records = [{"width": 2, "height": 1, "number": number} for number in range(8)]

    def run(global_seed, **settings):
        torch.manual_seed(global_seed)
        loader = data.build_detection_train_loader(
            records, mapper=Draw(), sampler=TrainingSampler(8, seed=1), total_batch_size=2, num_workers=2, **settings
        )
        return list(itertools.chain(*itertools.islice(loader, 6)))

    first = run(5)
    assert run(5) == first != run(6)
    assert run(5, seed=3) == run(6, seed=3)  # their own, whatever else is drawn
    assert {each["worker"] for each in first} == {0, 1}
    assert len({each["drawn"] for each in first}) == len({each["drawn"][0] for each in first}) == len(first)


def test_batches_are_wide_or_high():
    sizes = np.random.RandomState(0).randint(1, 9, (60, 2)).tolist()
    records = [{"width": width, "height": height} for width, height in sizes]
    loader = data.build_detection_train_loader(records, mapper=None, total_batch_size=4)
    for batch in itertools.islice(loader, 40):
        assert len(batch) == 4
        assert len({each["width"] > each["height"] for each in batch}) == 1


def test_a_mapped_data_set_can_be_sent_to_another_process():
    mapped = MapDataset(data.DatasetFromList([{"a": 1}, {"a": 2}]), json.dumps)
    assert [*map(pickle.loads(pickle.dumps(mapped)).__getitem__, (0, 1))] == ['{"a": 1}', '{"a": 2}']
    listed = data.DatasetFromList([10, 11])
    assert [*listed] == [10, 11]  # it ends
    assert listed[-1] == 11


def test_a_mapper_that_gives_nothing_ends(caplog):
    with caplog.at_level(logging.WARNING), pytest.raises(ValueError, match="None for each of 5 items"):
        _ = MapDataset([1, 2, 3, 4, 5], lambda item: None)[2]
    assert "None for item 2" in caplog.text


def test_streams_have_no_sampler_and_others_need_one():
    stream = data.ToIterableDataset([1, 2], TrainingSampler(2, seed=0))
    for build_loader in (data.build_detection_train_loader, data.build_detection_test_loader):
        arguments = {} if build_loader is data.build_detection_test_loader else {"total_batch_size": 1}
        with pytest.raises(AssertionError, match="sampler must be None"):
            build_loader(stream, mapper=None, sampler=InferenceSampler(2), **arguments)
    with pytest.raises(AssertionError, match="needs a sampler"):
        build.build_batch_data_loader([1, 2], None, 1)
