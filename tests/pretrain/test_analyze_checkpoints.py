"""The analysis of checkpoints: terms against the losses of the methods, heads as trained, t-SNE, errors."""

import csv
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.convert.checkpoints import write_checkpoint_file
from support.refusals import refused

import ssql_det
from ssql_det.analyze.analysis import BACKBONE, LOSS
from ssql_det.cli.main import main
from ssql_det.convert import IMAGENET
from ssql_det.convert.metadata import METADATA_KEY
from ssql_det.pretrain.analyze_checkpoints import (
    AnalysisSettings,
    analyze_checkpoints,
    embed_features,
    make_view_pairs,
    measure_terms,
    name_checkpoints,
)
from ssql_det.pretrain.checkpoint import TrainingState, read_pretrained_method
from ssql_det.pretrain.config import build_metadata, build_network, read_config
from ssql_det.pretrain.data import open_images
from ssql_det.quant import Quantization, Scheme, parse_bit_widths
from ssql_det.ssl import encoder_quant_points
from ssql_det.ssl.augmentations import build_augmentation

MINI = Path(ssql_det.__file__).parents[1] / "configs" / "pretrain" / "mini.yaml"
METHODS = {
    "simsiam": [],
    "simsiam alone": ["SSQL.ENABLED", "False"],
    "byol": ["BYOL.MOMENTUM", "0.5"],
    "byol with a last norm": ["BYOL.LAST_NORM", "True"],
    "moco": ["MOCO.QUEUE", "64"],
    "simclr": [],
}
PLAN = AnalysisSettings(
    tuple(parse_bit_widths("FP,8,4,2w4a")), 12, 12, 30, 0, "cpu", num_calibration_images=16, image_size=16
)
FEW_WIDTHS = PLAN.bit_widths[::3]  # FP and the fewest bits
RE_ESTIMATED = Scheme(norms="re-estimated")

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("logging_as_it_was")]


def save_method(folder, kind="simsiam"):
    """A method with random norm weights and statistics, and the path of its checkpoint."""
    state = build_state(kind)
    return state.method, str(state.save(folder, steps=1))


@cache
def build_state(kind):
    torch.manual_seed(0)
    method = kind.split()[0]
    sizes = [f"{method.upper()}.DIM", "16", f"{method.upper()}.HIDDEN", "8"]
    cfg = read_config(MINI, ["METHOD", method, *sizes, *METHODS[kind]])
    network, _ = build_network(cfg)
    method = getattr(network, "method", network)
    with torch.no_grad():
        for name, tensor in method.state_dict().items():
            if name.endswith("running_mean") or (tensor.is_floating_point() and tensor.ndim == 1):
                tensor.add_(0.2 * torch.randn(tensor.shape).abs())
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    return TrainingState(method.eval(), cfg.backbone, optimizer, build_metadata(cfg))


@pytest.fixture
def views():
    generator = torch.Generator().manual_seed(1)
    return [[torch.randn(count, 3, 16, 16, generator=generator) for _ in range(2)] for count in (5, 3)]


def open_test_images(toy):
    return open_images(str(toy / "crops"), "val")


@pytest.mark.parametrize("kind", METHODS)
def test_heads_are_read_as_they_were_trained(kind, views, tmp_path):
    method, path = save_method(tmp_path, kind)
    trained, view = read_pretrained_method(path), views[0][0]
    assert trained.has_heads
    with torch.no_grad():
        encoded = method.encoder(view)
        assert torch.equal(trained.encoder(view), encoded)
        predicted = method.predictor(encoded) if hasattr(method, "predictor") else encoded
        assert torch.equal(trained.predictor(trained.encoder(view)), predicted)
        target = method.momentum(view) if hasattr(method, "momentum") else encoded
        assert torch.equal(trained.target(view), target)
    assert not any(module.training for module in trained.encoder.modules())


@pytest.mark.parametrize("kind", ["simsiam", "byol"])
def test_loss_terms_equal_the_losses_of_the_method(kind, views, tmp_path):
    method, path = save_method(tmp_path, kind)
    batch = [torch.cat(view) for view in zip(*views, strict=True)]
    quantization = Quantization(method.encoder, encoder_quant_points(method.encoder))
    _, found = measure_terms(read_pretrained_method(path), views, PLAN.bit_widths, Scheme())
    with torch.no_grad():
        with quantization.observing():
            encoded = method.encode(batch)
        targets = [method.momentum(view) for view in batch] if kind == "byol" else encoded
        for bits in PLAN.bit_widths:
            with quantization.at(bits):
                loss = float(method.loss(method.encode(batch), targets))
            terms = found.terms[bits]
            assert terms.total / 2 - 1 == pytest.approx(loss, abs=1e-5)
            assert terms.contrastive / 2 - 1 == pytest.approx(float(method.loss(encoded, targets)), abs=1e-5)


