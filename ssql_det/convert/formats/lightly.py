"""lightly: benchmarks that keep the ResNet under ``backbone``, and examples that keep it there with numbered parts.

``nn.Sequential(*resnet.children())`` leaves 0 for the stem's conv, 1 for its norm and 4 to 7 for the stages. A linear
classifier is trained beside a benchmark's network. In its DINO the plain ``backbone`` is the teacher.
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
_MARKS = ("online_classifier.*",)
_AVERAGES = ("backbone_momentum.", "momentum_backbone.", "teacher_backbone.", "key_backbone.")

LIGHTLY = Format(
    name="lightly",
    title="lightly's benchmarks and examples",
    branches={
        "online": tuple(
            Layout(prefix, names, marks=marks)
            for prefix in ("student_backbone.", "backbone.")
            for names, marks in ((Names(), _MARKS), (NUMBERED, ()))
        ),
        "momentum": (
            *(Layout(prefix, Names(), marks=_MARKS) for prefix in _AVERAGES),
            *(Layout(prefix, NUMBERED) for prefix in _AVERAGES),
            Layout("backbone.", marks=(*_MARKS, "student_backbone.*")),
        ),
    },
    left_out={
        **dict.fromkeys(("*_head.*", "*_head_momentum.*", "prototypes.*"), "a head"),
        "online_classifier.*": "a classifier",
        "criterion.*": "the loss's state",
    },
)
