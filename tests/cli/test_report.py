"""``ssql-det report``: which files are read, and what a mistake says."""

import subprocess
import sys

import pytest
from support.deploy.bench_rows import make_bench_rows
from support.refusals import refused
from support.report.rows import make_row

from ssql_det.cli.main import main
from ssql_det.core.rows import append_row
from ssql_det.deploy.bench import append_bench_row

pytestmark = pytest.mark.usefixtures("logging_as_it_was")


@pytest.fixture
def sweep(tmp_path):
    """A folder with the rows of a sweep and, deeper, of a bench."""
    folder = tmp_path / "sweep"
    (folder / "speed").mkdir(parents=True)
    for bits, ap in (("FP", 40.0), ("4w8a", 39.0)):
        append_row(folder / "results.jsonl", make_row(bits=bits, metrics={"bbox/AP": ap}, checkpoint_hash="ab"))
    for row in make_bench_rows(folder):
        append_bench_row(folder / "speed/bench.jsonl", row)
    return folder


def test_a_folder_stands_for_the_rows_in_it(sweep, tmp_path, capsys):
    main(["report", str(sweep), "--out", str(tmp_path / "page.html")])
    text = (tmp_path / "page.html").read_text()
    assert capsys.readouterr().out == f"4-bit weights with 8-bit activations cost 1.0 AP.\nwrote {tmp_path}/page.html\n"
    assert "AP of boxes over measured time" in text
    assert "EPYC (avx2, avx512_vnni), 2 threads, an image of 480x640 pixels" in text
    main(["report", str(sweep / "results.jsonl"), str(sweep), "--out", str(tmp_path / "again.html")])
    assert "older rows" not in (tmp_path / "again.html").read_text()  # a file that is named twice is read once


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "there is no nowhere; name files of rows, or folders with results.jsonl or bench.jsonl in them"),
        (["."], "no results.jsonl or bench.jsonl is in the folder .; name the OUTPUT_DIR of a sweep or a bench"),
        (["other.txt"], "is not a result row"),
        (["broken.jsonl"], "broken.jsonl, line 1 is not a row of `ssql-det bench`; was it edited by hand?"),
        (["broken.jsonl", "--out", "page.pdf"], "--out page.pdf must end in .html"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.txt").write_text('{"a": 1}\n')
    (tmp_path / "broken.jsonl").write_text('{"runtime": "torch", "seconds": "x", "schema": 1}\n')
    assert sentence in refused(capsys, "report", *arguments)
    assert not list(tmp_path.glob("*.html"))


@pytest.mark.slow
def test_torch_is_not_imported(sweep, tmp_path):
    code = "import sys; from ssql_det.cli.main import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", code, "report", str(sweep), "--out", str(tmp_path / "page.html")]
    subprocess.run(command, check=True, capture_output=True)