def test_backbone_terms_compare_the_two_views(views, tmp_path):
    method, path = save_method(tmp_path)
    found, _ = measure_terms(read_pretrained_method(path), views, PLAN.bit_widths, Scheme())
    batch = [torch.cat(view) for view in zip(*views, strict=True)]
    quantization = Quantization(method.encoder, encoder_quant_points(method.encoder))
    with torch.no_grad():
        with quantization.observing():
            full = [F.normalize(method.encoder.backbone(view), dim=1) for view in batch]
        with quantization.at(PLAN.bit_widths[-1]):
            quantized = [F.normalize(method.encoder.backbone(view), dim=1) for view in batch]
    terms = found.terms[PLAN.bit_widths[-1]]
    moved = [(one - other).square().sum(1).mean() for one, other in zip(quantized, full, strict=True)]
    distances = [(one - other).square().sum(1).mean() for one, other in zip(quantized, full[::-1], strict=True)]
    assert terms.quantization == pytest.approx(float(sum(moved)) / 2, rel=1e-4)
    assert terms.total == pytest.approx(float(sum(distances)) / 2, rel=1e-4)


@pytest.mark.parametrize("kind", METHODS)
def test_terms_of_real_features_add_up_at_every_width(kind, views, tmp_path):
    found = measure_terms(read_pretrained_method(save_method(tmp_path, kind)[1]), views, PLAN.bit_widths, Scheme())
    assert [each.kind for each in found] == [BACKBONE, LOSS]
    for each in found:
        assert 0 < each.spread < 2
        assert list(each.terms) == list(PLAN.bit_widths)
        for terms in each.terms.values():
            assert terms.quantization + terms.contrastive + terms.cross == pytest.approx(terms.total, rel=1e-12)
        full, *quantized = each.terms.values()
        assert (full.quantization, full.cross) == (0, 0)
        moved = [terms.quantization for terms in quantized]
        assert 0 < moved[0] < moved[1] < moved[2]
        assert {terms.contrastive for terms in quantized} == {full.contrastive}


@pytest.mark.parametrize("kind", ["simsiam", "byol"])
def test_norms_are_re_estimated_on_the_views(kind, views, tmp_path):
    """So wrong statistics of the training do not matter, and the terms still add up."""
    trained = read_pretrained_method(save_method(tmp_path, kind)[1])
    first = measure_terms(trained, views, FEW_WIDTHS, RE_ESTIMATED)
    before = trained.encoder.backbone.bn1.running_mean.clone()
    for module in {*trained.encoder.modules(), *trained.target.modules()}:
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            module.running_mean += 1
    second = measure_terms(trained, views, FEW_WIDTHS, RE_ESTIMATED)
    assert second == first
    assert torch.equal(trained.encoder.backbone.bn1.running_mean, before + 1)
    assert measure_terms(trained, views, FEW_WIDTHS, Scheme()) != first
    for each in first:
        assert (each.terms[PLAN.bit_widths[0]].quantization, each.terms[PLAN.bit_widths[0]].cross) == (0, 0)
        for terms in each.terms.values():
            assert terms.quantization + terms.contrastive + terms.cross == pytest.approx(terms.total, rel=1e-12)


def test_a_checkpoint_of_another_project_has_backbone_terms_only(toy, tmp_path):
    path, _ = write_checkpoint_file("MoCo v2", "resnet18", tmp_path)
    own = save_method(tmp_path / "ssql")[1]
    foreign, ours = analyze_checkpoints([str(path), own], str(toy / "crops"), replace(PLAN, bit_widths=FEW_WIDTHS))
    assert (foreign.name, foreign.method, foreign.architecture) == ("file", "moco", "resnet18")
    assert [each.kind for each in foreign.terms] == [BACKBONE]
    assert foreign.protocol == "crops, imagenet at 16 px, minmax"
    assert (ours.name, ours.method, ours.protocol, ours.pairs) == ("ssql", "SSQL", "crops, digits at 16 px, minmax", 12)
    assert len(foreign.layers) == 20
    assert len(ours.layers) == 12


