"""Custom data sets in COCO's format: training and sweeps equal those on a registered data set."""

import json

import pytest
from support.detect.configs import CONFIGS, FPN, tiny_overrides
from support.refusals import refused

from ssql_det.cli.main import main
from ssql_det.core import rows
from ssql_det.core.errors import UserError
from ssql_det.core.rows import Calibration
from ssql_det.core.unpickler import read_tensors
from ssql_det.d2 import MetadataCatalog
from ssql_det.detect.datasets import load_class_names, make_custom_name

SHORT = {"SOLVER__MAX_ITER": 2, "SOLVER__STEPS": (), "SOLVER__IMS_PER_BATCH": 2}


def split_files(toy, split):
    return toy / f"coco/{split}2017", toy / f"coco/annotations/instances_{split}2017.json"


def data_options(toy, **files):
    """The options of a command; ``train=`` or ``val=`` give another annotation file."""
    given = []
    for split in ("train", "val"):
        images, file = split_files(toy, split)
        given += [f"--coco-{split}", f"{images}:{files.get(split, file)}"]
    return given


def train_det(out, *options, **keys):
    given = tiny_overrides(**SHORT, OUTPUT_DIR=out, **keys)
    return ["train-det", "--config-file", str(CONFIGS / FPN), *map(str, options), *given]


def edit_copy(source, target, change):
    """Write a copy of annotations with a change."""
    content = json.loads(source.read_text())
    change(content)
    target.write_text(json.dumps(content))
    return target


