"""The linear probe: its schedules, its training by hand, its transforms against torchvision's, its command."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.refusals import refused
from torch import nn
from torchvision import transforms as v1

from ssql_det.backbones import build_backbone
from ssql_det.cli.main import main
from ssql_det.convert import IMAGENET, Metadata
from ssql_det.core import rows
from ssql_det.core.errors import UserError
from ssql_det.core.rng import seeded_rng
from ssql_det.pretrain.checkpoint import TrainingState
from ssql_det.pretrain.classifiers import (
    FAST,
    LinearProtocol,
    LinearTraining,
    init_layer,
    linear_accuracy,
    linear_accuracy_on_views,
    top1_accuracy,
    train_layer,
)
from ssql_det.pretrain.data import open_images
from ssql_det.pretrain.features import (
    AugmentedImages,
    cache_features,
    extract_features,
    load_labelled_images,
    stream_features,
)
from ssql_det.pretrain.probe_checkpoint import ProbeSettings, probe_checkpoint
from ssql_det.quant import Bits, Quantization
from ssql_det.ssl import SimSiam
from ssql_det.ssl.augmentations import build_augmentation

PUBLISHED = LinearProtocol("published")
SHORT = LinearTraining("SGD", 30.0, 512, 5, (0.6, 0.8))

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("logging_as_it_was")]


def random_features(count=70, width=6, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, width, generator=generator, dtype=torch.float64)
    return features, torch.randint(classes, (count,), generator=generator)


def as_source(features):
    return lambda batches: (features[indices] for _, indices in batches)


def set_to_zero(layer):
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


# ---- the training --------------------------------------------------------------------------------------------------


def test_the_published_schedules():
    cifar = PUBLISHED.build_training(build_augmentation("cifar"), 512)
    assert (cifar.optimizer, cifar.batch_size, cifar.epochs) == ("SGD", 512, 100)
    assert [cifar.lr_at(epoch) for epoch in range(100)] == pytest.approx([30.0] * 60 + [3.0] * 20 + [0.3] * 20)
    assert cifar == FAST == LinearProtocol().build_training(build_augmentation("imagenet"), 2048)
    for width, rate in ((512, 0.8), (2048, 2.4)):
        imagenet = PUBLISHED.build_training(build_augmentation("imagenet"), width)
        assert (imagenet.optimizer, imagenet.batch_size, imagenet.epochs) == ("LARS", 2048, 60)
        expected = [0.5 * rate * (1 + math.cos(math.pi * epoch / 60)) for epoch in range(60)]
        assert [imagenet.lr_at(epoch) for epoch in range(60)] == pytest.approx(expected)


def test_another_batch_size_and_fewer_epochs_scale_the_schedule():
    training = LinearProtocol("published", epochs=10, batch_size=128).build_training(build_augmentation("cifar"), 512)
    rates = [training.lr_at(epoch) for epoch in range(10)]
    assert rates == pytest.approx([7.5] * 6 + [0.75] * 2 + [0.075] * 2)
    assert training.batch_size == 128


@pytest.mark.parametrize("batch", [16, 512])
def test_training_a_layer_equals_training_by_hand(batch):
    """Softmax, momentum and rates in NumPy; 70 images in batches of 16 leave a smaller one, which is used too."""
    features, labels = random_features()
    layer = init_layer(6, 3).double()
    weight = np.concatenate([layer.weight.detach().numpy(), layer.bias.detach().numpy()[:, None]], axis=1)
    train_layer(layer, as_source(features), labels, LinearTraining("SGD", 0.9, batch, 5, (0.6, 0.8)), seed=3)

    velocity, generator, size = np.zeros_like(weight), torch.Generator().manual_seed(3), min(batch, 70)
    for rate in (0.9, 0.9, 0.9, 0.09, 0.009):
        order = torch.randperm(70, generator=generator).numpy()
        for start in range(0, 70, size):
            part = order[start : start + size]
            points = np.concatenate([features.numpy()[part], np.ones((len(part), 1))], axis=1)
            scores = np.exp(points @ weight.T)
            errors = scores / scores.sum(1, keepdims=True) - np.eye(3)[labels.numpy()[part]]
            velocity = 0.9 * velocity + errors.T @ points / len(part)
            weight = weight - rate * size / batch * velocity
    np.testing.assert_allclose(layer.weight.detach().numpy(), weight[:, :-1], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(layer.bias.detach().numpy(), weight[:, -1], rtol=1e-9, atol=1e-12)


def test_the_fast_protocol_equals_torchs_schedule_bit_for_bit():
    features, labels = (each.float() if each.is_floating_point() else each for each in random_features(700))
    layer = set_to_zero(init_layer(6, 3))
    train_layer(layer, as_source(features), labels, FAST)

    weight, bias = torch.zeros(3, 6, requires_grad=True), torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], lr=30.0, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, (60, 80), 0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        for part in torch.randperm(700, generator=generator).split(512):
            optimizer.zero_grad()
            F.cross_entropy(F.linear(features[part], weight, bias), labels[part]).backward()
            optimizer.step()
        schedule.step()
    assert torch.equal(layer.weight, weight)
    assert torch.equal(layer.bias, bias)


def test_lars_learns_and_adapts_the_bias_as_published():
    features, labels = random_features(200, classes=2)
    features[:, 0] += 8 * labels
    layer = init_layer(6, 2).double()
    train_layer(layer, as_source(features), labels, LinearTraining("LARS", 30.0, 50, 60))
    assert top1_accuracy(layer, features, labels) > 95

    layer = init_layer(6, 2).double()
    before = layer.bias.detach().clone()
    train_layer(layer, as_source(features), labels, LinearTraining("LARS", 1.0, 200, 1))
    assert (layer.bias.detach() - before).norm() == pytest.approx(0.001 * before.norm())


def test_a_trained_layer_depends_on_the_seed_alone():
    features, labels = random_features()
    ends = []
    for seed in (1, 1, 2):
        torch.rand(3)  # whatever the global generators did before
        layer = init_layer(6, 3, seed).double()
        train_layer(layer, as_source(features), labels, SHORT, seed)
        ends.append(layer.weight.detach())
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


# ---- the views -----------------------------------------------------------------------------------------------------


def build_v1_transforms(name):
    """The published program's transforms, in torchvision's first version of them."""
    if name == "cifar":
        crop = v1.RandomResizedCrop(32, (0.8, 1.0), (3 / 4, 4 / 3), interpolation=Image.BICUBIC)
        plain = v1.Compose([v1.Resize(int(32 * (8 / 7)), interpolation=Image.BICUBIC), v1.CenterCrop(32)])
    else:
        crop, plain = v1.RandomResizedCrop(224), v1.Compose([v1.Resize(256), v1.CenterCrop(224)])
    return v1.Compose([crop, v1.RandomHorizontalFlip(), v1.PILToTensor()]), v1.Compose([plain, v1.PILToTensor()])


@pytest.mark.filterwarnings("ignore:Argument 'interpolation'")
@pytest.mark.parametrize("name", ["cifar", "imagenet"])
def test_the_published_transforms_equal_those_of_its_program(name):
    size = (40, 32) if name == "cifar" else (300, 280)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    image_transform, test_transform = build_v1_transforms(name)
    ours = PUBLISHED.adapt_augmentation(build_augmentation(name))
    for seed in range(8):
        with seeded_rng(seed):
            expected = image_transform(image)
        with seeded_rng(seed):
            assert torch.equal(ours.image_transform(image), expected)
    assert torch.equal(ours.test_transform(image), test_transform(image))


def test_digits_are_not_flipped():
    """A ramp that gets lighter to the right does so in every view."""
    ramp = Image.fromarray(np.tile(np.arange(0, 256, 8, dtype=np.uint8)[None, :, None], (32, 1, 3)))
    transform = PUBLISHED.adapt_augmentation(build_augmentation("digits")).image_transform
    for seed in range(20):
        with seeded_rng(seed):
            view = transform(ramp).int()
        assert (view[..., -1] > view[..., 0]).all()


def test_the_fast_protocol_does_not_change_the_augmentation():
    assert LinearProtocol().adapt_augmentation(build_augmentation("cifar", 16)).test_transform is not None
    augmentation = build_augmentation("cifar")
    assert LinearProtocol().adapt_augmentation(augmentation) is augmentation


@pytest.fixture(scope="module")
def crops(toy):
    return open_images(str(toy / "crops"))


def augment(crops, indices=None, seed=0, workers=0, transform=None):
    transform = transform or PUBLISHED.adapt_augmentation(build_augmentation("digits", 16)).image_transform
    return AugmentedImages(crops, range(len(crops)) if indices is None else indices, transform, seed, workers)


def load_views(augmented, *batches):
    return list(augmented.views([(epoch, torch.tensor(indices)) for epoch, indices in batches]))


def test_a_view_depends_on_the_seed_the_image_and_the_epoch_alone(crops):
    first, second, other = load_views(augment(crops), (0, [3, 4, 5]), (0, [5]), (1, [5]))
    assert (first.shape, first.dtype) == ((3, 3, 16, 16), torch.uint8)
    assert torch.equal(first[2:], second)
    assert not torch.equal(second, other)
    (of_few,) = load_views(augment(crops, indices=[9, 5]), (1, [1]))
    assert torch.equal(of_few, other)
    (of_another_seed,) = load_views(augment(crops, seed=1), (1, [5]))
    assert not torch.equal(of_another_seed, other)
    assert all(map(torch.equal, load_views(augment(crops, workers=2), (0, [3, 4, 5]), (1, [5])), [first, other]))
    assert augment(crops, indices=[9, 5]).labels.tolist() == [crops.labels[9], crops.labels[5]]


def test_a_bad_image_is_named_with_and_without_workers(crops, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    files = (*crops.files[:3], str(bad))
    broken = replace(crops, files=files, read=lambda index: Image.open(files[index]).convert("RGB"))
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"^\S*bad\.png cannot be read .*; repair or remove it$"):
            load_views(augment(broken, workers=workers), (0, [1, 3]))


# ---- fast and published --------------------------------------------------------------------------------------------


class UnitFeatures(nn.Module):
    """A backbone whose features all have a norm of 1, so that the fast probe has nothing to scale."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.network = build_backbone("narrow_resnet").module

    def forward(self, images):
        return F.normalize(self.network(images), dim=1)


