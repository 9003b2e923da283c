"""Tables of linear probes: the runs they need and share, and the report on them."""

import itertools
import statistics
from collections import Counter
from pathlib import Path

import pytest
from support.reproduce.fake_runs import check_page, fake_top1, find_tables, list_paragraphs, make_fake_run
from support.reproduce.plans import ROOT, build_plan

from ssql_det.core.errors import UserError
from ssql_det.report.blocks import Collapsible, Figure, Heading
from ssql_det.report.published import load_published_table
from ssql_det.report.table_sources import get_source
from ssql_det.reproduce.report_page import build_report, write_tables

pytestmark = pytest.mark.slow

WIDTHS = ("FP", "8w8a", "6w6a", "5w5a", "4w4a", "3w3a", "2w8a", "2w4a")
RUNS = {  # of the methods of Tables 1 and 12 on toy data
    "SimSiam": "simsiam",
    "BYOL": "byol",
    "SSQL (ours)": "ssql",
    "SimCLR": "simclr",
    "MoCov2": "moco",
    "SSQL-NCE (ours)": "ssql-simclr",
    "BYOL+SSQL": "ssql-byol",
    "MoCov2+SSQL": "ssql-moco",
}


@pytest.fixture(autouse=True)
def _in_the_clone(monkeypatch):
    monkeypatch.chdir(ROOT)


def list_names(plan, kind):
    return [step.name.removeprefix(f"{kind}-") for step in plan.steps if step.kind == kind]


@pytest.mark.parametrize("name", ["mini", "small"])
def test_tables_share_runs(name):
    plan = build_plan(name, tables=(1, 8, 12), seeds=1)
    assert set(list_names(plan, "pretrain")) == {
        f"{run}-0" for run in (*RUNS.values(), *(f"table8-{x}" for x in "bcdefgh"))
    }
    assert Counter(list_names(plan, "pretrain")) == Counter(list_names(plan, "probe"))
    ablation = [step.removeprefix("probe-") for step in plan.row_steps["table8"]]
    assert ablation == ["simsiam-0", *(f"table8-{x}-0" for x in "bcdefgh"), "ssql-0"]
    assert set(plan.row_steps["table12"]) < set(plan.row_steps["table1"])
    assert {step.kind for step in plan.steps} == {"data", "pretrain", "probe", "analyze"}


def test_a_backbone_is_pretrained_once_for_detectors_and_probes():
    both = build_plan("mini", tables=(6, 1), methods=("ssql",))
    assert list_names(both, "pretrain") == ["ssql-0"]
    assert (list_names(both, "sweep"), list_names(both, "probe")) == (["c4-ssql-0"], ["ssql-0"])


def test_a_probe_gets_the_letter_that_the_checkpoint_does_not_store():
    for step in build_plan("mini", tables=(8,)).steps:
        if step.kind == "probe":
            method = dict(itertools.pairwise(step.arguments)).get("--method")
            letter = step.name.removeprefix("probe-table8-")[0] if "table8" in step.name else None
            assert method == (letter and f"({letter})")


@pytest.mark.parametrize(
    ("method", "run"), [("(d)", "table8-d-0"), ("i", "ssql-0"), ("SSQL", "ssql-0"), ("A", "simsiam-0")]
)
def test_rows_of_the_ablation_are_selected_by_letter_or_method(method, run):
    assert list_names(build_plan("mini", tables=(8,), methods=(method,)), "probe") == [run]


@pytest.mark.parametrize("table", [1, 3, 8, 12])
def test_the_paper_preset_runs_every_config_of_its_tables(table):
    plan = build_plan("paper", tables=(table,))
    configs = [
        step.arguments[step.arguments.index("--config-file") + 1] for step in plan.steps if step.kind == "pretrain"
    ]
    assert Counter(configs) == Counter({each for each in get_source(table).configs.values() if "pact" not in each})
    assert {step.name.rpartition("-")[2] for step in plan.steps} == {"0"}  # one seed by default
    assert len(list_names(build_plan("paper", tables=(table,), seeds=2), "probe")) == 2 * len(list_names(plan, "probe"))
    data = {step.arguments[step.arguments.index("--data") + 1] for step in plan.steps if step.kind == "probe"}
    assert data == ({"datasets/imagenet"} if table == 3 else {"cifar10:datasets"})
    missing = {method for method in load_published_table(table).methods if "PACT" in method}
    assert {reason.split(" of ")[0] for reason in plan.left_out} == missing