def test_a_network_gets_the_input_format_that_it_was_trained_on(toy, tmp_path):
    """A network for BGR with equal weights has the same terms."""
    path = Path(save_method(tmp_path / "rgb")[1])
    content = torch.load(path)
    weight = content["online"]["conv1.weight"]
    content["online"]["conv1.weight"] = weight.flip(1).clone()
    content[METADATA_KEY]["input"] = vars(IMAGENET.flip_channels())
    (tmp_path / "bgr").mkdir()
    torch.save(content, tmp_path / "bgr" / "checkpoint.pth")
    rgb, bgr = analyze_checkpoints([str(path), str(tmp_path / "bgr" / "checkpoint.pth")], str(toy / "crops"), PLAN)
    for one, other in zip(rgb.terms, bgr.terms, strict=True):
        for bits in PLAN.bit_widths:
            assert vars(one.terms[bits]) == pytest.approx(vars(other.terms[bits]), abs=1e-3)


def test_views_depend_on_the_seed(toy):
    augmentation = build_augmentation("digits", 16)

    def draw_views(**changed):
        return [
            torch.cat(list(view))
            for view in zip(
                *make_view_pairs(open_test_images(toy), augmentation, replace(PLAN, **changed)), strict=True
            )
        ]

    first, second = draw_views()
    assert first.shape == (12, 3, 16, 16)
    assert not torch.equal(first, second)
    assert all(map(torch.equal, draw_views(), (first, second)))
    assert not torch.equal(draw_views(seed=1)[0], first)
    assert len(draw_views(num_pairs=1000)[0]) == len(open_test_images(toy))


def test_an_embedding_has_the_same_images_at_every_width(toy, tmp_path):
    backbone = read_pretrained_method(save_method(tmp_path)[1]).encoder.backbone
    train, augmentation = open_images(str(toy / "crops")), build_augmentation("digits", 16)
    found = embed_features(backbone, train, open_test_images(toy), augmentation, IMAGENET, PLAN)
    assert list(found.coordinates) == list(PLAN.bit_widths)
    full, near, _, far = found.coordinates.values()
    assert full.shape == (len(found.labels), 2)
    for image, label in zip(found.images, found.labels.tolist(), strict=True):
        assert (toy / "crops" / "test" / image).is_file()
        assert image.split("/")[0] == found.classes[label]
    assert (full - near).norm() < (full - far).norm()


def test_an_embedding_has_ten_classes_at_most(tmp_path):
    for split in ("train", "test"):
        for name in range(12):
            folder = tmp_path / "data" / split / f"{name:02d}"
            folder.mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (16, 16), (20 * name, 40 * number, 0)).save(folder / f"{number}.png")
    (found,) = analyze_checkpoints(
        [save_method(tmp_path)[1]], str(tmp_path / "data"), replace(PLAN, num_tsne_images=100)
    )
    assert sorted(set(found.embedding.labels.tolist())) == list(range(10))
    assert len(found.embedding.labels) == 20


def test_names_are_unique():
    paths = [
        "runs/SSQL 1/checkpoint.pth",
        "a/moco_v2_800ep.pth.tar",
        "b/ssql-1/checkpoint.pth",
        "c/ssql-1.pth",
        "é.pth",
    ]
    assert name_checkpoints(paths) == ["ssql-1", "moco-v2-800ep", "ssql-1-2", "ssql-1-3", "checkpoint"]


def test_the_command_writes_csv_files_pictures_and_a_report(toy, tmp_path, capsys):
    path, out = save_method(tmp_path / "ssql")[1], tmp_path / "out"
    few = ["--pairs", "8", "--points", "10", "--calib-images", "8", "--size", "16", "--bits", "FP,2w4a"]
    main(["analyze", "--checkpoints", path, path, "--data", str(toy / "crops"), "--out", str(out), *few])
    message = capsys.readouterr().out
    assert "Features compared by the loss" in message
    assert str(out / "report.html") in message
    assert {each.name for each in out.iterdir()} == {
        *("report.html", "report.md", "terms.csv", "weights.csv", "tsne.csv", "tsne_ssql.png", "tsne_ssql-2.png"),
        *("quantization-backbone.svg", "quantization-loss.svg"),
    }
    terms = list(csv.DictReader((out / "terms.csv").open()))
    assert [each["total"] for each in terms[:4]] == [each["total"] for each in terms[4:]]