@pytest.fixture
def frozen(crops):
    """A quantized backbone, and crops after the test transform."""
    backbone, augmentation = UnitFeatures().eval(), build_augmentation("digits", 16)
    images = load_labelled_images(crops, augmentation)
    quantization = Quantization(backbone.network)
    quantization.calibrate(list(images.batches(IMAGENET)))
    with quantization.at(Bits(4, 4)):
        yield backbone, images, augmentation


def test_fast_and_published_agree_without_augmentation(frozen, crops):
    backbone, images, augmentation = frozen
    features = extract_features(backbone, images.batches(IMAGENET))
    order = torch.randperm(len(crops), generator=torch.Generator().manual_seed(0)).tolist()
    seen = stream_features(backbone, augment(crops, indices=order, transform=augmentation.test_transform), IMAGENET)
    layers = [set_to_zero(init_layer(192, 10)) for _ in range(2)]
    for layer, source in zip(layers, (as_source(features), seen), strict=True):
        train_layer(layer, source, images.labels, SHORT)
    torch.testing.assert_close(layers[1].weight, layers[0].weight, rtol=1e-4, atol=1e-4)
    accuracy = linear_accuracy(features, images.labels, features, images.labels, SHORT)
    assert 20 < accuracy == top1_accuracy(layers[1], features, images.labels)


