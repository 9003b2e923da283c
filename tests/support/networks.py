"""Small networks in the layouts that the quantization core must know."""

import torch
import torch.nn.functional as F
from torch import nn


class ConvNorm(nn.Conv2d):
    """Detectron2's way: the conv carries its norm."""

    def __init__(self, in_channels, out_channels, kernel_size, stride=1):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x):
        return self.norm(super().forward(x))


class D2Block(nn.Module):
    """A Detectron2-style bottleneck: functional in-place ReLU, ``shortcut`` may be ``None``."""

    def __init__(self, in_channels, out_channels, stride=1):
        super().__init__()
        self.shortcut = ConvNorm(in_channels, out_channels, 1, stride) if in_channels != out_channels else None
        self.conv1 = ConvNorm(in_channels, out_channels // 4, 1)
        self.conv2 = ConvNorm(out_channels // 4, out_channels // 4, 3, stride)
        self.conv3 = ConvNorm(out_channels // 4, out_channels, 1)

    def forward(self, x):
        out = F.relu_(self.conv1(x))
        out = F.relu_(self.conv2(out))
        out = self.conv3(out)
        out += self.shortcut(x) if self.shortcut is not None else x
        return F.relu_(out)


class D2Stem(nn.Module):
    def __init__(self, out_channels):
        super().__init__()
        self.conv1 = ConvNorm(3, out_channels, 7, 2)

    def forward(self, x):
        return F.max_pool2d(F.relu_(self.conv1(x)), kernel_size=3, stride=2, padding=1)


class D2ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = D2Stem(8)
        self.res2 = nn.Sequential(D2Block(8, 16), D2Block(16, 16))
        self.res3 = nn.Sequential(D2Block(16, 32, 2))

    def forward(self, x):
        return self.res3(self.res2(self.stem(x)))


class CifarBlock(nn.Module):
    def __init__(self, in_channels, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out)) + self.shortcut(x)
        return F.relu(out)


class CifarResNet(nn.Module):
    """A 3x3 stem, no pool, functional ReLU."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(CifarBlock(8, 8, 1))
        self.layer2 = nn.Sequential(CifarBlock(8, 16, 2))
        self.linear = nn.Linear(16, 10)

    def forward(self, x):
        x = self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x)))))
        return self.linear(x.mean((2, 3)))


class PlainNet(nn.Module):
    """No residual blocks: conv, transposed conv, linear."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Conv2d(3, 6, 3, 2, 1)
        self.decode = nn.ConvTranspose2d(6, 4, 2, 2)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(torch.relu(self.decode(torch.relu(self.encode(x)))).mean((2, 3)))
