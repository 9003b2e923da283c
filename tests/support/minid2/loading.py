"""Scenarios of data, which run in both engines; see ``record_answers.py``.

They cover catalogs, readers, augmentations, the mapper, samplers and loaders. The recorded ones use images of
``layouts.py``; JPEGs of toy data, which machines decode differently, are live only.
"""

import contextlib
import hashlib
import itertools
import json
import logging
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from support.minid2.layouts import CLASSES, COUNT, picture, write_coco, write_voc
from support.minid2.modules import add_prefix, encode_text


@contextlib.contextmanager
def registering_layouts(engine):
    """VOC's and COCO's layouts in a temporary folder, registered inside the block; yields the folder and the names."""
    data, readers = engine("data"), engine("data.datasets")
    names = {"voc": "own_voc", "polygons": "own_polygons", "masks": "own_masks"}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_voc(root / "voc")
        paths = {"polygons": write_coco(root / "coco"), "masks": write_coco(root / "coco", rle=True)}
        readers.register_pascal_voc(names["voc"], str(root / "voc"), "train", 2007, CLASSES)
        for name, path in paths.items():
            readers.register_coco_instances(names[name], {}, str(path), str(root / "coco/images"))
        try:
            yield root, names
        finally:
            for name in names.values():
                data.DatasetCatalog.remove(name)
                data.MetadataCatalog.remove(name)


@contextlib.contextmanager
def collecting_lines(engine, package):
    """A list to which the lines that a module logs inside the block are added."""
    logger, lines = logging.getLogger(engine(package).__name__), []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(before)


def hash_array(array):
    """Shape, bytes of an element, and the beginning of the SHA-256 of a large array."""
    array = np.ascontiguousarray(array)
    digest = np.frombuffer(hashlib.sha256(array.tobytes()).digest()[:8], np.uint8)
    return np.concatenate([np.array([*array.shape, array.itemsize]), digest])


def describe_outcome(action):
    """The returned value, or the type of the error, as text."""
    try:
        return str(action())
    except (AssertionError, AttributeError, KeyError, ValueError) as error:
        return type(error).__name__


def flatten_masks(masks):
    if hasattr(masks, "polygons"):
        flat = [polygon for polygons in masks.polygons for polygon in polygons]
        return {"corners": np.concatenate([*flat, [0.0]]), "counts": np.array([len(each) for each in flat])}
    return {"bits": hash_array(masks.tensor.numpy())}


def flatten_item(item):
    """A mapper's result for one image, as arrays."""
    answers = {"image": hash_array(item["image"].numpy()), "size": np.array([item["height"], item["width"]])}
    answers["keys"] = encode_text(",".join(sorted(item)))
    if "instances" in item:
        found = item["instances"]
        answers |= {"boxes": found.gt_boxes.tensor, "classes": found.gt_classes, "in": np.array(found.image_size)}
        answers |= flatten_masks(found.gt_masks) if found.has("gt_masks") else {}
    return answers


def join_items(items):
    """The arrays of several items joined by name, and their lengths; -1 where an item lacks a name."""
    flat = [{name: np.asarray(value).ravel() for name, value in item.items()} for item in items]
    names = sorted(set().union(*flat))
    lengths = np.array([[len(item[name]) if name in item else -1 for item in flat] for name in names])
    joined = {name: np.concatenate([item[name] for item in flat if name in item]) for name in names}
    return joined | {"lengths": lengths}


