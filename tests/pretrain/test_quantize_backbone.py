"""``ssql-det quantize --checkpoint``: a backbone's file, which resumes and which probes use."""

import pytest
import torch
from support.detect.training_runs import StoppedError
from support.refusals import refused

from ssql_det.backbones import build_backbone
from ssql_det.cli.main import main
from ssql_det.core import rows
from ssql_det.core.rows import Calibration
from ssql_det.pretrain import quantize_backbone as module
from ssql_det.pretrain.data import open_images
from ssql_det.pretrain.features import choose_indices
from ssql_det.quant import Bits, Quantization

pytestmark = pytest.mark.usefixtures("logging_as_it_was")
SCHEME = "weight=brecq:5, act=lsq, norms=matched, tune=3"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("backbone") / "backbone.pth"
    torch.save(build_backbone("narrow_resnet").module.state_dict(), path)
    return path


def quantize_arguments(checkpoint, toy, out, *flags, scheme=SCHEME):
    roles = ["--calib-images", "6", "--reconstruction-images", "8"]
    given = ["quantize", "--checkpoint", str(checkpoint), "--data", f"{toy}/crops", "--device", "cpu", "--size", "48"]
    return [*given, "--bits", "3", "--scheme", scheme, *roles, "--out", str(out), *flags]


def probe_arguments(checkpoint, toy, out, *flags, bits="FP,3"):
    given = ["probe", "knn", "--checkpoint", str(checkpoint), "--data", f"{toy}/crops", "--device", "cpu"]
    return [*given, "--size", "48", "--bits", bits, "--out", str(out), *flags]


def test_a_probe_uses_the_file_of_a_resumed_run(checkpoint, toy, monkeypatch, capsys, tmp_path):
    path, before = tmp_path / "q.safetensors", checkpoint.read_bytes()
    main(quantize_arguments(checkpoint, toy, path))
    save, saved = Quantization.save, []

    def save_and_stop(self, path):
        save(self, path)
        saved.append(path)
        if len(saved) == 3:  # behind the second block
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(Quantization, "save", save_and_stop)
        with pytest.raises(SystemExit):
            main(quantize_arguments(checkpoint, toy, tmp_path / "stopped.safetensors"))
    main(quantize_arguments(checkpoint, toy, tmp_path / "stopped.safetensors"))
    assert (tmp_path / "stopped.safetensors").read_bytes() == path.read_bytes()
    assert checkpoint.read_bytes() == before

    main(probe_arguments(checkpoint, toy, tmp_path / "rows.jsonl", "--quantization", str(path)))
    main(probe_arguments(checkpoint, toy, tmp_path / "plain.jsonl"))
    fp, three = rows.read_rows(tmp_path / "rows.jsonl")
    plain_fp, plain_three = rows.read_rows(tmp_path / "plain.jsonl")
    assert fp.metrics == plain_fp.metrics
    assert three.metrics["MB"] > plain_three.metrics["MB"]  # with norms of its own
    for row in (fp, three):
        assert row.scheme == SCHEME
        assert row.calibration == Calibration(6, 0, plain_fp.calibration.data, reconstruction_images=8)

    out = tmp_path / "none.jsonl"
    reasons = {
        ("--bits", "2"): "needs rounding, which was not learned at 2w2a (learned at: 3w3a)",
        ("--scheme", "minmax"): f"has scheme {SCHEME}, not minmax",
        ("--calib-images", "7"): "--calib-images is 7, but",
    }
    for flags, reason in reasons.items():
        assert reason in refused(capsys, *probe_arguments(checkpoint, toy, out, "--quantization", str(path), *flags))
    torch.save(build_backbone("narrow_resnet").module.state_dict(), tmp_path / "other.pth")
    other = probe_arguments(tmp_path / "other.pth", toy, out, "--quantization", str(path))
    assert "was calibrated on other weights of this model" in refused(capsys, *other)
    assert not out.exists()


def test_roles_take_one_permutation_of_the_training_images_in_turn(toy):
    images = open_images(f"{toy}/crops", "train")
    order = choose_indices(images, seed=3)
    indices = module._choose_role_indices(images, Calibration(4, 3, "", 6, 5))
    assert indices == {"calibration": order[:4], "reconstruction": order[4:10], "selection": order[10:15]}


def test_the_loss_of_tuning_is_the_relative_error_of_the_features():
    torch.manual_seed(0)
    backbone = build_backbone("narrow_resnet").module.eval()
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    data = module.make_repair_data(backbone, [], pixels, module.IMAGENET)
    assert data.tuning_loss(backbone, 0) == 0
    loss = data.tuning_loss(lambda x: backbone(x) * 1.5, 0)
    assert loss.item() == pytest.approx(0.25, rel=1e-5)
    assert [len(batch) for batch in data.reconstruction] == [1] * 5


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--calib-images", "900"), "images, but the roles need more (calibration 900, reconstruction 8, selection 0)"),
        (("--reconstruction-images", "0"), "weight=brecq:5 needs images for reconstruction"),
        (("--scope", "all"), "--scope needs --config-file, of a detector; leave it out"),
        (("MODEL.WEIGHTS", "w.pth"), "a backbone has no config, but MODEL.WEIGHTS is given"),
        (("--config-file", "toy_voc_narrow_c4"), "needs either --config-file, of a detector, or --checkpoint"),
    ],
)
def test_mistakes_are_refused(flags, reason, checkpoint, toy, capsys, tmp_path):
    assert reason in refused(capsys, *quantize_arguments(checkpoint, toy, tmp_path / "q.safetensors", *flags))
    assert not list(tmp_path.iterdir())


def test_a_scheme_of_norms_needs_no_images_for_reconstruction(checkpoint, toy, tmp_path):
    path = tmp_path / "q.safetensors"
    main(quantize_arguments(checkpoint, toy, path, "--reconstruction-images", "0", scheme="norms=matched"))
    quantization = Quantization.load(path, build_backbone_with(checkpoint))
    assert not quantization.list_missing_repairs(Bits(3, 3))


def test_errors_are_weighted_by_the_loss_of_the_features(checkpoint, toy, caplog, tmp_path):
    scheme, files = "act=lsq, weight=", [tmp_path / "plain.safetensors", tmp_path / "weighted.safetensors"]
    with caplog.at_level("INFO", logger="ssql_det"):
        for name, path in zip(("brecq:3", "brecq-fisher:3"), files, strict=True):
            main(quantize_arguments(checkpoint, toy, path, scheme=scheme + name))
    assert "without weights" not in caplog.text
    plain, weighted = (Quantization.load(path, build_backbone_with(checkpoint)) for path in files)
    states = [each.repairs["3w3a"].collect_state() for each in (plain, weighted)]
    integers = [key for key in states[0] if "integers" in key]
    assert {*integers} == {key for key in states[1] if "integers" in key}
    assert not all(torch.equal(states[0][key], states[1][key]) for key in integers)


def build_backbone_with(checkpoint):
    backbone = build_backbone("narrow_resnet").module
    backbone.load_state_dict(torch.load(checkpoint, weights_only=True))
    return backbone
