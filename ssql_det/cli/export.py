"""Export a detector, or a backbone alone, as one ONNX file that runs without torch.

KEY VALUE pairs override the config, as in Detectron2: MODEL.WEIGHTS is the detector. A backbone is given by
--checkpoint instead of --config-file. The export ends with a comparison: the file and the engine detect in the same
images, those of DATASETS.TEST or of a folder, and the differences are written beside the file. `ssql-det run` detects
with the file, on a machine that needs NumPy, Pillow and onnxruntime alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssql_det.cli._card import add_card, prepare_card, write_card
from ssql_det.cli.arguments import (
    add_bits_file,
    add_calibration,
    add_config_arguments,
    add_image_options,
    add_overrides,
    add_quantization,
    add_scope,
    check_scope,
    make_calibration,
    make_scheme,
    parse_scheme,
    read_bits_file,
    read_detector_config,
    seed_int,
    worker_int,
)

if TYPE_CHECKING:
    from torch import nn

    from ssql_det.convert import SourceFile
    from ssql_det.d2 import CfgNode
    from ssql_det.detect.quantized_evaluation import QuantizationSettings
    from ssql_det.quant import Bits, Quantization

HELP = "one ONNX file of a detector, compared with the engine"
EXAMPLES = (
    "ssql-det export --config-file toy_voc_narrow_c4 --out detector.onnx MODEL.WEIGHTS runs/c4/model_final.pth",
    "ssql-det export --checkpoint runs/ssql/checkpoint.pth --out backbone.onnx",
)
SUFFIX = ".onnx"
_OF_DETECTORS = ("coco_train", "coco_val", "check_folder", "evaluate", "scope", "overrides")
_OF_BACKBONES = ("data", "recipe", "size")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, required=False)
    parser.add_argument("--checkpoint", metavar="FILE", help="a backbone, in any format that convert reads")
    parser.add_argument("--data", help="of a backbone in integers: images to calibrate on, as for quantize")
    add_image_options(parser)
    parser.add_argument("--bits", default="FP", help="one bit-width, such as 8 or 2w4a (default: %(default)s)")
    add_scope(parser, has_file=True)
    add_quantization(parser, default="placement=integer")
    add_calibration(parser, has_file=True)
    add_bits_file(parser)
    parser.add_argument("--out", default="detector.onnx", help="the file to write (default: %(default)s)")
    parser.add_argument(
        "--check-images",
        type=seed_int,
        default=20,
        help="images to compare on; 0: write the file without a comparison (default: %(default)s)",
    )
    parser.add_argument("--check-folder", metavar="FOLDER", help="of these images (default: those of DATASETS.TEST)")
    parser.add_argument("--evaluate", action="store_true", help="compare the AP on DATASETS.TEST too")
    parser.add_argument("--threads", type=worker_int, help="threads that run the file (default: one per core)")
    add_card(parser)
    add_overrides(parser, "MODEL.WEIGHTS FILE")


def run(options: argparse.Namespace) -> None:
    from ssql_det.core.errors import UserError
    from ssql_det.core.files import check_regular_file
    from ssql_det.deploy.export import check_installed

    check_installed()
    out = Path(options.out)
    if out.suffix != SUFFIX:
        raise UserError(f"--out must end in {SUFFIX}, got {options.out}")
    check_regular_file(out)
    check_regular_file(_get_report_path(out))
    if (options.config_file is None) == (options.checkpoint is None):
        raise UserError("export needs either --config-file, of a detector, or --checkpoint, of a backbone")
    if options.checkpoint is None:
        _refuse(options, _OF_BACKBONES, "--checkpoint, of a backbone")
        _export_detector(options, out)
    else:
        _refuse(options, _OF_DETECTORS, "--config-file, of a detector")
        _export_backbone(options, out)


def _export_detector(options: argparse.Namespace, out: Path) -> None:
    from contextlib import nullcontext
    from dataclasses import asdict

    from ssql_det.core.console import print_outcome
    from ssql_det.core.errors import UserError
    from ssql_det.core.files import check_not_an_input
    from ssql_det.deploy.agreement import compare_aps, compare_detectors
    from ssql_det.deploy.check_images import check_test_data, load_check_images
    from ssql_det.deploy.detector import Detector
    from ssql_det.deploy.export import export_detector, make_integers
    from ssql_det.deploy.graph import DetectorGraph
    from ssql_det.deploy.integer_check import check_integers
    from ssql_det.detect import make_config_label
    from ssql_det.detect.detector import load_trained_detector

    for name in ("check_folder", "evaluate"):
        if options.check_images == 0 and getattr(options, name):
            raise UserError(f"{_describe(name)} needs --check-images 1 or more; leave one of the two out")
    bits, settings = _read_settings(options)
    cfg = read_detector_config(options, options.overrides)
    check_not_an_input(out, [options.config_file, cfg.MODEL.WEIGHTS, *filter(None, [options.quantization])])
    if options.evaluate:
        check_test_data(cfg)
    images = load_check_images(cfg, options.check_images, options.check_folder)
    model, checkpoint = load_trained_detector(cfg)
    quantization, integers = None, None
    overrides = {} if settings is None else settings.overrides
    if settings is not None:
        quantization, scope = _quantize(options, cfg, model, bits, settings)
        integers = make_integers(quantization, bits, scope, overrides)
    label = make_config_label(options.config_file, options.overrides)
    origin = {
        "architecture": checkpoint.architecture.name,
        "pretraining": checkpoint.metadata.method or "",
        "config": label,
    }
    card = _prepare_card(options, out, checkpoint.source, bits, quantization, **origin)
    keys = export_detector(cfg, model, checkpoint, label, out, integers)
    _get_report_path(out).unlink(missing_ok=True)  # of an earlier file
    report: dict[str, Any] = {"file": out.name}
    if images:
        detector = Detector(out, options.threads)
        with nullcontext() if quantization is None else quantization.at(bits, overrides):
            report |= compare_detectors(detector, model, images).to_dict()
            if options.evaluate:
                aps = compare_aps(cfg, detector, model)
                report["agrees"] &= all(each.is_close for each in aps.values())
                report["metrics"] = {name: asdict(each) for name, each in aps.items()}
        if quantization is not None:  # whether it agrees is decided tensor by tensor
            pixels = [inputs["image"].permute(1, 2, 0).contiguous() for (inputs,) in images]
            graph = DetectorGraph(model)
            report |= check_integers(out, keys, quantization, bits, overrides, graph, pixels).to_dict()
    _finish(report, out)
    write_card(out, card)
    print_outcome(out, "run", out, "IMAGE ...", "--out", "found")


def _prepare_card(
    options: argparse.Namespace,
    out: Path,
    source: SourceFile | None,
    bits: Bits,
    quantization: Quantization | None,
    **properties: str,
) -> str | None:
    from ssql_det.report.model_card import BACKBONE, DETECTOR, CardSubject

    scheme = "" if quantization is None else str(quantization.scheme)
    kind = BACKBONE if options.checkpoint else DETECTOR
    commands = (f"ssql-det run {out.name} photo.jpg --out found",) if kind == DETECTOR else ()
    sha256 = "" if source is None else source.sha256
    return prepare_card(out, options.card, CardSubject(out.name, kind, properties, sha256, str(bits), scheme, commands))


def _read_settings(options: argparse.Namespace) -> tuple[Bits, QuantizationSettings | None]:
    """The bit-width, and how the detector is quantized; ``None`` at full precision."""
    from ssql_det.core.errors import UserError
    from ssql_det.detect.quantized_evaluation import QuantizationSettings
    from ssql_det.quant import Bits, Scheme, parse_bit_widths
    from ssql_det.quant.integer_form import check_integer_scheme
    from ssql_det.quant.points import INTEGER

    widths = parse_bit_widths(options.bits)
    if len(widths) != 1:
        raise UserError(f"--bits needs one bit-width, as a file has one; got {options.bits}")
    if widths == [Bits.FP]:
        for name in ("scheme", "scope", "quantization", "bits_file", "calib_images", "calib_seed"):
            if getattr(options, name) is not None:
                raise UserError(f"{_describe(name)} needs --bits, such as --bits 8; leave it out, or name a bit-width")
        return Bits.FP, None
    scheme = make_scheme(options) if options.scheme is not None else Scheme(placement=INTEGER)
    overrides = read_bits_file(options.bits_file)
    if options.quantization is None:
        check_integer_scheme(scheme, widths, overrides)
    return widths[0], QuantizationSettings(check_scope(options), make_calibration(options), scheme, overrides)


def _quantize(
    options: argparse.Namespace, cfg: CfgNode, model: nn.Module, bits: Bits, settings: QuantizationSettings
) -> tuple[Quantization, str]:
    """The quantization and its scope."""
    from ssql_det.deploy.quantization import quantize_detector

    if options.quantization is None:
        return quantize_detector(cfg, model, bits, settings)
    given = {"scope": options.scope, "scheme": parse_scheme(options)}
    given |= {"images": options.calib_images, "seed": options.calib_seed}
    return quantize_detector(cfg, model, bits, settings, Path(options.quantization), given)


def _export_backbone(options: argparse.Namespace, out: Path) -> None:
    from contextlib import nullcontext

    from ssql_det.core.console import print_outcome, set_up_logging
    from ssql_det.core.files import check_not_an_input
    from ssql_det.deploy.agreement import compare_features, make_noise_images
    from ssql_det.deploy.export import export_backbone, make_backbone_graph, make_integers
    from ssql_det.deploy.integer_check import check_integers
    from ssql_det.pretrain.checkpoint import read_backbone
    from ssql_det.pretrain.probe_checkpoint import default_augmentation
    from ssql_det.ssl.augmentations import build_augmentation

    set_up_logging()
    bits, settings = _read_settings(options)
    check_not_an_input(out, [options.checkpoint, *filter(None, [options.quantization])])
    pretrained = read_backbone(options.checkpoint)
    size = build_augmentation(options.recipe or default_augmentation(pretrained.network), options.size).size
    quantization, integers = None, None
    overrides = {} if settings is None else settings.overrides
    if settings is not None:
        quantization = _quantize_backbone(options, pretrained.backbone.module, bits, settings)
        integers = make_integers(quantization, bits, "", overrides)
    origin = {"architecture": pretrained.network, "pretraining": pretrained.metadata.method or ""}
    card = _prepare_card(options, out, pretrained.source, bits, quantization, **origin)
    keys = export_backbone(pretrained, size, out, integers)
    _get_report_path(out).unlink(missing_ok=True)
    graph = make_backbone_graph(pretrained)
    report: dict[str, Any] = {"file": out.name}
    with nullcontext() if quantization is None else quantization.at(bits, overrides):
        report |= compare_features(out, graph, size, options.check_images, options.threads)
    if quantization is not None and options.check_images:
        images = make_noise_images([(size, size)], options.check_images)
        report |= check_integers(out, keys, quantization, bits, overrides, graph, images).to_dict()
    _finish(report, out)
    write_card(out, card)
    print_outcome(out)


def _quantize_backbone(
    options: argparse.Namespace, backbone: nn.Module, bits: Bits, settings: QuantizationSettings
) -> Quantization:
    """The quantization of the file, or a new one that is calibrated on images of --data."""
    from ssql_det.core.errors import UserError
    from ssql_det.deploy.quantization import load_backbone_quantization, quantize_pretrained

    if options.quantization is not None:
        file, overrides = Path(options.quantization), settings.overrides
        return load_backbone_quantization(file, backbone, bits, overrides, parse_scheme(options))
    if options.data is None:
        raise UserError("--bits of a backbone needs --data, images to calibrate on, or --quantization")
    given = (options.recipe, options.size)
    return quantize_pretrained(options.checkpoint, backbone, options.data, bits, settings, *given)


def _get_report_path(out: Path) -> Path:
    return out.with_suffix(".check.json")


def _finish(report: dict[str, Any], out: Path) -> None:
    """Write the comparison beside the file and print it; a file that does not agree is an error."""
    import json

    from ssql_det.core.console import print_table
    from ssql_det.core.errors import UserError
    from ssql_det.core.files import atomic_write

    path = _get_report_path(out)
    with atomic_write(path, "w") as file:
        json.dump(report, file, indent=1)
    if "agrees" not in report:
        print("not compared: --check-images is 0")
        return
    flat = {name: value for name, value in report.items() if not isinstance(value, (dict, str, bool))}
    flat |= report.get("all tensors", {})
    cells = [
        (name.replace("_", " "), f"{value:.3g}" if isinstance(value, float) else f"{value:,}")
        for name, value in flat.items()
    ]
    cells += [(f"float: {path}", f"{macs:,}") for path, macs in report.get("float layers", {}).items()]
    for name, ap in report.get("metrics", {}).items():
        cells.append((name, f"{ap['file']:.2f} ({ap['engine']:.2f} of the engine)"))
    print_table(("", "differences"), cells, f"{out.name} and the engine")
    if not report["agrees"]:
        raise UserError(f"{out} does not agree with the engine, see {path}; do not use it, and report this")
    if report.get("detections") == 0:
        print("nothing was detected in these images, so little was compared: name a --check-folder with objects")


def _refuse(options: argparse.Namespace, names: tuple[str, ...], owner: str) -> None:
    """Options of the other kind of network."""
    from ssql_det.core.errors import UserError

    for name in names:
        if getattr(options, name):
            raise UserError(f"{_describe(name)} needs {owner}; leave it out")


def _describe(name: str) -> str:
    return "KEY VALUE" if name == "overrides" else f"--{name.replace('_', '-')}"
