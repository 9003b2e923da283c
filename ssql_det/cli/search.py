"""Search for the bit-width of each part of a detector: the most AP within a size or a number of bit-operations, or the
least size that loses so much AP.

Each part alone is measured at each of --widths, on training images that have no other use; the best assignments are
solved for exactly, and the best few are measured as a whole before one is taken. The test set is evaluated at the end
alone, beside the uniform bit-widths. Writes OUTPUT_DIR/bits.json, which sweep, quantize and export take by --bits-file,
result rows, a page with charts and CSV files. Started again, also with another budget, it measures only what is new.
Several GPUs: --num-gpus N.
"""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

from ssql_det.cli._measuring import add_measuring_arguments, complete_settings, make_settings, read_groups
from ssql_det.cli.arguments import add_overrides, positive_int, read_detector_config, set_up_process

if TYPE_CHECKING:
    from ssql_det.detect.search import Goal

HELP = "bits of each part of a detector, under a budget of MB, GBOPs or AP"
EXAMPLES = (
    "ssql-det search --config-file toy_voc_narrow_c4 --budget '0.4 MB' MODEL.WEIGHTS c4.pth OUTPUT_DIR searches/c4",
    "ssql-det search --config-file coco_mask_r50_fpn --lose 1.0 --scheme act=mse MODEL.WEIGHTS fpn.pth OUTPUT_DIR out",
)
WIDTHS = "8,6,5,4,3"
BITS_NAME, PAGE_NAME = "bits.json", "report.html"
_QUANTITIES = ("MB", "GBOPs")
_USES = ("sweep", "quantize", "export")  # commands that take the bits file; the last one needs placement=integer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--budget", metavar="'N MB'|'N GBOPs'", help="lose the least AP within this")
    parser.add_argument("--lose", metavar="AP", type=float, help="lose at most so much AP with the least size")
    parser.add_argument("--minimize", choices=_QUANTITIES, help="with --lose: what is to be the least (default: MB)")
    parser.add_argument("--widths", default=WIDTHS, help="bit-widths of a part (default: %(default)s)")
    parser.add_argument(
        "--best", type=positive_int, default=10, help="assignments to measure as a whole (default: %(default)s)"
    )
    add_measuring_arguments(parser)
    add_overrides(parser, "MODEL.WEIGHTS FILE")


def run(options: argparse.Namespace) -> None:
    from ssql_det.core.config import check_output_dir
    from ssql_det.core.errors import UserError
    from ssql_det.core.files import check_not_an_input
    from ssql_det.core.launch import launch
    from ssql_det.detect import make_config_label
    from ssql_det.quant import Bits, parse_bit_widths

    goal, widths = _make_goal(options), parse_bit_widths(options.widths)
    if Bits.FP in widths:
        raise UserError("--widths has FP, at which nothing is quantized; leave it out")
    settings, file = make_settings(options, widths)
    cfg = read_detector_config(options, options.overrides)
    if len(cfg.DATASETS.TEST) != 1:
        raise UserError(
            "a search evaluates on one data set at its end; DATASETS.TEST must have one name, got "
            f"{len(cfg.DATASETS.TEST)}"
        )
    folder = check_output_dir(cfg.OUTPUT_DIR)
    inputs = [options.config_file, cfg.MODEL.WEIGHTS, *filter(None, [options.quantization])]
    check_not_an_input(folder / BITS_NAME, inputs)
    label = make_config_label(options.config_file, options.overrides)
    launch(_search, cfg, label, options, goal, widths, settings, file, processes=options.num_gpus)


def _make_goal(options: argparse.Namespace) -> Goal:
    from ssql_det.core.errors import UserError
    from ssql_det.detect.search import MB, Goal

    if (options.budget is None) == (options.lose is None):
        raise UserError("search needs a goal: either --budget, such as '4 MB' or '20 GBOPs', or --lose, the AP to lose")
    if options.budget is not None:
        if options.minimize is not None:
            raise UserError("--minimize needs --lose; --budget says what is limited; leave one of them out")
        return Goal.parse_budget(options.budget)
    if not 0 <= options.lose < math.inf:
        raise UserError(f"--lose must be the AP that may be lost, 0 or more; got {options.lose:g}")
    return Goal(options.minimize or MB, lose=options.lose)


