"""Hugging Face's ResNet, ``model.safetensors`` or ``pytorch_model.bin``: stages, layers and convs are counted from 0.

The format does not store whether bottlenecks have their stride in the 1x1 conv: that is ``downsample_in_bottleneck`` of
``config.json``, which Microsoft's ResNets do not set.
"""

from ssql_det.convert.format import Format, Layout, Names

NAMES = Names(
    stem="embedder.embedder.convolution",
    stem_norm="embedder.embedder.normalization",
    conv="encoder.stages.{stage}.layers.{block}.layer.{conv}.convolution",
    norm="encoder.stages.{stage}.layers.{block}.layer.{conv}.normalization",
    shortcut="encoder.stages.{stage}.layers.{block}.shortcut.convolution",
    shortcut_norm="encoder.stages.{stage}.layers.{block}.shortcut.normalization",
    first_stage=0,
    conv_labels="012",
)

HUGGINGFACE = Format(
    name="huggingface",
    title="Hugging Face's ResNets",
    branches={"online": (Layout("resnet.", NAMES), Layout("", NAMES))},
    left_out={"classifier.*": "a classifier"},
    not_stored="a stride in the 1x1 (its config.json says so)",
)
