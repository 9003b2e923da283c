"""What SSQL's pretraining is worth at each bit-width, on two CPU cores: ``python benchmarks/mini_study.py OUT``.

The mini config over several seeds: random weights, SimSiam, SSQL, all from the same start. Linear and kNN accuracy of
the frozen backbone at every bit-width, with the norms' statistics as trained and re-estimated; and the gap in the
training loss between 2w4a and full precision. Mean and standard deviation over the seeds, whatever they show, as
Markdown on the terminal; rows in OUT. What is finished is not run again. Two jobs at a time, of one thread each.
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
KINDS = ("linear", "knn")
NORMS = ("trained", "re-estimated")


def job(method: str, seed: int, out: str, data: str, changes: list[str]) -> None:
    """Pretrain one network and probe it; its rows and its gap lie in a folder of its own."""
    import torch

    from ssql_det.core import rows
    from ssql_det.core.config import check_resume, save_config
    from ssql_det.pretrain.checkpoint import CHECKPOINT_NAME, TrainingState
    from ssql_det.pretrain.config import build_metadata, build_network, moved_keys, read_config
    from ssql_det.pretrain.data import hash_file_names, open_images
    from ssql_det.pretrain.loop import pretrain
    from ssql_det.pretrain.optim import build_optimizer
    from ssql_det.pretrain.probe_checkpoint import ProbeSettings, probe_checkpoint
    from ssql_det.quant import Scheme

    torch.set_num_threads(1)
    folder = Path(out) / f"{method}_{seed}"
    keys = ["DATA.TRAIN", data, "OUTPUT_DIR", str(folder), "SEED", str(seed), "MONITOR.PERIOD", "0", *changes]
    cfg = read_config(CONFIG, [*keys, "SSQL.ENABLED", str(method == "SSQL")])
    if check_resume(cfg.values, folder, (folder / "gap.json").exists(), True, (), {}, moved_keys()):
        return
    if method != "random":
        pretrain(cfg, resume=True)
    torch.manual_seed(seed)
    network, _ = build_network(cfg)
    facts = replace(build_metadata(cfg), method=method)
    optimizer, images = build_optimizer(cfg.optim, network), hash_file_names(open_images(data))
    run = TrainingState(getattr(network, "method", network), cfg.backbone, optimizer, facts, images)
    if method == "random":
        run.save(folder, 0)
        save_config(cfg.values, folder)
    run.resume(folder, total=1 << 62)
    (folder / "results.jsonl").unlink(missing_ok=True)
    for norms in NORMS:
        plan = ProbeSettings(KINDS, seed, "cuda", workers=0, calibration=512, scheme=Scheme(norms=norms))
        for row in probe_checkpoint(str(folder / CHECKPOINT_NAME), data, ",".join(BITS), cfg.data.views.name, plan):
            rows.append_row(folder / "results.jsonl", row)
    (folder / "gap.json").write_text(json.dumps(loss_gap(cfg, run.method)))


def loss_gap(cfg, method, batches: int = 20) -> float:
    """The mean of the loss at 2w4a less the float loss, both in training mode against the float targets."""
    import torch

    from ssql_det.pretrain.data import open_images
    from ssql_det.pretrain.view_loader import build_view_loader
    from ssql_det.quant import Bits, Quantization
    from ssql_det.ssl import encoder_points
    from ssql_det.ssl.augmentations import draw_random_numbers

    recipe, gaps = cfg.data.views, []
    quantization = Quantization(method.encoder, encoder_points(method.encoder))
    stream = build_view_loader(open_images(cfg.data.train), recipe.image_transform, cfg.optim.batch, cfg.seed + 1000)
    method.train()
    for _, batch in zip(range(batches), stream, strict=False):
        views = [
            recipe.batch_transform(
                view, draw_random_numbers(cfg.seed + 1000, batch.positions, number, recipe.num_random_numbers)
            )
            for number, view in enumerate(batch.views)
        ]
        with torch.no_grad():
            with quantization.observing():
                encoded = method.encode(views)
            targets = method.targets(views, encoded)
            with quantization.at(Bits(2, 4)):
                low = method.encode(views)
            gaps.append(float(method.loss(low, targets) - method.loss(encoded, targets)))
    return statistics.fmean(gaps)


def table(out: str, seeds: list[int]) -> None:
    """Mean and sample deviation over the seeds."""
    from ssql_det.core import rows
    from ssql_det.quant import Scheme

    def said(values: list[float], digits: int) -> str:
        spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{statistics.fmean(values):.{digits}f}{spread}"

    found = {
        method: [row for seed in seeds for row in rows.read_rows(Path(out) / f"{method}_{seed}" / "results.jsonl")]
        for method in METHODS
    }
    print("| norms | probe | method | " + " | ".join(BITS) + " |\n|" + "---|" * (3 + len(BITS)))
    for norms in NORMS:
        for kind in KINDS:
            for method in METHODS:
                kept = [row for row in found[method] if Scheme.parse(row.scheme).norms == norms]
                cells = [said([row.metrics[f"{kind}/top1"] for row in kept if row.bits == bits], 1) for bits in BITS]
                print(f"| {norms} | {kind} | {method} | " + " | ".join(cells) + " |")
    print("\n| method | loss at 2w4a less the float loss |\n|---|---|")
    for method in METHODS[1:]:
        gaps = [json.loads((Path(out) / f"{method}_{seed}" / "gap.json").read_text()) for seed in seeds]
        print(f"| {method} | {said(gaps, 3)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="folder of checkpoints and rows")
    parser.add_argument("--data", default="digits/crops", help="labelled crops (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("changes", metavar="KEY VALUE", nargs="*", help="of the config")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(2) as pool:
        jobs = [
            pool.submit(job, method, seed, options.out, options.data, options.changes)
            for seed in options.seeds
            for method in reversed(METHODS)
        ]
        for each in jobs:
            each.result()
    table(options.out, options.seeds)


if __name__ == "__main__":
    main()
