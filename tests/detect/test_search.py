"""A search finds the best bit-widths where losses are known, and the command writes what other commands take."""

import itertools
import json

import pytest
import torch
from support.detect.configs import C4, CONFIGS, tiny_overrides
from support.detect.fake_measurer import FLOAT_AP, FakeMeasurer
from support.detect.sweeps import MANY_DETECTIONS
from support.networks import D2ResNet
from support.refusals import refused

from ssql_det.cli.main import main
from ssql_det.core import rows
from ssql_det.core.errors import UserError
from ssql_det.detect.groups import list_groups
from ssql_det.detect.measurements import AP, DISTILLATION
from ssql_det.detect.search import GBOPS, MB, Goal, Search
from ssql_det.quant import Bits, profile_cost, quant_points
from ssql_det.quant.points import assign_bits

WIDTHS = [Bits(8, 8), Bits(5, 5), Bits(4, 4), Bits(3, 3)]
WEIGHTS = {"stem": 5.0, "res2": 300.0, "res3": 20.0}


@pytest.fixture(scope="module")
def profile():
    model = D2ResNet().eval()
    return profile_cost(model, quant_points(model), torch.zeros(1, 3, 32, 32))


def make_search(profile, quantity=AP, interaction=0.0):
    measurer = FakeMeasurer(profile.points, WEIGHTS, interaction)
    return Search(measurer, profile, list_groups(profile.points, ["stem*", "res2.*", "res3.*"]), WIDTHS, quantity)


def list_all(search, profile):
    """MB, GBOPs and the loss of every assignment, each computed as a whole."""
    for assignment in itertools.product(*(range(len(own)) for own in search.choices)):
        overrides = {}
        for group, own, choice in zip(search.groups, search.choices, assignment, strict=True):
            overrides |= group.at(own[choice])
        cost = profile.at(Bits(6, 6), overrides)
        loss = search._measurer.compute_loss(Bits(6, 6), overrides)
        yield (cost.bytes + 400) / 1e6, cost.bit_ops / 1e9, loss


@pytest.mark.parametrize("quantity", [AP, DISTILLATION])
@pytest.mark.parametrize("unit", [MB, GBOPS])
def test_the_best_within_a_budget_is_found(quantity, unit, profile):
    search = make_search(profile, quantity, interaction=0.02)
    every = list(list_all(search, profile))
    column = (MB, GBOPS).index(unit)
    for budget in sorted(each[column] for each in every)[1::9]:
        taken = make_search(profile, quantity, interaction=0.02).run(Goal(unit, budget), count=6)
        assert taken.get_cost(unit) <= budget * (1 + 1e-9)
        assert FLOAT_AP - taken.ap == pytest.approx(min(each[2] for each in every if each[column] <= budget))
        assert any(each == pytest.approx((taken.mb, taken.gbops, FLOAT_AP - taken.ap)) for each in every)


@pytest.mark.parametrize("quantity", [AP, DISTILLATION])
@pytest.mark.parametrize("unit", [MB, GBOPS])
def test_the_least_that_loses_so_much_is_found(quantity, unit, profile):
    """Although wholes lose more than the sum of their parts."""
    every = list(list_all(make_search(profile, quantity, 0.02), profile))
    column = (MB, GBOPS).index(unit)
    for lose in sorted(each[2] for each in every)[2::9]:
        taken = make_search(profile, quantity, 0.02).run(Goal(unit, lose=lose * (1 + 1e-9)), count=30)
        assert FLOAT_AP - taken.ap <= lose * (1 + 1e-9)
        assert taken.get_cost(unit) == pytest.approx(
            min(each[column] for each in every if each[2] <= lose * (1 + 1e-9))
        )


def test_few_assignments_are_measured_each_once_and_groups_alone(profile):
    search = make_search(profile)
    search.run(Goal(MB, 0.04), count=3)
    asked = search._measurer.asked
    wholes = {str((bits, overrides)) for _, bits, overrides in asked if bits != Bits.FP and overrides}
    alone = [overrides for _, bits, overrides in asked if bits == Bits.FP and overrides]
    assert len(wholes) <= 3
    assert len(alone) == sum(map(len, search.choices)) == 12
    assert all(len(assign_bits(search._measurer.points, Bits.FP, each)) for each in alone)


def test_a_uniform_bit_width_is_itself_without_overrides(profile):
    """With bits to spare it is taken as it is; the stem keeps its 8 bits."""
    taken = make_search(profile).run(Goal(MB, 10.0), count=1)
    assert (taken.name, taken.bits, taken.overrides, taken.is_uniform) == ("8w8a", Bits(8, 8), {}, True)
    cost = profile.at(Bits(8, 8))
    assert (taken.mb, taken.gbops) == pytest.approx(((cost.bytes + 400) / 1e6, cost.bit_ops / 1e9))


