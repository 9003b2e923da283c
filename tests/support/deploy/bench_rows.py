"""Rows of a bench."""

from ssql_det.deploy.bench import BenchCase, BenchRow, BenchSetting, Measurement
from ssql_det.deploy.cpu import CPU

SETTING = BenchSetting(
    checkpoint="model_final.pth",
    checkpoint_hash="ab",
    config="c4.yaml SEED 1",
    engine="minid2",
    scheme="placement=integer",
    scope="all",
    image="000501.jpg",
    size=(480, 640),
    threads=2,
    rounds=3,
    cpu=CPU("EPYC", ("avx2", "avx512_vnni")),
    versions={"onnxruntime": "1.32.0"},
)


def make_bench_rows(folder):
    """Those of torch and of a file of 1,500 bytes in onnxruntime."""
    file = folder / "detector.onnx"
    file.write_bytes(bytes(1500))
    cases = [BenchCase("torch", "FP", folder), BenchCase("onnxruntime", "4w8a", file, 0.9876)]
    measured = [Measurement([0.5, 0.3, 0.4], 2_000_000_000, 21), Measurement([0.1, 0.125, 0.2], 90_000_000, 20)]
    return [BenchRow.make(*each, SETTING) for each in zip(cases, measured, strict=True)]