def metadata(engine):
    kit = engine("data.catalog")
    one = kit.Metadata(name="one").set(thing_classes=["a", "b"], year=2007)
    one.class_names = ["a", "b"]
    copied = one.as_dict()
    copied["year"] = 2012
    steps = [
        *(lambda: one.year, lambda: one.get("year"), lambda: one.get("colour"), lambda: one.get("colour", 5)),
        *(lambda: one.set(year=2007).year, lambda: one.set(year=2012), lambda: one.colour, lambda: one.class_names),
        *(lambda: setattr(one, "name", "two"), lambda: setattr(one, "class_names", ["c"]), lambda: sorted(copied)),
        *(lambda: kit.Metadata().name, lambda: setattr(kit.Metadata(), "name", "x"), lambda: sorted(one.as_dict())),
    ]
    catalog, metas = kit.DatasetCatalog, kit.MetadataCatalog
    catalog.register("own", lambda: [{"image_id": 3}])
    metas.get("own").year = 1
    steps += [
        *(lambda: catalog.get("own"), lambda: catalog.register("own", list), lambda: catalog.register("other", 3)),
        *(lambda: "own" in catalog.list(), lambda: catalog.get("absent"), lambda: metas.get("own").year),
        *(lambda: metas.get("own") is metas.get("own"), lambda: metas.get(""), lambda: "own" in metas.list()),
        *(lambda: catalog.remove("own"), lambda: "own" in catalog, lambda: metas.remove("own"), lambda: "own" in metas),
        lambda: catalog.remove("own"),
    ]
    return {"steps": encode_text("\n".join(describe_outcome(step) for step in steps))}


def built_in(engine):
    kit = engine("data")
    names = [f"coco_2014_{split}" for split in ("train", "val", "minival", "valminusminival")]
    names += [f"coco_2017_{split}" for split in ("train", "val", "val_100")]
    names += [f"voc_{year}_{split}" for year in (2007, 2012) for split in ("trainval", "train", "val")]
    names.append("voc_2007_test")
    root = kit.MetadataCatalog.get("voc_2007_test").dirname.removesuffix("VOC2007")
    known = [kit.MetadataCatalog.get(name).as_dict() for name in names]
    return {
        "known": encode_text(json.dumps(known, sort_keys=True).replace(root, "")),
        "registered": np.array([name in kit.DatasetCatalog.list() for name in names]),
    }


def to_json_value(value):
    """For JSON."""
    if isinstance(value, bytes):
        return value.decode()
    return int(value) if isinstance(value, (int, np.integer)) else float(value)


def readers(engine):
    """The dataset dicts of both layouts, and the metadata that reading them sets."""
    kit, answers = engine("data.datasets"), {}
    with registering_layouts(engine) as (root, names):
        for name, own in names.items():
            records = engine("data").DatasetCatalog.get(own)
            answers[name] = encode_text(
                json.dumps(records, sort_keys=True, default=to_json_value).replace(str(root), "")
            )
            known = engine("data").MetadataCatalog.get(own).as_dict()
            answers[f"{name} known"] = encode_text(json.dumps(known, sort_keys=True).replace(str(root), ""))
        path = str(root / "coco/instances_True.json")
        raw = kit.load_coco_json(path, root / "coco/images", extra_annotation_keys=["score", "absent"])
        answers["without a name"] = encode_text(
            json.dumps(raw, sort_keys=True, default=to_json_value).replace(str(root), "")
        )
        kit.register_coco_instances(names["masks"], {}, path, str(root / "coco/images"))  # again is no error
        module, lines = engine("data.build"), []
        with mock.patch.object(module, "log_first_n", lambda _, text, key: lines.append(text)):
            for given in ([names["voc"]], [names["polygons"], names["masks"]], names["masks"]):
                for keep in (True, False):
                    records = engine("data").get_detection_dataset_dicts(given, filter_empty=keep)
                    answers[f"{given} {keep}"] = np.array([int(each["image_id"]) for each in records])
            engine("data").print_instances_class_histogram(records[:3], ["c"] * 4 + ["a very long name of a class"])
            engine("data").print_instances_class_histogram([{"annotations": [{"category_id": 0}] * 3}], ["one"])
            many = [{"annotations": [{"category_id": index * index % 23} for index in range(50)]}]
            engine("data").print_instances_class_histogram(many, [f"class {index}" for index in range(23)])
        text = "\n".join(lines).replace("\x1b[36m", "").replace("\x1b[0m", "")
        answers["told"] = encode_text(text)
        check = engine("data.detection_utils").check_metadata_consistency
        steps = [*(names["polygons"], names["masks"]), names["voc"]]
        answers["consistent"] = encode_text(
            ",".join(
                describe_outcome(lambda i=i, j=j: check("thing_classes", steps[i:j]))
                for i, j in [(0, 2), (0, 3), (0, 0)]
            )
        )
    return answers


