"""SimSiam (Chen and He, CVPR 2021), as its authors publish it: the projector is the encoder's ``fc``."""

from ssql_det.convert.format import Format, Layout

SIMSIAM = Format(
    name="simsiam",
    title="SimSiam: encoder and predictor",
    branches={"online": (Layout("encoder.", required_keys=("predictor.*",)),)},
    left_out={"encoder.fc.*": "the projector", "predictor.*": "the predictor"},
    method="simsiam",
)