def test_goals_that_nothing_meets_are_refused(profile):
    every = list(list_all(make_search(profile), profile))
    for column, unit in enumerate((MB, GBOPS)):
        least, most = (end(each[column] for each in every) for end in (min, max))
        with pytest.raises(UserError) as raised:
            make_search(profile).run(Goal(unit, least * 0.99), count=1)
        message = (
            f"no bit-widths meet the budget of {least * 0.99:g} {unit}: with these --widths the least possible is "
        )
        assert str(raised.value).startswith(f"{message}{least:.6g}, the most {most:.6g}")
        assert make_search(profile).run(Goal(unit, least), count=1).get_cost(unit) == pytest.approx(least)
    with pytest.raises(UserError, match=r"--lose 0: everything that was measured loses more AP .* at least 0\.0"):
        make_search(profile).run(Goal(MB, lose=0.0), count=2)


@pytest.mark.parametrize(
    ("text", "goal"), [("4 MB", Goal(MB, 4.0)), ("20gbops", Goal(GBOPS, 20.0)), (" .5 Mb ", Goal(MB, 0.5))]
)
def test_a_budget_is_a_number_and_a_unit(text, goal):
    assert Goal.parse_budget(text) == goal


@pytest.mark.parametrize("text", ["4", "MB", "4 GB", "4 kB", "-4 MB", "0 MB", "nan MB", "inf MB", "4 MB 5", "", "4w4a"])
def test_other_budgets_are_refused(text):
    with pytest.raises(UserError, match="--budget must be a number of MB or GBOPs, such as '4 MB' or '20 GBOPs'; got"):
        Goal.parse_budget(text)


# ---- the command ---------------------------------------------------------------------------------------------------


def arguments(weights, out, *flags, **keys):
    given = ["--calib-images", "4", "--selection-images", "5", "--widths", "8,4", "--best", "2", *flags]
    pairs = tiny_overrides(OUTPUT_DIR=out, MODEL__WEIGHTS=weights, **MANY_DETECTIONS, **keys)
    return ["search", "--config-file", str(CONFIGS / C4), *given, *pairs]


@pytest.fixture(scope="module")
def found(learned, tmp_path_factory):
    """The folder of a search."""
    out = tmp_path_factory.mktemp("search") / "out"
    main(arguments(learned, out, "--budget", "0.6 MB"))
    return out


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_search_writes_its_files(found):
    names = {path.name for path in found.iterdir()}
    assert {"bits.json", "search.json", "measurements.json", "measurements.jsonl", "results.jsonl"} <= names
    assert {"report.html", "report.md", "search.csv", "losses.csv", "test-mb.svg", "selection-gbops.svg"} <= names
    measured = read_lines(found / "measurements.jsonl")
    alone = [each for each in measured if each["bits"] == "FP" and each["overrides"]]
    assert len(alone) == 14  # seven parts at two bit-widths
    assert len({json.dumps([each["quantity"], each["bits"], each["overrides"]]) for each in measured}) == len(measured)
    assert len((found / "losses.csv").read_text().splitlines()) == 1 + 14
    page = (found / "report.html").read_text()
    for text in ("least AP lost, at most 0.6 MB", "--bits-file", "AP over GBOPs, test set"):
        assert text in page


def test_the_rows_are_those_of_a_sweep_with_the_bits_file(found, learned, tmp_path):
    *uniform, last = rows.read_rows(found / "results.jsonl")
    assert [(row.bits, row.overrides) for row in uniform[:3]] == [("FP", {}), ("8w8a", {}), ("4w4a", {})]
    taken = last if last.overrides else next(row for row in uniform if row.metrics["MB"] <= 0.6 and row.bits != "FP")
    assert taken.metrics["MB"] <= 0.6
    assert taken.calibration.selection_images == 5
    given = ["sweep", "--config-file", str(CONFIGS / C4), "--calib-images", "4", "--bits", taken.bits]
    pairs = tiny_overrides(OUTPUT_DIR=tmp_path, MODEL__WEIGHTS=learned, **MANY_DETECTIONS)
    main([*given, "--bits-file", str(found / "bits.json"), *pairs])
    (swept,) = rows.read_rows(tmp_path / "results.jsonl")
    assert swept.metrics == taken.metrics