def resizing(engine):
    kit, answers = engine("data.transforms"), {}
    shape = kit.ResizeShortestEdge.get_output_shape
    rng = np.random.RandomState(0)
    grid = [(*rng.randint(1, 2000, 2).tolist(), int(rng.choice([0, 480, 600, 800, 1, 37])), 1333) for _ in range(400)]
    grid += [*rng.randint(1, 30, (300, 4)).tolist(), [3, 5, 10, 16]]
    answers["shapes"] = np.array([shape(*each) for each in grid])
    for name, make in {
        "choice": lambda: kit.ResizeShortestEdge((24, 32, 45), 60, "choice"),
        "one": lambda: kit.ResizeShortestEdge(30, sample_style="choice"),
        "range": lambda: kit.ResizeShortestEdge([20, 70], 90),
        "off": lambda: kit.ResizeShortestEdge(0, 90, "choice"),
        "flip": kit.RandomFlip,
        "seldom": lambda: kit.RandomFlip(0.2, horizontal=False, vertical=True),
        "several": lambda: kit.AugmentationList([kit.HFlipTransform(50), kit.ResizeShortestEdge(40), kit.RandomFlip()]),
    }.items():
        np.random.seed(5)
        augmentation, drawn = make(), []
        for index in range(30):
            pixels = picture(index, 33, 50)
            given = kit.AugInput(pixels, boxes=np.array([[1.0, 2, 30, 20.5]]), sem_seg=pixels[:, :, 0])
            transform = augmentation(given)
            drawn.append({"chosen": encode_text(repr(transform)), "boxes": given.boxes})
            drawn[-1]["pixels"] = np.concatenate([hash_array(given.image), hash_array(given.sem_seg)])
        answers |= add_prefix(name, join_items(drawn[:: 6 if name in ("one", "off") else 1]))
        answers |= {f"{name} repr": encode_text(repr(augmentation)), f"{name} next": np.array(np.random.rand())}
    resize = kit.ResizeTransform(33, 50, 47, 61)
    smaller = kit.ResizeTransform(33, 50, 20, 22, Image.Resampling.BICUBIC)
    gray = picture(1, 33, 50)[:, :, :1]
    floats = picture(2, 33, 50)[:, ::-1].astype(np.float32)  # with a negative stride
    corners = np.random.RandomState(3).rand(9, 2) * (50, 33)
    return answers | {
        "uint8": hash_array(resize.apply_image(picture(2, 33, 50))),
        "gray": hash_array(resize.apply_image(gray)),
        "flat": hash_array(resize.apply_image(gray[:, :, 0])),
        "nearest": hash_array(resize.apply_image(picture(2, 33, 50), interp=Image.Resampling.NEAREST)),
        "bicubic": hash_array(smaller.apply_image(picture(2, 33, 50))),
        "labels": hash_array(resize.apply_segmentation(gray[:, :, 0])),
        "floats": resize.apply_image(floats)[::7, ::5],
        "flat floats": resize.apply_image(floats[:, :, 1].astype(float))[::7, ::5],
        "nearest floats": resize.apply_segmentation(floats[:, :, 0])[::7, ::5],
        "corners": resize.apply_coords(corners.copy()),
        "whole corners": resize.apply_coords(corners.astype(int)),
        "whole box": resize.apply_box(np.array([[3, 4, 17, 29]])),
        "back": resize.inverse().apply_coords(corners.copy()),
        "repr": encode_text(repr(resize)),
    }


