"""A user's own data in COCO's format, from a command's two words to rows: the same as under a registered name."""

import json

import pytest
from support.detect.configs import CONFIGS, FPN, tiny
from support.refusals import refused

from ssql_det.cli.main import main
from ssql_det.core import rows
from ssql_det.core.errors import UserError
from ssql_det.core.rows import Calibration
from ssql_det.core.unpickler import read_tensors
from ssql_det.d2 import MetadataCatalog
from ssql_det.detect.datasets import load_class_names, make_custom_name

SHORT = {"SOLVER__MAX_ITER": 2, "SOLVER__STEPS": (), "SOLVER__IMS_PER_BATCH": 2}


def places(toy, split):
    return toy / f"coco/{split}2017", toy / f"coco/annotations/instances_{split}2017.json"


def own(toy, **files):
    """The options of a command; a file of its own for a split may be given."""
    given = []
    for split in ("train", "val"):
        images, file = places(toy, split)
        given += [f"--coco-{split}", f"{images}:{files.get(split, file)}"]
    return given


def train_det(out, *options, **keys):
    given = tiny(**SHORT, OUTPUT_DIR=out, **keys)
    return ["train-det", "--config-file", str(CONFIGS / FPN), *map(str, options), *given]


def changed(source, target, change):
    """A copy of annotations that are another way."""
    content = json.loads(source.read_text())
    change(content)
    target.write_text(json.dumps(content))
    return target