@pytest.fixture(scope="module")
def trained_run(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssql_det.core.console.set_up_logging", lambda *ignored: None)
        main(train_det(folder, *data_options(toy)))
    return folder


def test_training_equals_that_on_the_registered_data_set(trained_run, tmp_path):
    main(train_det(tmp_path))
    ours, theirs = (read_tensors(folder / "model_final.pth")["model"] for folder in (trained_run, tmp_path))
    assert all((ours[name] == tensor).all() for name, tensor in theirs.items())


def test_the_saved_config_finds_the_data_again_and_rows_are_equal(trained_run, tmp_path):
    weights = ["MODEL.WEIGHTS", str(trained_run / "model_final.pth"), "OUTPUT_DIR"]
    sweep = ["sweep", "--bits", "FP,4", "--calib-images", "3", "--config-file"]
    main([*sweep, str(trained_run / "config.yaml"), *weights, str(tmp_path / "own")])
    main([*sweep, str(CONFIGS / FPN), *tiny_overrides(**SHORT, MODEL__WEIGHTS=weights[1], OUTPUT_DIR=tmp_path / "toy")])
    ours, theirs = (rows.read_rows(tmp_path / name / "results.jsonl") for name in ("own", "toy"))
    assert [row.metrics for row in ours] == [row.metrics for row in theirs]
    assert {row.dataset for row in ours} == {"coco:val2017:instances_val2017.json"}
    assert {row.calibration for row in ours} == {Calibration(3, 0, "coco:train2017:instances_train2017.json")}
    assert {row.scheme for row in ours} == {"minmax"}


def test_class_names_and_ids_are_those_of_the_file(toy, tmp_path):
    """Ids with gaps and in another order: classes are sorted by id."""

    def use_two_classes(content):
        content["categories"] = [{"id": 9, "name": "odd"}, {"id": 4, "name": "even"}]
        for each in content["annotations"]:
            each["category_id"] = 9 if each["category_id"] % 2 else 4

    files = {
        split: edit_copy(split_files(toy, split)[1], tmp_path / f"{split}.json", use_two_classes)
        for split in ("train", "val")
    }
    main(train_det(tmp_path / "run", *data_options(toy, **files)))
    state = read_tensors(tmp_path / "run/model_final.pth")["model"]
    assert len(state["roi_heads.box_predictor.cls_score.bias"]) == 3
    name = make_custom_name(f"{split_files(toy, 'train')[0]}:{files['train']}")
    assert load_class_names(name) == ["even", "odd"]
    image = next(split_files(toy, "val")[0].iterdir())
    main(
        [
            *("predict", "--config-file", str(tmp_path / "run/config.yaml"), "--bits", "FP", "--score", "0"),
            *(
                "--out",
                str(tmp_path / "predictions"),
                "MODEL.WEIGHTS",
                str(tmp_path / "run/model_final.pth"),
                str(image),
            ),
        ]
    )
    predictions = json.loads((tmp_path / "predictions/detections_FP.json").read_text())
    assert predictions["categories"] == [{"id": 4, "name": "even"}, {"id": 9, "name": "odd"}]
    assert {each["category_id"] for each in predictions["annotations"]} <= {4, 9}


def test_boxes_without_masks_are_trained_on_with_mask_on_false(toy, capsys, tmp_path):
    def remove_masks(content):
        for each in content["annotations"][:3]:
            del each["segmentation"]

    file = edit_copy(split_files(toy, "train")[1], tmp_path / "boxes.json", remove_masks)
    line = refused(capsys, *train_det(tmp_path / "run", *data_options(toy, train=file)))
    assert "has an object without a mask; to train on boxes only, set MODEL.MASK_ON False" in line
    main(train_det(tmp_path / "run", *data_options(toy, train=file), MODEL__MASK_ON=False))
    assert (tmp_path / "run/model_final.pth").exists()


def test_overrides_take_precedence_over_the_data_options(toy, capsys, tmp_path):
    line = refused(capsys, *train_det(tmp_path / "run", *data_options(toy), MODEL__ROI_HEADS__NUM_CLASSES=7))
    assert "has 10 classes and MODEL.ROI_HEADS.NUM_CLASSES is 7; set it to 10" in line


def test_a_test_set_with_other_classes_is_refused(toy, capsys, tmp_path):
    def rename_class(content):
        content["categories"][0]["name"] = "nought"

    file = edit_copy(split_files(toy, "val")[1], tmp_path / "val.json", rename_class)
    line = refused(capsys, *train_det(tmp_path / "run", *data_options(toy, val=file)))
    assert "has nought, one, two" in line
    assert "nought, one, two" in line
    assert not (tmp_path / "run").exists()


def add_faults(content):
    content["annotations"][0]["image_id"] = 12345
    content["annotations"][1]["bbox"] = [3, 3, 0, 2]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (add_faults, "is of image 12345, which is not in the file (and 1 more errors); `ssql-det check-data"),
        (lambda content: content.pop("categories"), "is not in COCO's instances format"),
        (lambda content: content["categories"].clear(), "has no class names"),
        (lambda content: content["categories"][0].pop("name"), "is not in COCO's instances format"),
        (lambda content: content["annotations"].clear(), "no image has an object"),
    ],
)
def test_invalid_annotations_are_refused_before_the_training(change, complaint, toy, capsys, tmp_path):
    file = edit_copy(split_files(toy, "train")[1], tmp_path / "train.json", change)
    assert complaint in refused(capsys, *train_det(tmp_path / "run", *data_options(toy, train=file)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (
            "labels.json",
            "a custom data set must be IMAGES:FILE.json, an image folder and an annotation file, such as "
            "photos:labels.json; got 'labels.json'",
        ),
        (":labels.json", "a custom data set must be IMAGES:FILE.json"),
        ("nowhere:labels.json", "no image folder "),
        (".:nothing.json", "no annotation file "),
    ],
)
def test_missing_files_are_refused(given, complaint, capsys, tmp_path):
    line = refused(capsys, *train_det(tmp_path / "run", "--coco-train", given))
    assert complaint in line
    assert not (tmp_path / "run").exists()


def test_a_name_has_absolute_paths(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert make_custom_name("photos:labels.json") == f"coco:{tmp_path}/photos:{tmp_path}/labels.json"
    assert make_custom_name("~/a:b:c.json").endswith("/a:b:" + str(tmp_path / "c.json"))
    assert make_custom_name("~nobody-is-called-so:c.json") == f"coco:{tmp_path}/~nobody-is-called-so:{tmp_path}/c.json"
    with pytest.raises(UserError, match="no image folder"):
        load_class_names(make_custom_name("photos:labels.json"))


def test_class_names_are_available_without_loading_the_data_set(toy):
    name = make_custom_name("{}:{}".format(*split_files(toy, "val")))
    assert load_class_names(name) == list(MetadataCatalog.get(name).thing_classes)
    assert len(load_class_names(name)) == 10