def pixels(engine):
    """Images of every mode, read in each format."""
    kit, answers = engine("data.detection_utils"), {}
    color = Image.fromarray(picture(0, 17, 23))
    formats = ("BGR", "RGB", "L", None)
    kinds = {mode: color.convert(mode) for mode in ("RGB", "L", "RGBA", "P", "1", "LA")}
    with tempfile.TemporaryDirectory() as folder:
        files = {name: f"{folder}/{index}.png" for index, name in enumerate(kinds)}
        for name, path in files.items():
            kinds[name].save(path)
        for orientation in range(10):
            exif = Image.Exif()
            exif[0x0112] = orientation
            files[f"exif {orientation}"] = f"{folder}/exif{orientation}.png"
            color.save(files[f"exif {orientation}"], exif=exif)
        for name, path in files.items():
            answers |= add_prefix(
                name, join_items([{"read": hash_array(kit.read_image(path, each))} for each in formats])
            )
    answers["PIL"] = hash_array(kit.convert_PIL_to_numpy(color, "BGR"))
    for format, image in {"BGR": picture(1, 9, 8), "RGB": picture(1, 9, 8), "L": picture(1, 9, 8)[:, :, :1]}.items():
        for name, given in {"array": image, "tensor": torch.tensor(image), "float": image.astype(np.float32)}.items():
            answers[f"{format} {name}"] = hash_array(kit.convert_image_to_rgb(given, format))
    sized = {"file_name": "a.png"}
    kit.check_image_size(sized, picture(0, 3, 4))
    wrong = {"width": 4, "height": 5, "file_name": "b.png"}
    answers["size"] = np.array([sized["width"], sized["height"]])
    answers["wrong"] = encode_text(describe_outcome(lambda: kit.check_image_size(wrong, picture(0, 3, 4))))
    return answers


def annotated(engine):
    """Boxes, polygons and masks under flips and resizing; crowds, empty ones, several formats."""
    kit, transforms, answers = engine("data.detection_utils"), engine("data.transforms"), {}
    with registering_layouts(engine) as (_, names):
        records = {name: engine("data").DatasetCatalog.get(names[name]) for name in ("polygons", "masks")}
    lists = {
        "flip": lambda h, w: ([transforms.HFlipTransform(w)], (h, w)),
        "smaller": lambda h, w: ([transforms.VFlipTransform(h), transforms.ResizeTransform(h, w, 31, 44)], (31, 44)),
        "tiny": lambda h, w: (transforms.TransformList([transforms.ResizeTransform(h, w, 3, 4)]), (3, 4)),
        "clipped": lambda h, w: ([transforms.HFlipTransform(w - 20)], (h - 9, w - 8)),
    }
    for (name, make), (kind, given) in itertools.product(lists.items(), records.items()):
        if (name, kind) == ("clipped", "masks"):
            continue  # a mask is of the image's size
        items = []
        for record in given[:12]:
            chosen, size = make(record["height"], record["width"])
            format, types = ("bitmask", (list, dict)) if kind == "masks" else ("polygon", list)
            changed = [
                kit.transform_instance_annotations(json.loads(json.dumps(each, default=to_json_value)), chosen, size)
                for each in record["annotations"]
                if isinstance(each.get("segmentation"), types)
            ]
            found = kit.annotations_to_instances(changed, size, format)
            kept, which = kit.filter_empty_instances(found, return_mask=True)
            boxes = kit.filter_empty_instances(found, by_mask=False, box_threshold=15)
            item = {"boxes": found.gt_boxes.tensor, "kept": which, "large": boxes.gt_boxes.tensor}
            items.append(item | (flatten_masks(kept.gt_masks) if kept.has("gt_masks") else {}))
        answers |= add_prefix(f"{name} {kind}", join_items(items))
    flawed = [{"bbox": [0, 0, 5, 5], "bbox_mode": 0, "category_id": 1, "segmentation": "none"}]
    answers["flawed"] = encode_text(
        describe_outcome(lambda: kit.transform_instance_annotations(flawed[0], [transforms.NoOpTransform()], (5, 5)))
        + describe_outcome(lambda: kit.annotations_to_instances(flawed, (5, 5)))
        + describe_outcome(lambda: kit.annotations_to_instances(flawed, (5, 5), "bitmask"))
    )
    return answers


def data_config(engine, *keys):
    cfg = engine("config").get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.INPUT.update({"MIN_SIZE_TRAIN": (40, 48, 60), "MAX_SIZE_TRAIN": 80, "MIN_SIZE_TEST": 50, "MAX_SIZE_TEST": 70})
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.SEED = 7
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.merge_from_list(list(keys))
    return cfg


