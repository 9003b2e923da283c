"""Convert a backbone's checkpoint between formats: every tensor finds its place, or is named and the file refused.

The format of IN is found by its keys. --formats lists what can be read and written.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ssql_det.convert import Checkpoint, Metadata

HELP = "a backbone from any checkpoint format into any other"
EXAMPLES = (
    "ssql-det convert moco_v2_800ep_pretrain.pth.tar moco_v2.pkl --to detectron2 --verify",
    "ssql-det convert runs/ssql/checkpoint.pth ssql.safetensors --to safetensors --branch online",
)


class _ListFormats(argparse.Action):
    """``--formats``: as ``--version``, but it needs torch only when it is asked for."""

    def __call__(self, *_: Any) -> None:
        from ssql_det.convert import FORMATS

        for each in FORMATS:
            verbs = "read, write" if each.writer else "read"
            note = f"; does not carry: {each.note}" if each.note else ""
            print(f"{each.name:16}{verbs:13}{each.title}{note}")
        raise SystemExit(0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_reading_arguments(parser)
    parser.add_argument("out", metavar="OUT", help="the file to write")
    parser.add_argument("--to", metavar="FORMAT", required=True, help="the format to write, such as detectron2")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    parser.add_argument(
        "--verify", action="store_true", help="compare the features of both networks before OUT is there"
    )
    parser.add_argument(
        "--allow-unmatched",
        metavar="PATTERN",
        action="append",
        default=[],
        help="tensors that may have no place: 'neck.*'",
    )
    parser.add_argument(
        "--trained-with", metavar="CONFIG", help="the Detectron2 config it was trained with, if the file does not say"
    )
    parser.add_argument("--formats", action=_ListFormats, nargs=0, help="list the formats and leave")


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command says about a checkpoint that it reads."""
    parser.add_argument("checkpoint", metavar="IN", help="a checkpoint: .pth, .pt, .tar, .bin, .pkl or .safetensors")
    parser.add_argument("--from", dest="format", metavar="FORMAT", help="its format (default: found by its keys)")
    parser.add_argument("--arch", help="its architecture, such as resnet50 (default: found by its tensors)")
    parser.add_argument("--branch", metavar="online|momentum", help="which network, where it has two")
    parser.add_argument("--prefix", help="where its ResNet is, if under a prefix that no format knows")


def run(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from ssql_det.convert import check_output, inspect_checkpoint, write_checkpoint
    from ssql_det.core.console import print_next, set_up_logging
    from ssql_det.core.files import check_not_an_input

    set_up_logging()
    check_output(options.out, options.to, options.force)
    check_not_an_input(options.out, [options.checkpoint])
    reading = (options.format, options.arch, options.branch, options.prefix)
    checkpoint = inspect_checkpoint(options.checkpoint, *reading)
    if options.trained_with is not None:
        checkpoint = replace(checkpoint, metadata=_facts_of_config(checkpoint.metadata, options.trained_with))
    print("\n".join([*description(checkpoint), *coverage(checkpoint)]))
    checkpoint.coverage.check(options.checkpoint, options.allow_unmatched)
    if options.verify:
        from ssql_det.cli._verify import verified

        with verified(checkpoint, options) as unproven:
            left_behind = write_checkpoint(checkpoint, unproven, options.to)
    else:
        left_behind = write_checkpoint(checkpoint, options.out, options.to, options.force)
    config = _config(checkpoint, options.out) if options.to.startswith("detectron2") else ()
    print("\n".join([f"wrote {options.out}", *_by_reason("left behind", left_behind), *config]))
    print_next("inspect", options.out)


def description(checkpoint: Checkpoint) -> Iterator[str]:
    """What is known about a network, for a person."""
    from ssql_det.convert.checkpoint import describe_branch

    source, metadata = checkpoint.source, checkpoint.metadata
    assert source is not None
    yield f"{source.name} is {source.format}: {source.why}"
    method = f", trained with {metadata.method}" if metadata.method else ""
    yield f"  {checkpoint.architecture.name}{method}, {describe_branch(metadata, source)}"
    says = "the file says so" if metadata.from_file else "by custom, the file does not say"
    if metadata.input is None:
        yield "  images: not known; --trained-with CONFIG.yaml tells"
    else:
        mean, std = list(metadata.input.mean), list(metadata.input.std)
        yield f"  images: {metadata.input.channels}, less {mean}, divided by {std}; {says}"
    if checkpoint.architecture.is_bottleneck:
        where = {True: "the 1x1 conv", False: "the 3x3 conv", None: "not known; --trained-with CONFIG.yaml tells"}
        yield f"  stride of a block: {where[metadata.stride_in_1x1]}"


def coverage(checkpoint: Checkpoint) -> Iterator[str]:
    """What became of the file's tensors, for a person."""
    from ssql_det.convert.checkpoint import summarize_names

    found = checkpoint.coverage
    yield f"  {found.percent:.1f} % of the backbone: {len(found.used)} tensors used"
    if checkpoint.detector:
        yield f"  and {len(checkpoint.detector)} of a detector"
    yield from _by_reason("left out", found.left_out)
    if found.beside:
        yield f"  beside the weights, not read: {summarize_names(found.beside)}"
    for what, names in (("no place", found.unmatched), ("missing", found.missing), ("wrong", [*found.wrong])):
        if names:
            yield f"  {what}: {len(names)} ({summarize_names(names)})"


def _by_reason(what: str, reasons: Mapping[str, str]) -> Iterator[str]:
    from ssql_det.convert.checkpoint import summarize_names

    for reason in dict.fromkeys(reasons.values()):
        names = [name for name in reasons if reasons[name] == reason]
        yield f"  {what}: {len(names)}, {reason} ({summarize_names(names)})"


def _facts_of_config(metadata: Metadata, file: str) -> Metadata:
    from ssql_det.convert import confirm_metadata
    from ssql_det.d2 import read_config
    from ssql_det.detect import SSQL_DET_DEFAULTS
    from ssql_det.detect.detector import get_input_format

    cfg = read_config(file, node_defaults=SSQL_DET_DEFAULTS)
    return confirm_metadata(metadata, get_input_format(cfg), cfg.MODEL.RESNETS.STRIDE_IN_1X1)


def _config(checkpoint: Checkpoint, out: str) -> Iterator[str]:
    """The keys as a piece of YAML, to paste; what is not known is a comment."""
    import yaml

    from ssql_det.convert import get_config_overrides
    from ssql_det.core.config import unflatten

    lines = {"MODEL.WEIGHTS": str(Path(out).resolve()), **get_config_overrides(checkpoint)}
    known = {key: value for key, value in lines.items() if value is not None}
    yield "in a Detectron2 config:\n"
    yield yaml.safe_dump(unflatten(known), default_flow_style=None, sort_keys=True)
    unknown = [key for key, value in lines.items() if value is None]
    if unknown:
        yield f"# not known, set as it was trained: {', '.join(unknown)}"