@pytest.mark.parametrize(("preset", "table"), [("mini", 1), ("paper", 1), ("paper", 3)])
def test_simsiam_pact_is_a_training_for_each_bit_width(preset, table):
    plan = build_plan(preset, tables=(table,), methods=("simsiam-pact",))
    pretrainings, probes = ([step for step in plan.steps if step.kind == kind] for kind in ("pretrain", "probe"))
    published = load_published_table(table).bit_widths
    trained = [step.arguments[step.arguments.index("SSQL.FIXED_BITS") + 1] for step in pretrainings]
    assert sorted(trained) == sorted({*published} - {"FP"})
    by_folder = {step.folder: step for step in pretrainings}
    for probe in probes:
        values = dict(itertools.pairwise(probe.arguments))
        checkpoint, quantization = by_folder[Path(values["--checkpoint"]).parent].outputs
        assert (values["--checkpoint"], values["--quantization"]) == (str(checkpoint), str(quantization))
        assert checkpoint.parent.name.endswith(f"-{values['--bits']}-0")
        assert values["--method"] == "SimSiam-PACT (our reconstruction)"
        assert {checkpoint, quantization} <= {*probe.inputs}
    assert len(probes) == len(trained)
    few = build_plan(preset, tables=(table,), methods=("simsiam-pact",), bits="FP,4,2w4a")
    assert len(list_names(few, "pretrain")) == 2


def test_tables_of_the_paper_preset_share_runs():
    names = list_names(build_plan("paper", tables=(1, 3, 6, 7, 8, 12)), "pretrain")
    assert set(Counter(names).values()) == {1}
    assert len(names) == 12 + 2 + 9 + 7 + 2  # CIFAR-10, SSQL over two more, the ablation, ImageNet, and its 200 epochs


def test_a_given_backbone_is_probed_once_with_its_name():
    plan = build_plan("mini", tables=(1,), seeds=3, checkpoints={"SimSiam-PACT": "pact.pth"})
    (step,) = [step for step in plan.steps if step.name == "probe-simsiam-pact"]
    assert step.arguments[step.arguments.index("--method") + 1] == "SimSiam-PACT"
    assert step.inputs[0].name == "pact.pth"


@pytest.mark.parametrize("name", ["SSQL", "(i)"])
def test_a_given_backbone_is_used_for_its_row_of_the_ablation(name):
    plan = build_plan("mini", tables=(8, 6) if name == "SSQL" else (8,), checkpoints={name: "ours.pth"})
    assert "ssql-0" not in list_names(plan, "pretrain")
    (probe,) = [step for step in plan.steps if step.kind == "probe" and "ours.pth" in step.arguments]
    assert probe.name == plan.row_steps["table8"][-1]
    assert probe.arguments[-2:] == ("--method", name)


@pytest.mark.parametrize(
    ("preset", "options", "message"),
    [
        ("mini", {"tables": (6, 3)}, "--table 3: not in the preset mini, which has 1, 6, 7, 8, 12"),
        (
            "paper",
            {"tables": (1,), "checkpoints": {"SSQL": "a.pth"}},
            "Table 1 has several networks and a checkpoint only one",
        ),
        ("paper", {"tables": (1, 8), "checkpoints": {"SSQL": "a.pth"}}, "the tables need different architectures"),
        ("mini", {"tables": (8,), "methods": ("j",)}, r"unknown method 'j'.*known: \(a\), \(b\)"),
    ],
)
def test_unknown_tables_and_methods_are_refused(preset, options, message):
    with pytest.raises(UserError, match=message):
        build_plan(preset, **options)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of three seeds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return make_fake_run(tmp_path_factory.mktemp("mini"), "mini", tables=(1, 8, 12), seeds=3)


