import csv
import subprocess
import sys

import pytest

from ssql_det.cli.main import main
from ssql_det.core import rows
from ssql_det.core.rows import Calibration, Row

WITHOUT_TORCH = """
import sys
from ssql_det.cli.main import main
try:
    main(sys.argv[1:])
finally:
    assert "torch" not in sys.modules, "torch was imported"
"""


@pytest.fixture(autouse=True)
def _logging_as_it_was(monkeypatch):
    monkeypatch.setattr("ssql_det.core.console.set_up_logging", lambda: None)


@pytest.fixture
def results(tmp_path):
    """Two sweeps' files: 4 bits over all with two seeds, and one row of the backbone alone."""
    common = {"config": "voc_r18_c4.yaml", "dataset": "voc_2007_test", "bits": "4w4a", "calibration": Calibration(256)}
    common |= {"scheme": "minmax", "engine": "minid2", "seconds": 1.0, "method": "SSQL", "checkpoint": "ssql.pth"}
    paths = []
    for seed, (scope, ap50) in enumerate([("all", 60.0), ("all", 61.0), ("backbone", 70.0)]):
        paths.append(str(tmp_path / f"seed{seed}" / "results.jsonl"))
        metrics = {"bbox/AP50": ap50, "bbox/AP": 33.0, "bbox/AP75": 32.0}
        rows.append_row(paths[-1], Row(**common, checkpoint_hash=str(seed), scope=scope, metrics=metrics, seed=seed))
    return paths


def refusal(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["tables", *map(str, arguments)])
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    return printed.err


@pytest.mark.parametrize("arguments", [["--help"], ["--table", "all", "--format", "latex"]], ids=["help", "tables"])
@pytest.mark.slow
def test_neither_help_nor_a_table_imports_torch(arguments):
    ended = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, "tables", *arguments], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_rows_of_several_files_fill_the_table_of_one_scope(results, capsys):
    main(["tables", "--table", "6", "--rows", *results])
    assert "| SSQL (ours) | 4w4a | 61.2 | 60.5 ± 0.7 (2) | -0.7 |" in capsys.readouterr().out
    main(["tables", "--table", "6", "--rows", results[0], "--rows", *results[1:], "--scope", "backbone"])
    assert "| SSQL (ours) | 4w4a | 61.2 | 70.0 | +8.8 |" in capsys.readouterr().out


def test_without_rows_the_published_table_says_what_fills_it(capsys):
    main(["tables", "--table", "7"])
    printed = capsys.readouterr().out
    assert "| BYOL | 5w5a | 34.9 | [3] | - |" in printed
    assert "3. `ssql-det sweep --config-file configs/detection/coco_mask_r50_fpn.yaml --bits FP,6,5,4 MODEL" in printed


def test_several_tables_follow_one_another_each_once(results, capsys):
    main(["tables", "--table", "7", "1", "--table", "7", "6", "--rows", *results])
    printed = capsys.readouterr().out
    headings = [line for line in printed.splitlines() if line.startswith("## ")]
    assert [heading.split()[2] for heading in headings] == ["7.", "1.", "6."]
    assert "| SSQL (ours) | 4w4a | 61.2 | 60.5 ± 0.7 (2) | -0.7 |" in printed
    assert "`ssql-det reproduce --preset paper --table 1 --methods SimSiam-PACT --bits 8,6,5,4,3,2w8a,2w4a`" in printed
    main(["tables", "--table", "all", "--format", "latex"])
    assert capsys.readouterr().out.count("\\subsection*{Table ") == 9
    main(["tables", "--table", "all", "6", "--format", "csv"])
    records = csv.DictReader(capsys.readouterr().out.splitlines())
    assert list(dict.fromkeys(record["table"] for record in records)) == ["1", "3", "4", "5", "6", "7", "8", "12", "13"]


def test_all_tables_go_into_one_file(results, tmp_path, capsys):
    main(["tables", "--table", "6", "13", "--rows", *results, "--out", str(tmp_path / "tables.md")])
    assert capsys.readouterr().err.splitlines() == [
        f"{tmp_path}/tables.md: Table 6, voc_2007_test, scope all",
        f"{tmp_path}/tables.md: Table 13, CIFAR-10",
    ]
    assert (tmp_path / "tables.md").read_text("utf-8").count("\n## Table") == 1


def test_what_is_written_is_what_is_printed(results, tmp_path, capsys):
    for kind in ("markdown", "latex", "csv"):
        arguments = ["tables", "--table", "6", "--rows", *results, "--format", kind, "--dataset", "voc_2007_test"]
        main(arguments)
        printed = capsys.readouterr().out
        main([*arguments, "--out", str(tmp_path / "new" / "table")])
        assert (tmp_path / "new" / "table").read_text("utf-8") == printed
        assert capsys.readouterr().out == ""
    assert printed.startswith("table,dataset,scope,")


def test_mistakes_are_one_sentence(results, tmp_path, capsys):
    assert "no published Table 9; choose one of 1, 3, 4" in refusal(capsys, "--table", 6, 9)
    assert "'six' is not a whole number" in refusal(capsys, "--table", "six")
    assert "no row has the dataset 'voc_2007_tset'; did you" in refusal(
        *(capsys, "--table", "all", "--rows", *results, "--dataset", "voc_2007_tset")
    )
    assert "--table" in refusal(capsys)
    assert "--scope must be all or backbone, got 'head'" in refusal(capsys, "--table", 6, "--scope", "head")
    assert "there is no results file " in refusal(capsys, "--table", 6, "--rows", tmp_path / "none.jsonl")
    assert "there is no results file " in refusal(capsys, "--table", 6, "--rows", tmp_path)
    assert "invalid choice: 'html'" in refusal(capsys, "--table", 6, "--format", "html")
    (tmp_path / "foreign.jsonl").write_text("a,b\n")
    assert "holds no result row" in refusal(capsys, "--table", 6, "--rows", *results, tmp_path / "foreign.jsonl")
    assert "it is a directory" in refusal(capsys, "--table", 6, "--out", tmp_path)


def test_a_refusal_leaves_files_as_they_were(results, tmp_path, capsys):
    before = (tmp_path / "seed0" / "results.jsonl").read_bytes()
    crooked = tmp_path / "seed1" / ".." / "seed0" / "results.jsonl"
    assert "would be overwritten" in refusal(capsys, "--table", 6, "--rows", results[0], "--out", crooked)
    assert (tmp_path / "seed0" / "results.jsonl").read_bytes() == before
    out = tmp_path / "table.md"
    out.write_text("before")
    refusal(capsys, "--table", 6, "--rows", tmp_path / "none.jsonl", "--out", out)
    assert out.read_text() == "before"
