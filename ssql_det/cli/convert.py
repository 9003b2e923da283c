"""Convert a backbone's checkpoint into another format; a file with missing or unexpected tensors is refused.

The format of IN is found by its keys. --formats lists the formats that can be read and written.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssql_det.cli._card import add_card, prepare_card, write_card

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ssql_det.convert import Checkpoint, Metadata
    from ssql_det.report.model_card import CardSubject

HELP = "convert a backbone from one checkpoint format into another"
EXAMPLES = (
    "ssql-det convert moco_v2_800ep_pretrain.pth.tar moco_v2.pkl --to detectron2 --verify",
    "ssql-det convert runs/ssql/checkpoint.pth ssql.safetensors --to safetensors --branch online",
)


class _ListFormats(argparse.Action):
    """``--formats`` prints and exits, as ``--version`` does; torch is not imported without it."""

    def __call__(self, *_: Any) -> None:
        from ssql_det.convert import FORMATS

        for each in FORMATS:
            verbs = "read, write" if each.writer else "read"
            not_stored = f"; does not store: {each.not_stored}" if each.not_stored else ""
            print(f"{each.name:16}{verbs:13}{each.title}{not_stored}")
        raise SystemExit(0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_reading_arguments(parser)
    parser.add_argument("out", metavar="OUT", help="the file to write")
    parser.add_argument("--to", metavar="FORMAT", required=True, help="the format to write, such as detectron2")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    parser.add_argument(
        "--verify", action="store_true", help="compare the features of both networks; write OUT only if they agree"
    )
    parser.add_argument(
        "--allow-unmatched",
        metavar="PATTERN",
        action="append",
        default=[],
        help="unexpected tensors to leave out, such as 'neck.*'",
    )
    parser.add_argument(
        "--trained-with",
        metavar="CONFIG",
        help="the Detectron2 config it was trained with, for the input format and stride",
    )
    add_card(parser)
    parser.add_argument("--formats", action=_ListFormats, nargs=0, help="list the formats and exit")


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the commands that read a checkpoint of any format."""
    parser.add_argument("checkpoint", metavar="IN", help="a checkpoint: .pth, .pt, .tar, .bin, .pkl or .safetensors")
    parser.add_argument("--from", dest="format", metavar="FORMAT", help="the format of IN (default: found by its keys)")
    parser.add_argument("--arch", help="the architecture, such as resnet50 (default: found by the tensors)")
    parser.add_argument("--branch", metavar="online|momentum", help="which network, if the file has two")
    parser.add_argument("--prefix", help="prefix of the ResNet's tensors, if no format has it")


