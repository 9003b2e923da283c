"""Scenes in COCO 2017's layout: ``train2017/``, ``val2017/`` and ``annotations/instances_*.json``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssql_det.toydata.digits import CLASSES
from ssql_det.toydata.record import SceneRecord

LICENCES = [
    {
        "id": 1,
        "name": "CC BY 4.0 (digits: E. Alpaydin, C. Kaynak, UCI Machine Learning Repository) and "
        "CC BY 2.0 (photographs: danielbuechele, vultilion)",
        "url": "https://creativecommons.org/licenses/by/4.0/",
    }
]


def write_coco(root: Path, split: str, first_id: int, scenes: Sequence[SceneRecord]) -> None:
    """Write one split; image ids count from ``first_id``, annotation ids from a thousand times that."""
    (root / split).mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for image_id, scene in enumerate(scenes, start=first_id):
        name = f"{image_id:012d}.jpg"
        (root / split / name).write_bytes(scene.jpeg)
        images.append({"id": image_id, "file_name": name, "height": scene.height, "width": scene.width, "license": 1})
        annotations += _annotations(image_id, scene)
    document = {
        "info": {"description": "ssql_det toy scenes", "version": "1.0"},
        "licenses": LICENCES,
        "categories": [{"id": label + 1, "name": name, "supercategory": "digit"} for label, name in enumerate(CLASSES)],
        "images": images,
        "annotations": annotations,
    }
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))


def _annotations(image_id: int, scene: SceneRecord) -> list[dict[str, Any]]:
    return [
        {
            "id": image_id * 1000 + number,
            "image_id": image_id,
            "category_id": each.label + 1,
            "bbox": [each.box[0], each.box[1], each.box[2] - each.box[0], each.box[3] - each.box[1]],
            "area": each.area,
            "iscrowd": int(each.crowd),
            "segmentation": each.segmentation,
        }
        for number, each in enumerate(scene.objects, start=1)
    ]