def test_a_report_of_probes_mentions_no_detector(results):
    document = build_report(results)
    check_page(document)
    assert document.title == "What bits cost a backbone: preset mini"
    assert [block.text for block in document.blocks if isinstance(block, Heading) and block.level == 2] == [
        "What do low bit-widths cost?",
        *(f"Linear probe, on toy data, next to Table {number}" for number in (1, 8, 12)),
        *("Size and cost", "Features at low bit-widths", "Pretraining", "Run time"),
        *("Environment", "Commands"),
    ]
    assert not any("moved to a detector" in text for text in list_paragraphs(document))
    (terms,) = (block for block in document.blocks if isinstance(block, Collapsible) and "15 networks" in block.summary)
    assert len([block for block in terms.blocks if isinstance(block, Figure)]) == 15
    assert len(find_tables(document, "Linear probe")) == 1  # all three tables have the same network


def test_values_are_means_over_seeds_in_the_order_of_the_table(results):
    table_1, table_8, table_12 = (
        table for table in find_tables(build_report(results), "method") if table.header[1] == "values"
    )
    for table, runs in (
        (table_1, RUNS),
        (table_12, {method: RUNS[method] for method in load_published_table(12).methods}),
    ):
        measured = {row[0].removeprefix("narrow ResNet · "): row[2:] for row in table.rows if row[1] == "measured"}
        printed = [method for method in load_published_table(1 if table is table_1 else 12).methods if method in runs]
        assert list(measured)[: len(printed)] == printed
        assert len(measured) == len(runs)
        for method, cells in measured.items():
            for index, cell in zip(map(WIDTHS.index, table.header[2:]), cells, strict=True):
                values = [fake_top1(runs[method], seed, index) for seed in range(3)]
                assert cell == f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f} (3)"
    measured = {row[0]: row[2:] for row in table_8.rows if row[1] == "measured"}
    assert list(measured) == [f"narrow ResNet · ({letter})" for letter in "abcdefghi"]
    assert table_8.header[-1] == "Avg."
    widths = [WIDTHS.index(bits) for bits in load_published_table(8).bit_widths]
    means = [statistics.fmean(fake_top1("table8-d", seed, index) for index in widths) for seed in range(3)]
    assert measured["narrow ResNet · (d)"][-1] == f"{statistics.fmean(means):.1f} ± {statistics.stdev(means):.1f} (3)"


def test_the_summary_has_each_method_once(results):
    (summary,) = find_tables(build_report(results), "probe")
    names = [row[1] for row in summary.rows]
    assert len(names) == len(set(names)) == 8 + 9
    assert summary.header[2] == "top-1 at FP"
    losses = [fake_top1("byol", seed, 0) - fake_top1("byol", seed, 4) for seed in range(3)]
    row = next(row for row in summary.rows if row[1] == "BYOL")
    assert row[4] == f"{statistics.fmean(losses):.1f} ± {statistics.stdev(losses):.1f}"


def test_table_files_are_named_by_their_numbers(results):
    captions = [table.caption for table in write_tables(results)]
    assert captions == [f"Table {number}, top-1: crops" for number in (1, 8, 12)]
    assert {path.name for path in (results.plan.out / "tables").iterdir()} == {
        f"table{number}.{suffix}" for number in (1, 8, 12) for suffix in ("md", "csv")
    }


def test_detectors_and_probes_on_one_page(tmp_path):
    document = build_report(make_fake_run(tmp_path, "mini", tables=(7, 1), methods=("ssql", "simsiam")))
    check_page(document)
    assert document.title == "What bits cost a detector: preset mini"
    assert [len(find_tables(document, kind)[0].rows) for kind in ("detector", "probe")] == [2, 2]