def run(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from ssql_det.convert import check_output, inspect_checkpoint, write_checkpoint
    from ssql_det.core.console import print_next, set_up_logging
    from ssql_det.core.files import check_not_an_input

    set_up_logging()
    check_output(options.out, options.to, options.force)
    check_not_an_input(options.out, [options.checkpoint])
    checkpoint = inspect_checkpoint(options.checkpoint, options.format, options.arch, options.branch, options.prefix)
    if options.trained_with is not None:
        metadata = _confirm_by_config(checkpoint.metadata, options.trained_with)
        checkpoint = replace(checkpoint, metadata=metadata)
    print("\n".join([*describe_checkpoint(checkpoint), *describe_coverage(checkpoint)]))
    checkpoint.coverage.check(options.checkpoint, options.allow_unmatched)
    card = prepare_card(Path(options.out), options.card, _make_card_subject(checkpoint, options))
    if options.verify:
        from ssql_det.cli._verify import verified_output

        with verified_output(checkpoint, options) as path:
            left_behind = write_checkpoint(checkpoint, path, options.to)
    else:
        left_behind = write_checkpoint(checkpoint, options.out, options.to, options.force)
    config = _describe_config(checkpoint, options.out) if options.to.startswith("detectron2") else ()
    write_card(Path(options.out), card)
    print("\n".join([f"wrote {options.out}", *_group_by_reason("left behind", left_behind), *config]))
    print_next("inspect", options.out)


def _make_card_subject(checkpoint: Checkpoint, options: argparse.Namespace) -> CardSubject:
    from ssql_det.report.model_card import BACKBONE, DETECTOR, CardSubject

    source, out = checkpoint.source, Path(options.out)
    assert source is not None
    properties = {
        "architecture": checkpoint.architecture.name,
        "pretraining": checkpoint.metadata.method or "",
        "format": options.to,
        "converted from": f"{source.name} ({source.format})",
    }
    kind = DETECTOR if checkpoint.detector else BACKBONE
    return CardSubject(out.name, kind, properties, source.sha256, commands=(f"ssql-det inspect {out.name}",))


def describe_checkpoint(checkpoint: Checkpoint) -> Iterator[str]:
    """Lines about the network: format, architecture, input format, stride."""
    from ssql_det.convert.checkpoint import describe_branch

    source, metadata = checkpoint.source, checkpoint.metadata
    assert source is not None
    yield f"{source.name} is {source.format}: {source.reason}"
    method = f", trained with {metadata.method}" if metadata.method else ""
    yield f"  {checkpoint.architecture.name}{method}, {describe_branch(metadata, source)}"
    origin = "stored in the file" if metadata.is_input_known else "the format's convention; the file does not say"
    unknown = "unknown; give the config that it was trained with: --trained-with CONFIG.yaml"
    if metadata.input is None:
        yield f"  images: {unknown}"
    else:
        mean, std = list(metadata.input.mean), list(metadata.input.std)
        yield f"  images: {metadata.input.channels}, minus {mean}, divided by {std} ({origin})"
    if checkpoint.architecture.is_bottleneck:
        stride = {True: "in the 1x1 conv", False: "in the 3x3 conv", None: unknown}[metadata.stride_in_1x1]
        yield f"  stride of a block: {stride}"


def describe_coverage(checkpoint: Checkpoint) -> Iterator[str]:
    """Lines about what became of the file's tensors."""
    from ssql_det.convert.checkpoint import summarize_names

    coverage = checkpoint.coverage
    yield f"  {coverage.percent:.1f} % of the backbone: {len(coverage.used)} tensors used"
    if checkpoint.detector:
        yield f"  and {len(checkpoint.detector)} tensors of a detector"
    yield from _group_by_reason("left out", coverage.left_out)
    if coverage.not_read:
        yield f"  other entries of the file, not read: {summarize_names(coverage.not_read)}"
    problems = (("unexpected", coverage.unmatched), ("missing", coverage.missing), ("invalid", [*coverage.invalid]))
    for problem, names in problems:
        if names:
            yield f"  {problem}: {len(names)} ({summarize_names(names)})"


def _group_by_reason(title: str, reasons: Mapping[str, str]) -> Iterator[str]:
    from ssql_det.convert.checkpoint import summarize_names

    for reason in dict.fromkeys(reasons.values()):
        names = [name for name in reasons if reasons[name] == reason]
        yield f"  {title}: {len(names)}, {reason} ({summarize_names(names)})"


def _confirm_by_config(metadata: Metadata, file: str) -> Metadata:
    from ssql_det.convert import with_known_input
    from ssql_det.d2 import read_config
    from ssql_det.detect import SSQL_DET_DEFAULTS
    from ssql_det.detect.detector import get_input_format

    cfg = read_config(file, node_defaults=SSQL_DET_DEFAULTS)
    return with_known_input(metadata, get_input_format(cfg), cfg.MODEL.RESNETS.STRIDE_IN_1X1)


def _describe_config(checkpoint: Checkpoint, out: str) -> Iterator[str]:
    """The keys that a Detectron2 config needs, as YAML; unknown ones in a comment."""
    import yaml

    from ssql_det.convert import get_config_overrides
    from ssql_det.core.config import unflatten

    overrides = {"MODEL.WEIGHTS": str(Path(out).resolve()), **get_config_overrides(checkpoint)}
    known = {key: value for key, value in overrides.items() if value is not None}
    yield "in a Detectron2 config:\n"
    yield yaml.safe_dump(unflatten(known), default_flow_style=None, sort_keys=True)
    unknown = [key for key, value in overrides.items() if value is None]
    if unknown:
        yield f"# unknown, set as in the training: {', '.join(unknown)}"
