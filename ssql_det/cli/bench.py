"""Measure how long a detector takes for an image, in each way of running it on this machine's CPU.

These are torch as the engine runs it, torch with folded norms and channels last, onnxruntime in float and in integers
at each bit-width, and OpenVINO where it is installed, in float32 and at the same bit-widths. Each has a process of its
own; they detect in turn, from the resized image to boxes, scores, classes and masks on the grids of the boxes. The
medians, the peak memory of each process and the size of each file are printed and appended to bench.jsonl in
OUTPUT_DIR. Without --quantization, ranges are those of a few test images, which is enough for speed, not for AP.

KEY VALUE pairs override the config, as in Detectron2: MODEL.WEIGHTS is the detector.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ssql_det.cli.arguments import (
    add_bits,
    add_config_arguments,
    add_overrides,
    add_quantization,
    make_scheme,
    parse_scheme,
    positive_int,
    read_detector_config,
    worker_int,
)

if TYPE_CHECKING:
    from ssql_det.d2 import CfgNode
    from ssql_det.deploy.bench import BenchRow
    from ssql_det.quant import Bits, Scheme

HELP = "a detector's seconds per image: torch, onnxruntime, OpenVINO, in float and in integers"
EXAMPLES = (
    "ssql-det bench --config-file toy_voc_narrow_c4 MODEL.WEIGHTS runs/c4/model_final.pth OUTPUT_DIR bench",
    "ssql-det bench --config-file zoo/mask_r50_fpn --bits 8 --size 480x640 --threads 2 MODEL.WEIGHTS model_final.pkl",
)
_MAX_SIDE = 10_000


def image_size(text: str) -> tuple[int, int]:
    """Height and width of an image.

    >>> image_size("480x640")
    (480, 640)
    """
    found = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text)
    height, width = map(int, found.groups()) if found else (0, 0)
    if not 0 < min(height, width) <= max(height, width) <= _MAX_SIDE:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a height and a width of 1 to {_MAX_SIDE} pixels, such as 480x640"
        )
    return height, width


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    add_bits(parser, "8,4")
    add_quantization(parser, default="placement=integer")
    parser.add_argument("--image", metavar="FILE", help="(default: the first one of DATASETS.TEST, else noise)")
    parser.add_argument(
        "--size", type=image_size, metavar="HEIGHTxWIDTH", help="of the resized image (default: by the config's rule)"
    )
    parser.add_argument("--threads", type=worker_int, help="of each process (default: one per core)")
    parser.add_argument("--rounds", type=positive_int, default=7, help="timed runs of each (default: %(default)s)")
    add_overrides(parser, "MODEL.WEIGHTS FILE")


def run(options: argparse.Namespace) -> None:
    from ssql_det.cli.report import write_page_beside
    from ssql_det.core.config import check_output_dir
    from ssql_det.core.console import print_outcome, print_table
    from ssql_det.core.errors import UserError
    from ssql_det.core.run_folder import owning_folder
    from ssql_det.deploy import bench
    from ssql_det.deploy.export import check_installed
    from ssql_det.deploy.openvino_detector import has_openvino
    from ssql_det.quant import Bits, Scheme, parse_bit_widths
    from ssql_det.quant.integer_form import check_integer_scheme
    from ssql_det.quant.points import INTEGER

    check_installed()
    widths = [bits for bits in parse_bit_widths(options.bits) if bits != Bits.FP]
    if not widths and (options.scheme is not None or options.quantization is not None):
        raise UserError("--scheme and --quantization need --bits, such as --bits 8; leave them out, or name one")
    scheme = make_scheme(options) if options.scheme is not None else Scheme(placement=INTEGER)
    if options.quantization is None:
        check_integer_scheme(scheme, widths)
    cfg = read_detector_config(options, [*options.overrides, "MODEL.DEVICE", "cpu"])
    out = check_output_dir(cfg.OUTPUT_DIR)
    with owning_folder(out):
        results = out / bench.RESULTS_NAME
        bench.check_bench_file(results)
        rows = _bench(options, cfg, widths, scheme)
        for row in rows:
            bench.append_bench_row(results, row)
    setting = rows[0].setting
    height, width = setting.size
    title = f"{setting.checkpoint}, {setting.image} at {height}x{width}, {setting.threads} thread(s)"
    print_table(bench.HEADER, bench.format_rows(rows), title)
    print(f"CPU: {setting.cpu}")
    if not has_openvino():
        print("OpenVINO is not installed, so it was not measured: pip install 'ssql_det[openvino]'")
    weights = ("MODEL.WEIGHTS", cfg.MODEL.WEIGHTS)
    bits = ("--bits", widths[0]) if widths else ()
    page = write_page_beside(results)
    print_outcome(results)
    print_outcome(page, "export", "--config-file", options.config_file, *bits, *weights)


def _bench(options: argparse.Namespace, cfg: CfgNode, widths: Sequence[Bits], scheme: Scheme) -> list[BenchRow]:
    import tempfile

    from ssql_det.d2 import engine_name
    from ssql_det.deploy.bench import BenchRow, BenchSetting, list_cases, measure_cases
    from ssql_det.deploy.bench_files import BenchIntegers, export_for_bench, load_bench_images
    from ssql_det.deploy.cpu import count_cores
    from ssql_det.deploy.openvino_detector import has_openvino
    from ssql_det.detect import make_config_label
    from ssql_det.detect.detector import load_trained_detector

    images = load_bench_images(cfg, options.size, None if options.image is None else Path(options.image))
    model, checkpoint = load_trained_detector(cfg)
    integers = None
    if options.quantization is not None:
        integers = BenchIntegers.load(Path(options.quantization), model, parse_scheme(options), widths)
    elif widths:
        integers = BenchIntegers.calibrate(cfg, model, scheme, widths, images)
    label = make_config_label(options.config_file, options.overrides)
    source, threads = checkpoint.source, options.threads or count_cores()
    setting = BenchSetting(
        checkpoint="" if source is None else source.name,
        checkpoint_hash="" if source is None else source.sha256,
        config=label,
        engine=engine_name(),
        scheme="" if integers is None else str(integers.quantization.scheme),
        scope="" if integers is None else integers.scope,
        image=images.name,
        size=images.timed.shape[:2],
        threads=threads,
        rounds=options.rounds,
    )
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(cfg.dump())
        files = export_for_bench(cfg, label, model, checkpoint, integers, images, Path(folder))
        cases = list_cases(config, files, has_openvino())
        measured = measure_cases(cases, images.timed, threads, options.rounds)
        return [BenchRow.make(case, each, setting) for case, each in zip(cases, measured, strict=True)]
