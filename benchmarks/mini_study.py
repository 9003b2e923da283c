"""Compare SSQL's pretraining with SimSiam's at each bit-width, on toy data: ``python benchmarks/mini_study.py OUT``.

Pretrains with the mini config from several seeds: SimSiam and SSQL, with random weights as baseline, all from the same
initial weights. Evaluates the linear and kNN accuracy of the frozen backbone at every bit-width, with trained and with
re-estimated norm statistics, and the gap in the training loss between 2w4a and full precision. Prints mean and standard
deviation over the seeds as Markdown; rows are written to OUT. Finished jobs are skipped. Runs two jobs at a time, with
one thread each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

CONFIG = Path(__file__).parents[1] / "configs" / "pretrain" / "mini.yaml"
METHODS = ("random", "SimSiam", "SSQL")
BITS = ("FP", "8w8a", "6w6a", "5w5a", "4w4a", "3w3a", "2w4a")
PROBES = ("linear", "knn")
NORMS = ("trained", "re-estimated")


def run_job(method: str, seed: int, out: str, data: str, changes: list[str]) -> None:
    """Pretrain one network and probe it; its rows and its loss gap are written to a folder of its own."""
    import torch

    from ssql_det.core import rows
    from ssql_det.core.config import check_resume, save_config
    from ssql_det.pretrain.checkpoint import CHECKPOINT_NAME, TrainingState
    from ssql_det.pretrain.config import build_metadata, build_network, get_renamed_keys, read_config
    from ssql_det.pretrain.data import hash_file_names, open_images
    from ssql_det.pretrain.loop import pretrain
    from ssql_det.pretrain.optim import build_optimizer
    from ssql_det.pretrain.probe_checkpoint import ProbeSettings, probe_checkpoint
    from ssql_det.quant import Scheme

    torch.set_num_threads(1)
    folder = Path(out) / f"{method}_{seed}"
    keys = ["DATA.TRAIN", data, "OUTPUT_DIR", str(folder), "SEED", str(seed), "MONITOR.PERIOD", "0", *changes]
    cfg = read_config(CONFIG, [*keys, "SSQL.ENABLED", str(method == "SSQL")])
    if check_resume(cfg.values, folder, (folder / "gap.json").exists(), True, (), {}, get_renamed_keys()):
        return
    if method != "random":
        pretrain(cfg, resume=True)
    torch.manual_seed(seed)
    network, _ = build_network(cfg)
    metadata = replace(build_metadata(cfg), method=method)
    optimizer, images = build_optimizer(cfg.optim, network), hash_file_names(open_images(data))
    state = TrainingState(getattr(network, "method", network), cfg.backbone, optimizer, metadata, images)
    if method == "random":
        state.save(folder, 0)
        save_config(cfg.values, folder)
    state.resume(folder, total_steps=1 << 62)
    (folder / "results.jsonl").unlink(missing_ok=True)
    for norms in NORMS:
        settings = ProbeSettings(
            PROBES, seed, "cuda", workers=0, num_calibration_images=512, scheme=Scheme(norms=norms)
        )
        for row in probe_checkpoint(
            str(folder / CHECKPOINT_NAME), data, ",".join(BITS), cfg.data.augmentation.name, settings
        ):
            rows.append_row(folder / "results.jsonl", row)
    (folder / "gap.json").write_text(json.dumps(measure_loss_gap(cfg, state.method)))


def measure_loss_gap(cfg, method, batches: int = 20) -> float:
    """The mean difference of the losses at 2w4a and in float, both in training mode with float targets."""
    import torch

    from ssql_det.pretrain.data import open_images
    from ssql_det.pretrain.view_loader import build_view_loader
    from ssql_det.quant import Bits, Quantization
    from ssql_det.ssl import encoder_quant_points
    from ssql_det.ssl.augmentations import draw_random_numbers

    recipe, gaps = cfg.data.augmentation, []
    quantization = Quantization(method.encoder, encoder_quant_points(method.encoder))
    seed = cfg.seed + 1000
    loader = build_view_loader(open_images(cfg.data.train), recipe.image_transform, cfg.optim.batch, seed)
    method.train()
    for _, batch in zip(range(batches), loader, strict=False):
        views = [
            recipe.batch_transform(view, draw_random_numbers(seed, batch.positions, number, recipe.num_random_numbers))
            for number, view in enumerate(batch.views)
        ]
        with torch.no_grad():
            with quantization.observing():
                encoded = method.encode(views)
            targets = method.targets(views, encoded)
            with quantization.at(Bits(2, 4)):
                quantized = method.encode(views)
            gaps.append(float(method.loss(quantized, targets) - method.loss(encoded, targets)))
    return statistics.fmean(gaps)


def print_tables(out: str, seeds: list[int]) -> None:
    """Print mean and sample standard deviation over the seeds."""
    from ssql_det.core import rows
    from ssql_det.quant import Scheme

    def format_values(values: list[float], digits: int) -> str:
        spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{statistics.fmean(values):.{digits}f}{spread}"

    by_method = {
        method: [row for seed in seeds for row in rows.read_rows(Path(out) / f"{method}_{seed}" / "results.jsonl")]
        for method in METHODS
    }
    print("| norms | probe | method | " + " | ".join(BITS) + " |\n|" + "---|" * (3 + len(BITS)))
    for norms in NORMS:
        for probe in PROBES:
            for method in METHODS:
                matching = [row for row in by_method[method] if Scheme.parse(row.scheme).norms == norms]
                values = [[row.metrics[f"{probe}/top1"] for row in matching if row.bits == bits] for bits in BITS]
                cells = [format_values(each, 1) for each in values]
                print(f"| {norms} | {probe} | {method} | " + " | ".join(cells) + " |")
    print("\n| method | loss at 2w4a minus float loss |\n|---|---|")
    for method in METHODS[1:]:
        gaps = [json.loads((Path(out) / f"{method}_{seed}" / "gap.json").read_text()) for seed in seeds]
        print(f"| {method} | {format_values(gaps, 3)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="folder of checkpoints and rows")
    parser.add_argument("--data", default="digits/crops", help="labelled crops (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("changes", metavar="KEY VALUE", nargs="*", help="config keys to change")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(2) as pool:
        jobs = [
            pool.submit(run_job, method, seed, options.out, options.data, options.changes)
            for seed in options.seeds
            for method in reversed(METHODS)
        ]
        for each in jobs:
            each.result()
    print_tables(options.out, options.seeds)


if __name__ == "__main__":
    main()