def test_a_cached_view_for_each_epoch_equals_the_published_probe(frozen, crops):
    backbone, _, _ = frozen
    augmented = augment(crops)
    weights = []
    for seen in (
        stream_features(backbone, augmented, IMAGENET),
        *(cache_features(backbone, augmented, IMAGENET, n) for n in (5, 2)),
    ):
        layer = init_layer(192, 10)
        train_layer(layer, seen, augmented.labels, SHORT)
        weights.append(layer.weight.detach())
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-4)
    assert (weights[2] - weights[0]).abs().max() > 0.005  # the views of epochs 0 and 1 in epochs 2 and 3


def test_the_backbone_is_frozen_and_quantized(frozen, crops):
    backbone, _, _ = frozen
    backbone.train()  # whatever mode it is in
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    augmented = augment(crops)
    (found,) = stream_features(backbone, augmented, IMAGENET)(iter([(0, torch.arange(8))]))
    assert not found.requires_grad
    linear_accuracy_on_views(
        stream_features(backbone, augmented, IMAGENET), augmented.labels, found, augmented.labels[:8], SHORT
    )
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert all(module.training for module in backbone.modules())
    (full,) = stream_features(UnitFeatures().eval(), augmented, IMAGENET)(iter([(0, torch.arange(8))]))
    assert (found - full).abs().max() > 0.01


