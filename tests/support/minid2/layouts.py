"""Small data sets in VOC's and COCO's layouts with everything that occurs: difficult objects, crowds, RLE, no objects.

Images are PNG whatever their names say, so that no JPEG decoder's rounding gets into what is recorded.
"""

import itertools
import json

import numpy as np
from PIL import Image
from pycocotools import mask as coco

COUNT = 20
CLASSES = ("circle", "square", "a triangle's shadow")
IDS = (7, 3, 90)  # COCO's, in the order of the file


def picture(seed, height, width):
    """Smooth noise, uint8 [height, width, 3]."""
    coarse = np.random.RandomState(seed).randint(0, 256, (5, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def sides(seed):
    """(height, width): wide, high and square ones."""
    rng = np.random.RandomState(seed)
    height, width = rng.randint(40, 90, 2).tolist()
    return (height, height) if seed % 9 == 4 else (height, width)


def objects(seed):
    """Some boxes (x0, y0, x1, y1) in an image of these sides, with classes; every sixth image has none."""
    rng = np.random.RandomState(100 + seed)
    height, width = sides(seed)
    for _ in range(0 if seed % 6 == 5 else rng.randint(1, 5)):
        x0, y0 = rng.rand(2) * (width - 12, height - 12)
        box = np.array([x0, y0, x0 + 4 + rng.rand() * (width - x0 - 4), y0 + 4 + rng.rand() * (height - y0 - 4)])
        yield (box.round() if rng.rand() < 0.5 else box.round(2)).tolist(), int(rng.randint(3)), rng


def write_voc(root):
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    names = [f"{index:06d}" for index in range(COUNT)]
    (root / "ImageSets/Main/train.txt").write_text("\n".join(names))
    for index, name in enumerate(names):
        height, width = sides(index)
        Image.fromarray(picture(index, height, width)).save(root / f"JPEGImages/{name}.jpg", "PNG")
        found = "".join(
            f"<object><name>{CLASSES[label]}</name><difficult>{int(rng.rand() < 0.4)}</difficult><bndbox><ymax>{y1}"
            f"</ymax><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax></bndbox>"
            f"<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
            for (x0, y0, x1, y1), label, rng in objects(index)
        )
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        (root / f"Annotations/{name}.xml").write_text(f"<annotation>{size}{found}</annotation>")


def polygons_of(box, rng):
    """One or two polygons in a box: of whole numbers where the box is, some with too few corners."""
    x0, y0, x1, y1 = box
    whole = all(side == int(side) for side in box)
    found = []
    for _ in range(rng.randint(1, 3)):
        corners = np.sort(rng.rand(rng.choice([2, 3, 5, 8])) * 2 * np.pi)
        x = x0 + (x1 - x0) * (0.5 + 0.5 * np.cos(corners))
        y = y0 + (y1 - y0) * (0.5 + 0.5 * np.sin(corners))
        points = np.stack([x, y], axis=1).ravel()
        found.append(points.astype(int).tolist() if whole else points.round(2).tolist())
    return found


def rle_of(box, height, width, kind):
    mask = np.zeros((height, width), np.uint8, order="F")
    x0, y0, x1, y1 = map(int, box)
    mask[y0:y1, x0:x1] = 1
    mask[(y0 + y1) // 2, x0:x1] = 0
    if kind == "counts":
        runs = [len(list(run)) for _, run in itertools.groupby(mask.ravel("F"))]
        return {"size": [height, width], "counts": runs if mask[0, 0] == 0 else [0, *runs]}
    compressed = coco.encode(mask)
    return {"size": compressed["size"], "counts": compressed["counts"].decode()}


def write_coco(root, rle=False):
    (root / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for index in reversed(range(COUNT)):
        height, width = sides(index)
        Image.fromarray(picture(index, height, width)).save(root / f"images/{index}.jpg", "PNG")
        images.append({"id": 5 * index, "file_name": f"{index}.jpg", "height": height, "width": width})
        for box, label, rng in objects(index):
            kind = rng.choice(["polygons", "counts", "text"] if rle else ["polygons"])
            crowd = rng.rand() < 0.2 or index == 2
            segmentation = polygons_of(box, rng) if kind == "polygons" else rle_of(box, height, width, kind)
            one = {"id": len(annotations) + 1, "image_id": 5 * index, "category_id": IDS[label], "area": 1.5}
            one |= {"bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]], "score": round(rng.rand(), 3)}
            one |= {"segmentation": rle_of(box, height, width, "counts") if crowd else segmentation}
            annotations.append(one | ({"iscrowd": int(crowd)} if rng.rand() < 0.9 or crowd else {}))
    annotations.append({**annotations[0], "id": 10**6, "image_id": 10**6})  # of no image
    annotations.append({**annotations[1], "id": 10**6 + 1, "segmentation": []})
    annotations.append({**annotations[5], "id": 10**6 + 2, "bbox": [5, 6.5, 0, 9]})
    categories = [{"id": number, "name": name} for number, name in zip(IDS, CLASSES, strict=True)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    path = root / f"instances_{rle}.json"
    path.write_text(json.dumps(document))
    return path
