"""Compare the features of one ResNet at full precision and at low bit-widths, from a single copy of weights.

The weights are random and the images are crops of scikit-learn's two photographs: the table shows what the bit-width
alone does to features and cost, and says nothing about accuracy.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ssql_det.cli.arguments import add_bits, add_scheme, make_scheme, positive_int, seed_int

if TYPE_CHECKING:
    from torch import Tensor

HELP = "compare a ResNet's features at FP, 8, 6, 5, 4 and 2 bits"
EXAMPLES = (
    "ssql-det demo",
    "ssql-det demo --arch resnet50 --bits FP,8,4 --scheme act=percentile:99.9",
)
BITS = "FP,8w8a,6w6a,5w5a,4w4a,2w4a"
HEADER = ("bits", "cosine to FP", "relative error", "size, MB", "Gbit-ops")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--arch", default="resnet18", help="a backbone by name (default: %(default)s)")
    add_bits(parser, BITS)
    add_scheme(parser)
    parser.add_argument("--size", type=positive_int, default=128, help="side of the image crops (default: %(default)s)")
    parser.add_argument("--seed", type=seed_int, default=0, help="of the weights and the crops (default: %(default)s)")


def run(options: argparse.Namespace) -> None:
    import torch

    from ssql_det.backbones import build_backbone
    from ssql_det.core.console import print_next, print_table, set_up_logging
    from ssql_det.quant import Quantization, evaluate_at_bit_widths, parse_bit_widths, profile_cost

    set_up_logging()
    widths = parse_bit_widths(options.bits)
    torch.manual_seed(options.seed)
    backbone = build_backbone(options.arch)
    crops = _make_photo_crops(count=48, size=options.size, seed=options.seed)
    backbone.require_size(options.size)
    model = backbone.module.eval()
    test_crops, calibration_crops = crops[:16], crops[16:].split(16)

    quantization = Quantization(model, scheme=make_scheme(options))
    quantization.calibrate(calibration_crops)
    profile = profile_cost(model, quantization.points, test_crops[:1])
    rows = []
    with torch.no_grad():
        reference = model(test_crops)
        evaluated = evaluate_at_bit_widths(quantization, widths, lambda _: model(test_crops), batches=calibration_crops)
        for bits, features in evaluated:
            cosine = torch.cosine_similarity(features, reference).mean().item()
            error = ((features - reference).norm() / reference.norm()).item()
            cost = profile.at(bits)
            rows.append(
                (str(bits), f"{cosine:.4f}", f"{error:.4f}", f"{cost.bytes / 1e6:.2f}", f"{cost.bit_ops / 1e9:.1f}")
            )
    settings = f"{options.arch}, random weights, seed {options.seed}, {quantization.scheme}"
    print_table(HEADER, rows, f"{settings}: features of {len(test_crops)} crops")
    print_next("reproduce", "--preset", "mini")


def _make_photo_crops(count: int, size: int, seed: int) -> Tensor:
    """Random square crops, normalized as ImageNet's: [count, 3, size, size]."""
    import torch
    from sklearn.datasets import load_sample_images

    from ssql_det.convert import IMAGENET
    from ssql_det.core.errors import UserError
    from ssql_det.ssl.augmentations import normalize

    photos = [torch.from_numpy(photo.copy()).permute(2, 0, 1) for photo in load_sample_images().images]
    max_size = min(min(photo.shape[1:]) for photo in photos)
    if not 32 <= size <= max_size:
        raise UserError(f"--size must be 32 to {max_size}, the photographs' shorter side; got {size}")
    generator = torch.Generator().manual_seed(seed)
    crops = []
    for index in range(count):
        photo = photos[index % len(photos)]
        top, left = (int(torch.randint(side - size + 1, (), generator=generator)) for side in photo.shape[1:])
        crops.append(photo[:, top : top + size, left : left + size])
    return normalize(torch.stack(crops), IMAGENET)