def _search(cfg, config_label, options, goal, widths, settings, file):  # type: ignore[no-untyped-def]  # needs torch
    """On every rank."""
    from functools import partial
    from itertools import chain

    from ssql_det.core.distributed import broadcast_from_main, is_main
    from ssql_det.core.run_folder import owning_folder
    from ssql_det.detect.detector import load_trained_detector
    from ssql_det.detect.evaluation_data import build_evaluation_loader
    from ssql_det.detect.groups import join_overrides, list_groups
    from ssql_det.detect.measurements import AP, DISTILLATION, measuring
    from ssql_det.detect.points import detector_points
    from ssql_det.detect.search import Search
    from ssql_det.detect.search_page import Finding
    from ssql_det.detect.search_rows import Assigned, check_search_folder, evaluate_assignments, write_search_file
    from ssql_det.quant import Bits, profile_cost

    set_up_process()
    model, checkpoint = load_trained_detector(cfg)
    settings, path = complete_settings(model, settings, file)
    points = detector_points(model, settings.scope, settings.scheme.placement)
    groups = list_groups(points, read_groups(options))
    (dataset,) = cfg.DATASETS.TEST
    sha256 = checkpoint.source.sha256 if checkpoint.source else ""
    with owning_folder(cfg.OUTPUT_DIR), measuring(cfg, model, sha256, settings, path) as measurer:
        check_search_folder(measurer, dataset)
        loader = build_evaluation_loader(cfg, dataset)
        profile = broadcast_from_main(lambda: profile_cost(model.eval(), points, next(iter(loader))))
        search = Search(measurer, profile, groups, widths, DISTILLATION if options.fast else AP)
        settings.scheme.check_bits(set(chain(*search.choices)))
        taken = search.run(goal, options.best)
        bits_file = {pattern: str(bits) for pattern, bits in join_overrides(groups, search.get_bits(taken)).items()}
        if is_main():
            content = {"goal": str(goal), "widths": [*map(str, widths)], "--fast": options.fast}
            write_search_file(measurer, dataset, content | {"bits": str(taken.bits), "bits file": bits_file})
        assigned: list[Assigned] = [(Bits.FP, {}), *((bits, {}) for bits in widths)]
        if not taken.is_uniform:
            assigned.append((taken.bits, taken.overrides))
        evaluate = partial(evaluate_assignments, cfg, config_label, checkpoint, settings, measurer, profile, loader)
        finding = Finding(search, goal, taken, list(evaluate(assigned)))
        if is_main():
            _write(cfg, options, finding, bits_file, checkpoint.display_name)


def _write(cfg, options, finding, bits_file, name):  # type: ignore[no-untyped-def]
    """The bits file, the page and the CSV files; print what was taken, and how to use it."""
    import json
    import shlex
    import sys
    from pathlib import Path

    from ssql_det.core.console import print_outcome, print_table
    from ssql_det.core.files import atomic_write
    from ssql_det.detect.search_page import build_csv_files, build_group_table, build_page, build_row_table
    from ssql_det.quant.points import INTEGER
    from ssql_det.report.page_files import write_page, write_text

    folder = Path(cfg.OUTPUT_DIR)
    with atomic_write(folder / BITS_NAME, "w") as file:
        json.dump(bits_file, file, indent=1)
    commands = {name: _make_command(name, cfg, options, finding, folder) for name in _USES}
    if finding.rows[0].placement != INTEGER:
        del commands["export"]
    uses = [shlex.join(["ssql-det", *words]) for words in commands.values()]
    for file_name, text in build_csv_files(finding).items():
        write_text(folder / file_name, text)
    title = f"{name} on {finding.rows[0].dataset}"
    document = build_page(finding, title, shlex.join(["ssql-det", *sys.argv[1:]]), uses)
    page = write_page(document, folder / PAGE_NAME)
    for table, heading in (
        (build_group_table(finding), f"{name}: {finding.goal}"),
        (build_row_table(finding), title),
    ):
        print_table(table.header, table.rows, heading)
    print(f"wrote {page}")
    print_outcome(folder / BITS_NAME, *commands["sweep"])


def _make_command(name, cfg, options, finding, folder):  # type: ignore[no-untyped-def]
    """The words of a command that uses the bits file, with the settings of the search."""
    row = finding.rows[0]
    words = ["--config-file", options.config_file, "--bits", finding.taken.bits, "--bits-file", folder / BITS_NAME]
    if options.quantization is not None and name != "quantize":
        words += ["--quantization", options.quantization]
    else:
        words += ["--scheme", row.scheme, "--calib-images", row.calibration.images]
        words += ["--calib-seed", row.calibration.seed, "--scope", row.scope]
    return [name, *map(str, words), "MODEL.WEIGHTS", cfg.MODEL.WEIGHTS]
