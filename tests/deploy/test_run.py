"""``ssql-det run``: its outcome, its mistakes, and that it needs NumPy, Pillow and onnxruntime alone."""

import json
import subprocess
import sys
import time

import pytest
from PIL import Image
from support.deploy.onnx_files import write_colour_detector

from ssql_det.cli.main import main

MOST_SECONDS = 3  # for a busy machine; alone it is a third of a second

ALONE = """
import sys

class Blocking:
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root not in {*sys.stdlib_module_names, "ssql_det", "numpy", "PIL", "onnxruntime"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

for name in ("torch", "torchvision", "cv2", "rich", "yaml", "pycocotools", "onnx"):
    sys.modules[name] = None
sys.meta_path.insert(0, Blocking())

from ssql_det.cli.main import main
main(sys.argv[1:])
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a detector and two images, the current one."""
    monkeypatch.chdir(tmp_path)
    write_colour_detector(tmp_path / "detector.onnx", has_masks=True)
    (tmp_path / "photos").mkdir()
    for name, rgb in (("a", (255, 0, 0)), ("b", (0, 0, 153))):
        Image.new("RGB", (60, 40), rgb).save(tmp_path / f"photos/{name}.jpg", quality=100)
    return tmp_path


def test_the_outcome_is_printed(place, capsys):
    main(["run", "detector.onnx", "photos", "--score", "0.7"])
    assert capsys.readouterr().out == "1 objects of score 0.7 or more in 2 image(s)\nwrote found\n"
    assert sorted(path.name for path in (place / "found").iterdir()) == ["a.png", "b.png", "detections.json"]


def test_a_failed_image_is_counted_and_ends_in_exit_code_3(place, capsys):
    (place / "photos/c.png").write_bytes(b"no image")
    with pytest.raises(SystemExit) as stopped:
        main(["run", "detector.onnx", "photos", "--out", "out", "--threads", "2"])
    assert stopped.value.code == 3
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "2 objects of score 0.5 or more in 2 image(s); 1 could not be processed",
        "wrote out",
    ]
    assert said.err.startswith("skipped: photos/c.png cannot be read: ")


MISTAKES = {
    "run no.onnx photos": "there is no file no.onnx",
    "run detector.onnx nowhere": "there is no image nowhere",
    "run detector.onnx photos --score 1.5": "--score must be 0 to 1, got 1.5",
    "run detector.onnx photos --score nan": "--score must be 0 to 1, got nan",
    "run detector.onnx photos --threads 0": "argument --threads: '0' is not a whole number, 1 or more",
    "run detector.onnx photos/a.jpg photos": "two images are called a",
    "run photos/a.jpg photos": "photos/a.jpg is not an ONNX file",
    "run photos photos": "photos is a directory, not a file",
    "run detector.onnx": "the following arguments are required: IMAGE",
}


@pytest.mark.parametrize(("line", "said"), MISTAKES.items(), ids=MISTAKES)
def test_a_mistake_is_one_sentence_and_writes_nothing(line, said, place, capsys):
    before = sorted(place.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        main(line.split())
    assert stopped.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"error: {said}")
    assert output.err.count("\n") == 1
    assert sorted(place.rglob("*")) == before


def test_an_input_is_not_overwritten(place, capsys):
    Image.new("RGB", (60, 40)).save(place / "photos/c.png")
    with pytest.raises(SystemExit) as stopped:
        main(["run", "detector.onnx", "photos", "--out", "photos"])
    assert stopped.value.code == 2
    assert "would overwrite an input image" in capsys.readouterr().err


def run_alone(*arguments):
    return subprocess.run([sys.executable, "-c", ALONE, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_it_runs_with_numpy_pillow_and_onnxruntime_alone(place):
    start = time.monotonic()
    done = run_alone("run", "detector.onnx", "photos", "--out", "out")
    seconds = time.monotonic() - start
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "2 objects of score 0.5 or more in 2 image(s)\nwrote out\n"
    found = json.loads((place / "out/detections.json").read_text())["annotations"]
    assert [each["category_id"] for each in found] == [5, 9]
    assert Image.open(place / "out/a.png").width >= 60
    assert seconds < MOST_SECONDS


@pytest.mark.slow
def test_a_command_that_needs_more_says_so(place):
    done = run_alone("predict", "--config-file", "toy_voc_narrow_c4", "photos")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: `ssql-det predict` needs torch, which is not installed; ")


def test_a_missing_module_of_another_is_a_bug(monkeypatch, capsys):
    def fail(options):
        raise ModuleNotFoundError("No module named 'torch.nonsense'", name="torch.nonsense")

    monkeypatch.setattr("ssql_det.cli.configs.run", fail)
    with pytest.raises(SystemExit) as stopped:
        main(["configs"])
    assert stopped.value.code == 1
    assert "Traceback" in capsys.readouterr().err
