"""The small methods' networks written out by hand: no contexts, no hooks, no modules."""

import torch
import torch.nn.functional as F

from support.reference_quantizer import RangeRecorder, quantize_activation, quantize_weight


def normed(x, weight=None, bias=None):
    over = [dim for dim in range(x.dim()) if dim != 1]
    x = (x - x.mean(over, keepdim=True)) / (x.var(over, unbiased=False, keepdim=True) + 1e-5).sqrt()
    shape = [1, -1] + [1] * (x.dim() - 2)
    return x if weight is None else x * weight.view(shape) + bias.view(shape)


class Pass:
    """One way through an encoder, by its weights: float, while ranges are seen, or quantized by them.

    The projector is SimSiam's: three layers with norms. Every norm's statistics are noted.
    """

    last_norm = True

    def __init__(self, weights, bits=None, ranges=None):
        self.weights = dict(weights)
        self.bits, self.statistics = bits, {}
        self.record = RangeRecorder()
        self.ranges = self.record.ranges if ranges is None else ranges

    def weight(self, path):
        weight = self.weights[f"{path}.weight"]
        if self.bits is None:
            return weight
        eight = path == "backbone.conv1" or path.startswith("projector")
        return quantize_weight(weight, 8 if eight else self.bits.weight)

    def act(self, place, x, bits=None):
        if self.bits is None:
            return self.record(place, x)
        return quantize_activation(x, *self.ranges[place], bits or self.bits.act)

    def norm(self, path, x):
        over = [dim for dim in range(x.dim()) if dim != 1]
        self.statistics.setdefault(path, []).append((x.mean(over).detach(), x.var(over).detach()))
        return normed(x, self.weights.get(f"{path}.weight"), self.weights.get(f"{path}.bias"))

    def backbone(self, x):
        x = F.relu(self.norm("backbone.bn1", F.conv2d(x, self.weight("backbone.conv1"), stride=2, padding=3)))
        x = F.max_pool2d(self.act("stem", x, 8), 3, 2, 1)
        for stage in range(1, 5):
            path, stride = f"backbone.layer{stage}.0", 1 if stage == 1 else 2
            y = F.conv2d(x, self.weight(f"{path}.conv1"), stride=stride, padding=1)
            y = self.act(f"{path}.conv2", F.relu(self.norm(f"{path}.bn1", y)))
            y = self.norm(f"{path}.bn2", F.conv2d(y, self.weight(f"{path}.conv2"), padding=1))
            if stage > 1:
                x = F.conv2d(x, self.weight(f"{path}.downsample.0"), stride=stride)
                x = self.norm(f"{path}.downsample.1", x)
            x = self.act(path, F.relu(y + x))
        return x.mean((2, 3))

    def projector(self, x):
        for layer in (0, 3):
            x = F.relu(self.norm(f"projector.{layer + 1}", x @ self.weight(f"projector.{layer}").T))
        x = x @ self.weight("projector.6").T
        return self.norm("projector.7", x) if self.last_norm else x + self.weights["projector.6.bias"]

    def encode(self, x):
        return self.projector(self.backbone(x))


class PlainPass(Pass):
    """The projector of BYOL alone: no norm at its end."""

    last_norm = False


class ContrastivePass(Pass):
    """The projector of MoCo v2 and SimCLR: two layers without norms; what comes out is of length 1."""

    def projector(self, x):
        x = F.relu(x @ self.weight("projector.0").T + self.weights["projector.0.bias"])
        x = x @ self.weight("projector.2").T + self.weights["projector.2.bias"]
        return x / x.square().sum(1, keepdim=True).sqrt()


def prediction(predictor, z):
    """A predictor's, whose weights are float."""
    weights = dict(predictor.named_parameters())
    z = F.relu(normed(z @ weights["0.weight"].T, weights["1.weight"], weights["1.bias"]))
    return z @ weights["3.weight"].T + weights["3.bias"]


def cosine(one, other):
    return (one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1))


def cosine_loss(method, encoded, targets):
    """Of each view's prediction against the other view's target."""
    first, second = (prediction(method.predictor, each) for each in encoded)
    return -(cosine(first, targets[1]).mean() + cosine(second, targets[0]).mean()) / 2


def statistics_after(passes, path):
    """A norm's running mean and variance, and how many batches it has seen, after these passes in this order."""
    mean, variance = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    seen = [each for way in passes for each in way.statistics[path]]
    for seen_mean, seen_variance in seen:
        mean, variance = 0.9 * mean + 0.1 * seen_mean, 0.9 * variance + 0.1 * seen_variance
    return mean, variance, len(seen)