def test_a_scheme_reaches_the_report_and_all_numbers(toy, tmp_path):
    path, schemes = save_method(tmp_path / "ssql")[1], ("minmax", "weight=centred, act=mse, norms=re-estimated")
    few = ["--pairs", "8", "--points", "10", "--calib-images", "8", "--size", "16", "--bits", "FP,2w4a"]
    names, found = ("terms", "weights", "tsne"), []
    for number, scheme in enumerate(schemes):
        out = tmp_path / str(number)
        given = ["analyze", "--checkpoints", path, "--data", str(toy / "crops"), "--out", str(out), *few]
        main([*given, "--scheme", scheme])
        assert f"crops, digits at 16 px, {scheme} |" in (out / "report.md").read_text()
        assert f"crops, digits at 16 px, {scheme}<" in (out / "report.html").read_text()
        found.append([list(csv.DictReader((out / f"{name}.csv").open())) for name in names])
    terms, weights, points = (list(zip(*tables, strict=True)) for tables in zip(*found, strict=True))
    for published, other in weights:
        assert float(other["error at 2w4a"]) < float(published["error at 2w4a"])  # whose scale minimizes the error
    assert all(published["total"] != other["total"] for published, other in terms)
    moved = {published["x"] != other["x"] for published, other in points if published["bits"] != "FP"}
    assert moved == {True}  # the float features stay where they are


@pytest.fixture
def broken(tmp_path):
    """Makes a checkpoint whose heads were changed by a function."""

    def write(change):
        path = Path(save_method(tmp_path)[1])
        content = torch.load(path)
        content["heads"] = change(content["heads"]) or content["heads"]
        torch.save(content, path)
        return str(path)

    return write


FIRST = "encoder.projector.0.weight"
FAULTS = {
    "of another shape": lambda heads: heads.update({FIRST: torch.zeros(3, 3)}),
    "gone": lambda heads: heads.__delitem__("encoder.projector.3.weight"),
    "no tensor": lambda heads: heads.update({FIRST: "weights"}),
    "no number": lambda heads: heads.update({FIRST: heads[FIRST] * float("nan")}),
    "spread": lambda heads: heads.update({FIRST: torch.zeros(1).expand(1 << 15, 1 << 15)}),
    "of odd names": lambda heads: heads.update({"predictor.x.weight": torch.zeros(2, 2)}),
    "a list": lambda heads: [1, 2],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_heads_are_refused(fault, broken, toy, capsys):
    path = broken(FAULTS[fault])
    line = refused(capsys, "analyze", "--checkpoints", path, "--data", str(toy / "crops"))
    assert f"{path}: invalid projector or predictor" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "FILE"], "is a file; name a folder"),
        (["--checkpoints", "OWN", "gone.pth"], "there is no file gone.pth"),
        (["--data", "FLAT"], "no 'val' split"),
        (["--data", "UNNAMED"], "has no labels"),
        (["--recipe", "digit"], "did you mean 'digits'?"),
        (["--points", "3"], "t-SNE needs at least 10 images, got 3"),
        (["--bits", "99"], "got 99"),
        (
            ["--pairs", "1", "--scheme", "norms=re-estimated"],
            "norms=re-estimated needs --pairs and --calib-images of at least 2",
        ),
        (["--scheme", "mze"], "unknown weight quantizer 'mze'; did you mean 'mse'?"),
        (["--scheme", "norms=frozen"], "unknown norms 'frozen'"),
        (["--device", "tpu"], "--device 'tpu' is not available"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_sentence(options, message, toy, tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    flat, unnamed = tmp_path / "flat", tmp_path / "unnamed"
    for folder in (flat, unnamed / "train" / "deep" / "er", unnamed / "val" / "deep" / "er"):
        folder.mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(folder / "a.png")
    places = {"FILE": tmp_path / "file", "OWN": save_method(tmp_path)[1], "FLAT": flat, "UNNAMED": unnamed}
    given = {"--checkpoints": ["OWN"], "--data": [str(toy / "crops")], "--size": ["16"], "--out": [str(tmp_path / "o")]}
    given[options[0]] = options[1:]
    words = [word for option, values in given.items() for word in (option, *(str(places.get(v, v)) for v in values))]
    assert message in refused(capsys, "analyze", *words)
    assert (tmp_path / "file").read_text() == "kept"
    assert not (tmp_path / "o").exists()
