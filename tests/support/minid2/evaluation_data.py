"""Small data sets for evaluation, written by hand, and a model's detections in them.

Objects are ellipses in images of 300x200 pixels. All scores of detections differ, except in ``TIED``.
"""

import json
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch

HEIGHT, WIDTH = 200, 300
CLASSES = ("disc", "egg", "ring", "hard", "absent", "unseen")
IDS = (3, 7, 8, 18, 44, 90)  # COCO's categories are not numbered in a row
IMAGES = range(1, 9)
SIDES = ((12, 30), (40, 90), (100, 190))  # of boxes, in pixels: small, medium and large by COCO's definition


class LabelledBox(NamedTuple):
    """An object, or, with a score, a detection."""

    image: int
    label: int
    box: tuple  # x0, y0, x1, y1, from 0; integers or floats
    difficult: bool = False
    score: float = 1.0


def draw_objects(seed=0):
    """Objects of the first four classes, of the fourth only difficult ones; none of the fifth and the sixth."""
    random = np.random.RandomState(seed)
    things = []
    for image in IMAGES[:-1]:  # the last is empty
        for _ in range(random.randint(2, 6)):
            width, height = random.randint(*SIDES[random.randint(3)], size=2)
            x, y = random.randint(0, WIDTH - width), random.randint(0, HEIGHT - height)
            label = random.randint(4)
            things.append(
                LabelledBox(image, label, (x, y, x + width, y + height), bool(label == 3 or random.rand() < 0.2))
            )
    return things


def draw_detections(seed, jitter, copies=1, strays=12):
    """Most objects with displaced boxes, each up to ``copies`` times, and ``strays``, which fit no object.

    ``jitter`` is the standard deviation of a displacement, as a share of the box. The first image has no detections.
    """
    random = np.random.RandomState(seed)
    scores = iter(random.permutation(np.arange(50, 1000)) / 1000)
    found = []
    for thing in draw_objects() * copies:
        box = np.array(thing.box, dtype=np.float64)
        box += random.randn(4) * jitter * np.tile(box[2:] - box[:2], 2)
        if random.rand() < 0.9 and thing.image != IMAGES[0]:
            found.append(thing._replace(box=tuple(box), score=next(scores)))
    for _ in range(strays):
        x, y, width, height = random.rand(4) * (WIDTH / 2, HEIGHT / 2, WIDTH / 2, HEIGHT / 2)
        image, label = random.choice(IMAGES[1:]), random.randint(5)
        found.append(LabelledBox(image, label, (x, y, x + width + 1, y + height + 1), score=next(scores)))
    return found


def draw_perfect():
    """A detection for each object, with its box and class."""
    return [each._replace(score=(index + 1) / 100) for index, each in enumerate(draw_objects())]


DETECTIONS = {
    "perfect": draw_perfect(),
    "close": draw_detections(1, jitter=0.03),
    "far": draw_detections(2, jitter=0.1, strays=40),
    "many": draw_detections(3, jitter=0.06, copies=18, strays=80),
    "none": [],
}
# With the upper half of each object's box
HALVES = [each._replace(box=(*each.box[:3], (each.box[1] + each.box[3]) / 2)) for each in draw_perfect()]
TIED = [each._replace(score=round(each.score * 4) / 4) for each in DETECTIONS["many"]]


def ellipse(box):
    """The corners of a polygon of 16 sides in the box."""
    x0, y0, x1, y1 = box
    angles = np.arange(16) * np.pi / 8
    points = [(x0 + x1) / 2 + (x1 - x0) / 2 * np.cos(angles), (y0 + y1) / 2 + (y1 - y0) / 2 * np.sin(angles)]
    return np.stack(points, axis=1).round(2).ravel().tolist()