def mapper(engine):
    answers, kit = {}, engine("data")
    with registering_layouts(engine) as (_, names):
        for name, own, train, keys in [
            ("boxes", "voc", True, ["INPUT.FORMAT", "RGB"]),
            ("polygons", "polygons", True, ["MODEL.MASK_ON", True]),
            ("bits", "masks", True, ["MODEL.MASK_ON", True, "INPUT.MASK_FORMAT", "bitmask"]),
            ("no masks", "masks", True, ["INPUT.RANDOM_FLIP", "vertical", "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"]),
            ("test", "polygons", False, []),
        ]:
            keys = ["INPUT.MIN_SIZE_TRAIN", (40, 60), *keys]
            with collecting_lines(engine, "data.dataset_mapper") as lines:
                make = kit.DatasetMapper(data_config(engine, *keys), train)
            records = kit.DatasetCatalog.get(names[own])
            before = repr(records)
            np.random.seed(3)
            answers |= add_prefix(
                name, join_items([flatten_item(make(record)) for record in records if has_all_masks(record, own)])
            )
            answers |= {
                f"{name} told": encode_text("\n".join(lines)),
                f"{name} as it was": np.array(before == repr(records)),
            }
    return answers


def has_all_masks(record, kind):
    """Whether all instances of an image have masks (for VOC: always true); where only some do, both engines fail."""
    return kind == "voc" or all("segmentation" in each for each in record["annotations"])


def toy_images(engine):
    """Images of toy data: real JPEGs, which are decoded as the machine's libraries do."""
    from ssql_det.toydata.dataset import ToyDataSettings, make_toy_data

    kit, answers = engine("data"), {}
    with tempfile.TemporaryDirectory() as folder:
        root = make_toy_data(
            Path(folder) / "toy", ToyDataSettings(scenes=2 * COUNT, crops=5, least_side=96, most_side=160)
        )
        classes = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
        engine("data.datasets").register_pascal_voc("toy_voc", str(root / "VOC2007"), "trainval", 2007, classes)
        path = str(root / "coco/annotations/instances_train2017.json")
        engine("data.datasets").register_coco_instances("toy_coco", {}, path, str(root / "coco/train2017"))
        for name, keys in {"toy_voc": [], "toy_coco": ["MODEL.MASK_ON", True]}.items():
            make = kit.DatasetMapper(data_config(engine, *keys), True)
            np.random.seed(4)
            answers |= add_prefix(
                name, join_items([flatten_item(make(record)) for record in kit.DatasetCatalog.get(name)])
            )
            kit.DatasetCatalog.remove(name)
            kit.MetadataCatalog.remove(name)
    return answers


def samplers(engine):
    kit, answers = engine("data.samplers"), {}
    for size in (1, 7, 10):
        items = []
        for world, rank in ((1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2), (4, 0), (4, 1), (4, 2), (4, 3)):
            shard = kit.InferenceSampler._get_local_indices(size, world, rank)
            item = {"shard": np.array([shard.start, shard.stop])}
            for shuffle in (True, False):
                sampler = kit.TrainingSampler(size, shuffle, seed=11 - size)
                sampler._rank, sampler._world_size = rank, world
                item[f"shuffled {shuffle}"] = np.array(list(itertools.islice(sampler, 4 * size)))
            items.append(item)
        answers |= add_prefix(f"{size}", join_items(items))
    np.random.seed(8)
    answers["own seed"] = np.array(list(itertools.islice(kit.TrainingSampler(50), 120)))
    answers["a seed of -1"] = np.array(list(itertools.islice(kit.TrainingSampler(50, seed=-1), 120)))
    answers["all"] = np.array([*kit.InferenceSampler(5), len(kit.InferenceSampler(5))])
    steps = [lambda size=size: kit.TrainingSampler(size, seed=1) for size in (0, -1)]
    answers["refused"] = encode_text(",".join(describe_outcome(step) for step in steps))
    return answers


class Only:
    """A mapper that gives None for what cannot be divided."""

    def __init__(self, divisor):
        self.divisor = divisor

    def __call__(self, item):
        return item if item["number"] % self.divisor == 0 else None


class NowAndThen:
    """A mapper that gives None at every third call, whatever the item."""

    def __init__(self):
        self.calls = itertools.count()

    def __call__(self, item):
        return item if next(self.calls) % 3 else None