@pytest.fixture(scope="module")
def trained(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssql_det.core.console.set_up_logging", lambda *ignored: None)
        main(train_det(folder, *own(toy)))
    return folder


def test_it_trains_as_the_same_data_under_a_registered_name(trained, tmp_path):
    main(train_det(tmp_path))
    ours, theirs = (read_tensors(folder / "model_final.pth")["model"] for folder in (trained, tmp_path))
    assert all((ours[name] == tensor).all() for name, tensor in theirs.items())


def test_the_saved_config_finds_them_again_and_rows_are_the_same(trained, tmp_path):
    weights = ["MODEL.WEIGHTS", str(trained / "model_final.pth"), "OUTPUT_DIR"]
    sweep = ["sweep", "--bits", "FP,4", "--calib-images", "3", "--config-file"]
    main([*sweep, str(trained / "config.yaml"), *weights, str(tmp_path / "own")])
    main([*sweep, str(CONFIGS / FPN), *tiny(**SHORT, MODEL__WEIGHTS=weights[1], OUTPUT_DIR=tmp_path / "toy")])
    ours, theirs = (rows.read_rows(tmp_path / name / "results.jsonl") for name in ("own", "toy"))
    assert [row.metrics for row in ours] == [row.metrics for row in theirs]
    assert {row.dataset for row in ours} == {"coco:val2017:instances_val2017.json"}
    assert {row.calibration for row in ours} == {Calibration(3, 0, "coco:train2017:instances_train2017.json")}
    assert {row.scheme for row in ours} == {"minmax"}


def test_classes_and_their_numbers_are_the_files(toy, tmp_path):
    """Numbers with gaps and in another order: classes stand in the order of their numbers."""

    def two_kinds(content):
        content["categories"] = [{"id": 9, "name": "odd"}, {"id": 4, "name": "even"}]
        for each in content["annotations"]:
            each["category_id"] = 9 if each["category_id"] % 2 else 4

    files = {split: changed(places(toy, split)[1], tmp_path / f"{split}.json", two_kinds) for split in ("train", "val")}
    main(train_det(tmp_path / "run", *own(toy, **files)))
    state = read_tensors(tmp_path / "run/model_final.pth")["model"]
    assert len(state["roi_heads.box_predictor.cls_score.bias"]) == 3
    name = make_custom_name(f"{places(toy, 'train')[0]}:{files['train']}")
    assert load_class_names(name) == ["even", "odd"]
    image = next(places(toy, "val")[0].iterdir())
    main(
        [
            *("predict", "--config-file", str(tmp_path / "run/config.yaml"), "--bits", "FP", "--score", "0"),
            *("--out", str(tmp_path / "seen"), "MODEL.WEIGHTS", str(tmp_path / "run/model_final.pth"), str(image)),
        ]
    )
    seen = json.loads((tmp_path / "seen/detections_FP.json").read_text())
    assert seen["categories"] == [{"id": 4, "name": "even"}, {"id": 9, "name": "odd"}]
    assert {each["category_id"] for each in seen["annotations"]} <= {4, 9}


def test_boxes_without_masks_are_trained_on_where_the_config_wants_no_masks(toy, capsys, tmp_path):
    def boxes_alone(content):
        for each in content["annotations"][:3]:
            del each["segmentation"]

    file = changed(places(toy, "train")[1], tmp_path / "boxes.json", boxes_alone)
    line = refused(capsys, *train_det(tmp_path / "run", *own(toy, train=file)))
    assert "has an object without a mask; for boxes alone set MODEL.MASK_ON False" in line
    main(train_det(tmp_path / "run", *own(toy, train=file), MODEL__MASK_ON=False))
    assert (tmp_path / "run/model_final.pth").exists()


def test_what_the_line_says_itself_goes_before(toy, capsys, tmp_path):
    line = refused(capsys, *train_det(tmp_path / "run", *own(toy), MODEL__ROI_HEADS__NUM_CLASSES=7))
    assert "has 10 classes and MODEL.ROI_HEADS.NUM_CLASSES is 7; set it to 10" in line


def test_other_classes_to_evaluate_on_are_refused(toy, capsys, tmp_path):
    def renamed(content):
        content["categories"][0]["name"] = "nought"

    file = changed(places(toy, "val")[1], tmp_path / "val.json", renamed)
    line = refused(capsys, *train_det(tmp_path / "run", *own(toy, val=file)))
    assert "are zero, one, two" in line
    assert "nought, one, two" in line
    assert not (tmp_path / "run").exists()


def faulty(content):
    content["annotations"][0]["image_id"] = 12345
    content["annotations"][1]["bbox"] = [3, 3, 0, 2]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (faulty, "is of image 12345, which is not in the file (and 1 more errors); `ssql-det check-data"),
        (lambda content: content.pop("categories"), "is not in COCO's instances format"),
        (lambda content: content["categories"].clear(), "has no class names"),
        (lambda content: content["categories"][0].pop("name"), "is not in COCO's instances format"),
        (lambda content: content["annotations"].clear(), "no image has an object; nothing can be trained on it"),
    ],
)
def test_files_that_would_end_a_training_are_refused_before_it(change, complaint, toy, capsys, tmp_path):
    file = changed(places(toy, "train")[1], tmp_path / "train.json", change)
    assert complaint in refused(capsys, *train_det(tmp_path / "run", *own(toy, train=file)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (
            "labels.json",
            "a custom data set is IMAGES:FILE.json, a folder and a file, as photos:labels.json; got 'labels.json'",
        ),
        (":labels.json", "a custom data set is IMAGES:FILE.json"),
        ("nowhere:labels.json", "there is no folder of images "),
        (".:nothing.json", "there is no annotation file "),
    ],
)
def test_places_that_are_none_are_refused(given, complaint, capsys, tmp_path):
    line = refused(capsys, *train_det(tmp_path / "run", "--coco-train", given))
    assert complaint in line
    assert not (tmp_path / "run").exists()


def test_a_name_says_where_the_data_lie_from_anywhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert make_custom_name("photos:labels.json") == f"coco:{tmp_path}/photos:{tmp_path}/labels.json"
    assert make_custom_name("~/a:b:c.json").endswith("/a:b:" + str(tmp_path / "c.json"))
    assert make_custom_name("~nobody-is-called-so:c.json") == f"coco:{tmp_path}/~nobody-is-called-so:{tmp_path}/c.json"
    with pytest.raises(UserError, match="there is no folder of images"):
        load_class_names(make_custom_name("photos:labels.json"))


def test_its_classes_are_known_before_it_is_loaded(toy):
    name = make_custom_name("{}:{}".format(*places(toy, "val")))
    assert load_class_names(name) == list(MetadataCatalog.get(name).thing_classes)
    assert len(load_class_names(name)) == 10
