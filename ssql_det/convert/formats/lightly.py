"""lightly: its benchmarks have the ResNet under ``backbone``, its examples too, but with numbered layers.

``nn.Sequential(*resnet.children())`` numbers the stem's conv 0, its norm 1 and the stages 4 to 7. The benchmarks train
a linear classifier along with the network. In their DINO, ``backbone`` is the teacher.
"""

from ssql_det.convert.format import Format, Layout, Names

NUMBERED = Names(
    stem="0",
    stem_norm="1",
    conv="{stage}.{block}.conv{conv}",
    norm="{stage}.{block}.bn{conv}",
    shortcut="{stage}.{block}.downsample.0",
    shortcut_norm="{stage}.{block}.downsample.1",
    first_stage=4,
)
_BENCHMARK_KEYS = ("online_classifier.*",)  # only in files of the benchmarks
_MOMENTUM_PREFIXES = ("backbone_momentum.", "momentum_backbone.", "teacher_backbone.", "key_backbone.")

LIGHTLY = Format(
    name="lightly",
    title="lightly's benchmarks and examples",
    branches={
        "online": tuple(
            Layout(prefix, names, required_keys=required_keys)
            for prefix in ("student_backbone.", "backbone.")
            for names, required_keys in ((Names(), _BENCHMARK_KEYS), (NUMBERED, ()))
        ),
        "momentum": (
            *(Layout(prefix, Names(), required_keys=_BENCHMARK_KEYS) for prefix in _MOMENTUM_PREFIXES),
            *(Layout(prefix, NUMBERED) for prefix in _MOMENTUM_PREFIXES),
            Layout("backbone.", required_keys=(*_BENCHMARK_KEYS, "student_backbone.*")),
        ),
    },
    left_out={
        **dict.fromkeys(("*_head.*", "*_head_momentum.*", "prototypes.*"), "a head"),
        "online_classifier.*": "a classifier",
        "criterion.*": "the loss's state",
    },
)