# ---- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Three classes of different colours, and a backbone of random weights."""
    folder = tmp_path_factory.mktemp("colours")
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for name, colour in (("red", (220, 30, 30)), ("green", (30, 220, 30)), ("blue", (30, 30, 220))):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(np.array(colour) + generator.integers(-25, 26, (16, 16, 3)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{index}.png")
    torch.manual_seed(0)
    method = SimSiam(build_backbone("narrow_resnet"), dim=16, hidden=8)
    optimizer = torch.optim.SGD(method.parameters(), lr=1)
    TrainingState(method, "narrow_resnet", optimizer, Metadata(IMAGENET, False, seed=3)).save(folder, 0)
    return folder


def given(colours, tmp_path, *more, kinds=("linear",), bits="FP,4w4a"):
    where = ["--checkpoint", str(colours / "checkpoint.pth"), "--data", str(colours), "--size", "16"]
    return ["probe", *kinds, *where, "--bits", bits, "--workers", "1", "--out", str(tmp_path / "rows.jsonl"), *more]


def accuracies(found):
    return [row.metrics["linear/top1"] for row in found]


@pytest.mark.parametrize("more", [(), ("--cached-views", "3")])
def test_easy_classes_are_classified_perfectly(more, colours, tmp_path):
    main(given(colours, tmp_path, "--protocol", "published", "--epochs", "20", *more))
    found = rows.read_rows(tmp_path / "rows.jsonl")
    assert accuracies(found) == [100, 100]
    layer = {"linear": "published", "optimizer": "SGD", "rate": 30.0, "batch": 512, "epochs": 20}
    views = {"cached_views": 3} if more else {}
    images = {"recipe": "digits", "size": 16, "train_images": 36, "val_images": 12}
    for row in found:
        assert row.protocol == {"probes": ["linear"], **layer, **views, **images}
        assert (row.network, row.config) == ("narrow_resnet", "")


def test_a_row_has_the_protocol_of_its_probes(colours, tmp_path):
    main(given(colours, tmp_path, "--protocol", "published", "--batch", "64", "--epochs", "2", kinds=("linear", "knn")))
    main(given(colours, tmp_path, kinds=("knn", "linear")))
    main(given(colours, tmp_path, kinds=("knn",)))
    first, second, third = [row.protocol for row in rows.read_rows(tmp_path / "rows.jsonl")][::2]
    images = {"recipe": "digits", "size": 16, "train_images": 36, "val_images": 12}
    published = {"linear": "published", "optimizer": "SGD", "rate": 3.75, "batch": 64, "epochs": 2}
    assert first == {"probes": ["linear", "knn"], **published, **images}
    fast = {"linear": "fast", "optimizer": "SGD", "rate": 30.0, "batch": 512, "epochs": 100}
    assert second == {"probes": ["knn", "linear"], **fast, **images}
    assert third == {"probes": ["knn"], **images}


def test_the_same_seed_gives_the_same_accuracies(toy, colours):
    settings = ProbeSettings(
        ("linear",), seed=4, device="cpu", workers=0, image_size=16, protocol=LinearProtocol("published", epochs=2)
    )
    file = str(colours / "checkpoint.pth")

    def measure(settings):
        return accuracies(probe_checkpoint(file, str(toy / "crops"), "FP,4w4a,2w4a", "digits", settings))

    first = measure(settings)
    assert first == measure(replace(settings, workers=2))
    assert first != measure(replace(settings, seed=5))
    fast, short = (measure(replace(settings, protocol=LinearProtocol(epochs=epochs))) for epochs in (None, 2))
    assert len({*map(tuple, (first, fast, short))}) == 3


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--cached-views", "2"), "--cached-views needs --protocol published"),
        (("--protocol", "publishd"), "argument --protocol: invalid choice: 'publishd'"),
        (("--epochs", "0"), "argument --epochs: '0' is not a whole number, 1 or more"),
        (("--batch", "-3"), "argument --batch: '-3' is not a whole number, 1 or more"),
        (
            ("--protocol", "published", "--cached-views", "400000"),
            "cached views take 10 GiB; use at most --cached-views",
        ),
    ],
    ids=str,
)
def test_a_mistake_is_one_sentence(more, said, colours, tmp_path, capsys):
    assert said in refused(capsys, *given(colours, tmp_path, *more))
    assert not (tmp_path / "rows.jsonl").exists()


def test_knn_has_no_protocol(colours, tmp_path, capsys):
    line = refused(capsys, *given(colours, tmp_path, "--protocol", "published", kinds=("knn",)))
    assert (
        line
        == "error: --protocol, --epochs, --batch and --cached-views need the linear probe: ssql-det probe linear ..."
    )
