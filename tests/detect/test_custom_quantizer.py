"""A quantizer from a module outside the package works in every command."""

import torch
from support import custom_quantizer
from support.custom_quantizer import IMAGES
from support.detect.sweeps import sweep_arguments

from ssql_det.backbones import build_backbone
from ssql_det.cli.main import main
from ssql_det.convert import Checkpoint, identify_architecture, write_checkpoint
from ssql_det.core import rows
from ssql_det.quant import Quantization, parse_bit_widths


def sums(quantization):
    return torch.stack([quantization[point].observer.sums for point in quantization.points if not point.is_weight])


def test_a_custom_quantizer_is_calibrated_saved_and_loaded(tmp_path):
    quantization = custom_quantizer.calibrated(IMAGES.split(2))
    quantization.save(tmp_path / "q.safetensors")
    again = Quantization.load(tmp_path / "q.safetensors", quantization.model)
    assert str(again.scheme) == "act=sigmas"  # three is its default
    for bits in parse_bit_widths("8,4,2w4a"):
        with quantization.at(bits):
            expected = quantization.model(IMAGES)
        with again.at(bits):
            assert torch.equal(again.model(IMAGES), expected)


def test_two_processes_equal_one(in_process, tmp_path):
    log, work = tmp_path / "log", "support.custom_quantizer:calibrate_share"
    ended = in_process([tmp_path], log, work=work, processes=2, seconds=120)
    assert ended["status"] == 0, log.read_text()
    whole = custom_quantizer.calibrated(IMAGES.split(1))
    for rank in range(2):
        half = Quantization.load(tmp_path / f"{rank}.safetensors", custom_quantizer.network())
        torch.testing.assert_close(sums(half), sums(whole), rtol=1e-12, atol=1e-12)


def test_a_custom_quantizer_is_swept_plotted_and_tabulated(whole_sweep, learned, tmp_path, capsys):
    out = tmp_path / "sweep"
    main(sweep_arguments(learned, out, "--scheme", custom_quantizer.SCHEME, bits="FP,4"))
    minmax, (whole, _, plain) = whole_sweep
    found = rows.read_rows(out / "results.jsonl")
    assert {row.scheme for row in found} == {"act=sigmas"}
    assert found[0].metrics == whole.metrics  # full precision
    assert found[1].metrics != plain.metrics
    capsys.readouterr()
    both = [str(each / "results.jsonl") for each in (out, minmax)]
    main(["tables", "--table", "6", "--rows", *both, "--dataset", "toy_voc_2007_test"])
    page = capsys.readouterr().out
    assert "act=sigmas" in page
    assert "minmax" in page


def test_a_custom_quantizer_is_probed(toy, tmp_path):
    torch.manual_seed(0)
    backbone = build_backbone("narrow_resnet").module
    write_checkpoint(Checkpoint(identify_architecture(backbone), backbone.state_dict()), tmp_path / "b.pth", "ssql_det")
    given = ["--checkpoint", str(tmp_path / "b.pth"), "--data", str(toy / "crops"), "--scheme", custom_quantizer.SCHEME]
    main(["probe", "knn", *given, "--bits", "FP,4", "--out", str(tmp_path / "rows.jsonl")])
    assert {row.scheme for row in rows.read_rows(tmp_path / "rows.jsonl")} == {"act=sigmas"}