def wrappers(engine):
    """The datasets that wrap others: lists, maps, streams, and groups by aspect ratio."""
    kit, answers = engine("data.common"), {}
    given = [{"number": index, "width": index * 7 % 5, "height": index * 3 % 4, "x": [index]} for index in range(30)]
    for serialize, copied in itertools.product((True, False), (True, False)):
        listed = kit.DatasetFromList(given, copy=copied, serialize=serialize)
        listed[3]["x"].append(1)
        answers[f"listed {serialize} {copied}"] = np.array([len(listed), *map(len, (each["x"] for each in given))])
        given[3]["x"] = [3]
    listed = kit.DatasetFromList(given)
    only = kit.MapDataset(listed, Only(3))
    answers["replaced"] = np.array([only[index % 30]["number"] for index in range(90)])
    late = kit.MapDataset(listed, NowAndThen())
    answers["late"] = np.array([late[index % 7]["number"] for index in range(60)])
    sampler = engine("data.samplers").TrainingSampler(30, seed=2)
    for chunk in (1, 4):
        stream = kit.ToIterableDataset(listed, sampler, shard_chunk_size=chunk)
        answers[f"stream {chunk}"] = np.array([each["number"] for each in itertools.islice(stream, 70)])
        skipping = kit.MapDataset(stream, Only(4))
        answers[f"skipping {chunk}"] = np.array([each["number"] for each in itertools.islice(skipping, 20)])
        for workers, shard in itertools.product((1, 2, 3), (True, False)):
            stream = kit.ToIterableDataset(listed, sampler, shard, chunk)
            loader = torch.utils.data.DataLoader(stream, None, num_workers=workers)
            answers[f"workers {chunk} {workers} {shard}"] = np.array(
                [each["number"] for each in itertools.islice(loader, 40)]
            )
    grouped = kit.AspectRatioGroupedDataset(given, 4)
    for name in ("first", "second"):  # what was left over begins the next pass
        answers[f"grouped {name}"] = np.array([[each["number"] for each in batch] for batch in grouped])
    return answers


def loaders(engine):
    """Batches of both layouts, with and without groups and workers; a test set."""
    kit, answers = engine("data"), {}
    with registering_layouts(engine) as (_, names):
        both = ["DATASETS.TRAIN", (names["polygons"], names["masks"])]
        for name, keys in {
            "grouped": both,
            "plain": [*both, "DATALOADER.ASPECT_RATIO_GROUPING", False],
            "two workers": [*both, "DATALOADER.NUM_WORKERS", 2],
            "two workers, plain": [*both, "DATALOADER.NUM_WORKERS", 2, "DATALOADER.ASPECT_RATIO_GROUPING", False],
            "everything": [*both, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False, "SOLVER.IMS_PER_BATCH", 3],
        }.items():
            np.random.seed(1)
            torch.manual_seed(2)
            loader = kit.build_detection_train_loader(data_config(engine, *keys))
            items = [item for batch in itertools.islice(loader, 12) for item in batch]
            answers[f"{name} ids"] = np.array([item["image_id"] for item in items])
            if "plain" not in name:
                answers |= add_prefix(name, join_items([flatten_item(item) for item in items[:8]]))
        records = kit.get_detection_dataset_dicts(names["voc"])
        collated = kit.build_detection_train_loader(
            records, mapper=None, total_batch_size=4, collate_fn=len, sampler=engine("data.samplers").TrainingSampler(9)
        )
        answers["collated"] = np.array(list(itertools.islice(collated, 3)))
        build = engine("data.build").build_batch_data_loader
        sampler = engine("data.samplers").InferenceSampler(len(records))
        listed = engine("data.common").DatasetFromList(records)
        for keep in (True, False):
            batches = build(listed, sampler, 0, single_gpu_batch_size=3, drop_last=keep, seed=3)
            answers[f"in threes {keep}"] = np.array([int(each["image_id"]) for batch in batches for each in batch])
        for workers in (0, 2):
            cfg = data_config(engine, "DATALOADER.NUM_WORKERS", workers)
            tests = [each for batch in kit.build_detection_test_loader(cfg, names["masks"]) for each in batch]
            answers |= add_prefix(f"test {workers}", join_items([flatten_item(each) for each in tests]))
            answers[f"test {workers} ids"] = np.array([each["image_id"] for each in tests])
    return answers


SCENARIOS = (metadata, built_in, readers, resizing, pixels, annotated, mapper, samplers, wrappers, loaders)
LIVE_ONLY = (toy_images,)