def write_voc(folder, things):
    """Write annotations of every image, with coordinates from 1, and the image list; return the metadata."""
    for name in ("Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    (folder / "ImageSets/Main/test.txt").write_text("".join(f"{image:06}\n" for image in IMAGES))
    for image in IMAGES:
        objects = "".join(
            f"<object><name>{CLASSES[each.label]}</name><pose>Left</pose><truncated>0</truncated>"
            f"<difficult>{each.difficult:d}</difficult><bndbox><xmin>{each.box[0] + 1}</xmin>"
            f"<ymin>{each.box[1] + 1}</ymin><xmax>{each.box[2]}</xmax><ymax>{each.box[3]}</ymax></bndbox></object>"
            for each in things
            if each.image == image
        )
        (folder / f"Annotations/{image:06}.xml").write_text(f"<annotation>{objects}</annotation>")
    return {"dirname": str(folder), "split": "test", "thing_classes": list(CLASSES)}


def write_coco(path, things):
    """Write ellipses as polygons, difficult objects as crowds with the box as an RLE mask; return the metadata."""
    annotations = []
    for number, each in enumerate(things):
        x0, y0, x1, y1 = map(int, each.box)
        shape = [ellipse(each.box)]
        if each.difficult:
            bits = np.zeros((WIDTH, HEIGHT), int)  # runs go down the columns
            bits[x0:x1, y0:y1] = 1
            ends = np.flatnonzero(np.diff(bits.ravel(), prepend=0)).tolist()
            shape = {"size": [HEIGHT, WIDTH], "counts": np.diff([0, *ends, bits.size]).tolist()}
        annotations.append(
            {
                "id": number + 1,
                "image_id": each.image,
                "category_id": IDS[each.label],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0) * (1 if each.difficult else 0.78),
                "iscrowd": int(each.difficult),
                "segmentation": shape,
            }
        )
    images = [{"id": image, "height": HEIGHT, "width": WIDTH, "file_name": f"{image:06}.jpg"} for image in IMAGES]
    categories = [{"id": number, "name": name} for number, name in zip(IDS, CLASSES, strict=True)]
    path.write_text(json.dumps({"images": images, "categories": categories, "annotations": annotations}))
    numbers = {number: index for index, number in enumerate(IDS)}
    return {
        "json_file": str(path),
        "thing_classes": list(CLASSES),
        "thing_dataset_id_to_contiguous_id": numbers,
    }


@contextmanager
def registered(engine, name="judged", **metadata):
    """Inside the block the metadata is registered under ``name``, which is yielded."""
    catalog = engine("data.catalog").MetadataCatalog
    catalog.get(name).set(**metadata)
    try:
        yield name
    finally:
        catalog.remove(name)


def make_batches(engine, detections, masks=False, images=IMAGES, name="{:06}", size=3):
    """Pairs of inputs and outputs of a model that makes these detections, ``size`` images at a time.

    ``name`` is the format of an image's id; without one the id is its number.
    """
    kit = engine("structures")
    for start in range(0, len(images), size):
        inputs, outputs = [], []
        for image in images[start : start + size]:
            found = [each for each in detections if each.image == image]
            instances = kit.Instances((HEIGHT, WIDTH), pred_boxes=kit.Boxes([each.box for each in found]))
            instances.scores = torch.tensor([each.score for each in found])
            instances.pred_classes = torch.tensor([each.label for each in found], dtype=torch.int64)
            if masks:
                shapes = [kit.polygons_to_bitmask([np.array(ellipse(each.box))], HEIGHT, WIDTH) for each in found]
                instances.pred_masks = torch.from_numpy(np.array(shapes, dtype=bool).reshape(-1, HEIGHT, WIDTH))
            inputs.append({"image_id": name.format(image) if name else image})
            outputs.append({"instances": instances})
        yield inputs, outputs


def run_evaluator(evaluator, pairs, **options):
    """The results for pairs of inputs and outputs; ``options`` are those of ``evaluate``."""
    evaluator.reset()
    for inputs, outputs in pairs:
        evaluator.process(inputs, outputs)
    return evaluator.evaluate(**options)
