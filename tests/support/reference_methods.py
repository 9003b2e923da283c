"""The networks of ``small_methods.py`` as plain functions of weights: no contexts, no hooks, no modules."""

import torch
import torch.nn.functional as F

from support.reference_quantizer import RangeRecorder, quantize_activation, quantize_weight


def batch_norm(x, weight=None, bias=None):
    over = [dim for dim in range(x.dim()) if dim != 1]
    x = (x - x.mean(over, keepdim=True)) / (x.var(over, unbiased=False, keepdim=True) + 1e-5).sqrt()
    shape = [1, -1] + [1] * (x.dim() - 2)
    return x if weight is None else x * weight.view(shape) + bias.view(shape)


class EncoderPass:
    """A forward pass of an encoder, from its weights: without ``bits`` float, which records ranges, else quantized.

    The projector is SimSiam's: three layers with norms. ``statistics`` has each norm's batch mean and variance.
    """

    last_norm = True  # whether the projector ends with a norm

    def __init__(self, weights, bits=None, ranges=None):
        self.weights = dict(weights)
        self.bits, self.statistics = bits, {}
        self.record = RangeRecorder()
        self.ranges = self.record.ranges if ranges is None else ranges

    def weight(self, path):
        weight = self.weights[f"{path}.weight"]
        if self.bits is None:
            return weight
        has_8_bits = path == "backbone.conv1" or path.startswith("projector")
        return quantize_weight(weight, 8 if has_8_bits else self.bits.weight)

    def act(self, point, x, bits=None):
        """The activation at a quantization point; ``bits`` are those of a point with a fixed bit-width."""
        if self.bits is None:
            return self.record(point, x)
        return quantize_activation(x, *self.ranges[point], bits or self.bits.act)

    def norm(self, path, x):
        over = [dim for dim in range(x.dim()) if dim != 1]
        self.statistics.setdefault(path, []).append((x.mean(over).detach(), x.var(over).detach()))
        return batch_norm(x, self.weights.get(f"{path}.weight"), self.weights.get(f"{path}.bias"))

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


class PassWithoutLastNorm(EncoderPass):
    """With BYOL's default projector, which has no norm at its end."""

    last_norm = False


class ContrastivePass(EncoderPass):
    """With the projector of MoCo v2 and SimCLR: two layers without norms; its output is normalized to length 1."""

    def projector(self, x):
        x = F.relu(x @ self.weight("projector.0").T + self.weights["projector.0.bias"])
        x = x @ self.weight("projector.2").T + self.weights["projector.2.bias"]
        return x / x.square().sum(1, keepdim=True).sqrt()


def predict(predictor, z):
    """The output of a predictor, which is never quantized."""
    weights = dict(predictor.named_parameters())
    z = F.relu(batch_norm(z @ weights["0.weight"].T, weights["1.weight"], weights["1.bias"]))
    return z @ weights["3.weight"].T + weights["3.bias"]


def cosine_similarity(one, other):
    return (one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1))


def cosine_loss(method, encoded, targets):
    """The negative cosine similarity of each view's prediction and the other view's target, averaged."""
    first, second = (predict(method.predictor, each) for each in encoded)
    return -(cosine_similarity(first, targets[1]).mean() + cosine_similarity(second, targets[0]).mean()) / 2


def expected_statistics(passes, path):
    """A norm's running mean and variance, and its number of batches, after these passes in this order."""
    mean, variance = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    batches = [each for encoder_pass in passes for each in encoder_pass.statistics[path]]
    for batch_mean, batch_variance in batches:
        mean, variance = 0.9 * mean + 0.1 * batch_mean, 0.9 * variance + 0.1 * batch_variance
    return mean, variance, len(batches)