def test_a_search_goes_on_where_it_ended(found, learned, tmp_path, monkeypatch, capsys):
    """From a part of its measurements and rows, the last line torn."""
    before = {path.name: path.read_bytes() for path in found.iterdir()}
    for name in ("measurements.json", "search.json"):
        (tmp_path / name).write_bytes(before[name])
    lines = before["measurements.jsonl"].splitlines(keepends=True)
    (tmp_path / "measurements.jsonl").write_bytes(b"".join(lines[:17]) + lines[17][:30])
    (tmp_path / "results.jsonl").write_bytes(b"".join(before["results.jsonl"].splitlines(keepends=True)[:2]))
    main(arguments(learned, tmp_path, "--budget", "0.6 MB"))
    for name in ("bits.json", "search.csv", "losses.csv"):
        assert (tmp_path / name).read_bytes() == before[name], name

    def never(*args, **kwargs):
        raise AssertionError("measured again")

    monkeypatch.setattr("ssql_det.detect.measurements.evaluate_detector_at", never)
    monkeypatch.setattr("ssql_det.detect.search_rows.evaluate_quantized", never)
    monkeypatch.setattr("ssql_det.detect.measurements.build_calibrated_quantization", never)
    main(arguments(learned, found, "--budget", "0.6 MB"))
    assert (found / "search.csv").read_bytes() == before["search.csv"]
    assert (found / "results.jsonl").read_bytes() == before["results.jsonl"]


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (
            ("--scheme", "act=mse"),
            "measurements.jsonl has --scheme 'minmax' (now 'act=mse'); choose another OUTPUT_DIR",
        ),
        (("--calib-seed", "1"), "has --calib-seed 0 (now 1)"),
        (("--selection-images", "6"), "has selection images 5 (now 6)"),
        (("--groups", "backbone.*,roi_heads.*,proposal_generator.*,nothing.*"), "matches the group 'nothing.*'"),
        (("--widths", "8,FP"), "--widths has FP, at which nothing is quantized; leave it out"),
        (("--scheme", "weight=brecq"), "needs rounding, which is learned for each bit-width"),
        (("--minimize", "MB"), "--minimize needs --lose"),
    ],
)
def test_a_folder_of_other_settings_and_other_mistakes_are_refused(flags, complaint, found, learned, capsys):
    before = {path.name: path.read_bytes() for path in found.iterdir()}
    assert complaint in refused(capsys, *arguments(learned, found, "--budget", "0.6 MB", *flags))
    assert {path.name: path.read_bytes() for path in found.iterdir()} == before


def test_other_objects_and_other_folders_are_refused(found, learned, whole_sweep, capsys, tmp_path):
    line = arguments(learned, whole_sweep[0], "--budget", "0.6 MB")
    assert "holds a sweep, with its rows; choose another OUTPUT_DIR" in refused(capsys, *line)
    (tmp_path / "results.jsonl").write_bytes((found / "results.jsonl").read_bytes())
    complaint = "results.jsonl has no search.json beside it; choose another OUTPUT_DIR"
    assert complaint in refused(capsys, *arguments(learned, tmp_path, "--budget", "0.6 MB"))
    (tmp_path / "search.json").write_text('{"the objects\' sha256": "other"}')
    assert "are of other objects in the test set" in refused(
        capsys, *arguments(learned, tmp_path, "--budget", "0.6 MB")
    )


@pytest.mark.parametrize(
    "line", ['{"quantity": "AP"}', '{"quantity": "AP", "bits": "FP", "overrides": 3, "value": 1}', "[]"]
)
def test_a_line_that_is_no_measurement_is_named(line, found, learned, capsys, tmp_path):
    for name in ("measurements.json", "measurements.jsonl"):
        (tmp_path / name).write_bytes((found / name).read_bytes())
    with open(tmp_path / "measurements.jsonl", "a") as file:
        file.write(f"{line}\n")
    count = len(read_lines(tmp_path / "measurements.jsonl"))
    complaint = f"measurements.jsonl, line {count} is not a measurement; delete that line to measure again"
    assert complaint in refused(capsys, *arguments(learned, tmp_path, "--budget", "0.6 MB"))
    (tmp_path / "measurements.json").unlink()
    assert "has no measurements.json beside it" in refused(capsys, *arguments(learned, tmp_path, "--budget", "0.6 MB"))


def test_sensitivity_and_another_goal_use_the_measurements(found, learned, capsys, monkeypatch, tmp_path):
    line = arguments(learned, found)
    shared = [*line[1:7], *line[11:]]  # without what only a search has
    with monkeypatch.context() as patch:
        patch.setattr("ssql_det.detect.measurements.evaluate_detector_at", None)
        main(["sensitivity", *shared[:2], "--bits", "4", "--out", str(tmp_path / "b.json"), *shared[2:]])
    assert "roi_heads.box_predictor.*" in capsys.readouterr().out
    before = read_lines(found / "measurements.jsonl")
    main(arguments(learned, found, "--lose", "50", "--minimize", "GBOPs"))
    added = read_lines(found / "measurements.jsonl")[len(before) :]
    assert len(added) <= 2
    assert all(each["bits"] != "FP" for each in added)
