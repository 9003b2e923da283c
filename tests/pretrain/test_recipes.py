"""The configs equal the published recipes, which are written out here: one for each row of Tables 1, 3 and 8.

The recipes are from the configs of SSQL's published code, MoCo v2 on ImageNet from its authors.
"""

from collections import Counter
from functools import cache

import pytest
from support.pretrain.runs import MINI
from torch import nn

from ssql_det.pretrain.config import build_metadata, build_network, read_config
from ssql_det.quant import Bits
from ssql_det.report.published import load_published_table
from ssql_det.ssl import SSQL

pytestmark = pytest.mark.slow

CONFIGS = MINI.parent
BOTH = {"OPTIM.NAME": "sgd", "OPTIM.MOMENTUM": 0.9, "OPTIM.WARMUP_EPOCHS": 0.0, "OPTIM.PER_EPOCH": True}
CIFAR = BOTH | {
    "DATA.TRAIN": "cifar10:datasets",
    "DATA.RECIPE": "cifar",
    "ZERO_INIT_RESIDUAL": False,
    "SYNC_NORM": False,
    "OPTIM.EPOCHS": 400,
}
IMAGENET = BOTH | {
    "DATA.TRAIN": "datasets/imagenet",
    "DATA.RECIPE": "imagenet",
    "DATA.WORKERS": 16,
    "AMP": True,
    "OPTIM.EPOCHS": 100,
}


def recipe(method, rate, batch, decay, dim, hidden, ssql=False, **more):
    node = method.upper()
    names = ("METHOD", "OPTIM.LR", "OPTIM.BATCH", "OPTIM.WEIGHT_DECAY", f"{node}.DIM", f"{node}.HIDDEN", "SSQL.ENABLED")
    values = (method, rate, batch, decay, dim, hidden, ssql)
    return dict(zip(names, values, strict=True)) | {key.replace("__", "."): value for key, value in more.items()}


SIMSIAM = {"ZERO_INIT_RESIDUAL": True, "SYNC_NORM": True}  # on ImageNet, and SSQL over it
OWN_NORMS = {"ZERO_INIT_RESIDUAL": False, "SYNC_NORM": False}
EMA, QUEUE = {"BYOL.MOMENTUM": 0.99}, {"MOCO.MOMENTUM": 0.999, "MOCO.TEMPERATURE": 0.2}
RECIPES = {
    "cifar10_r18_simsiam": CIFAR | recipe("simsiam", 0.05, 512, 5e-4, 2048, 2048),
    "cifar10_r34_simsiam": CIFAR | recipe("simsiam", 0.05, 512, 5e-4, 2048, 2048),
    "cifar10_r50_simsiam": CIFAR | recipe("simsiam", 0.025, 256, 5e-4, 2048, 2048),
    "cifar10_r18_ssql": CIFAR | recipe("simsiam", 0.05, 512, 5e-4, 2048, 2048, ssql=True),
    "cifar10_r34_ssql": CIFAR | recipe("simsiam", 0.05, 512, 5e-4, 2048, 2048, ssql=True),
    "cifar10_r50_ssql": CIFAR | recipe("simsiam", 0.025, 256, 5e-4, 2048, 2048, ssql=True),
    "cifar10_r18_byol": CIFAR | recipe("byol", 0.05, 512, 1e-4, 512, 2048, **EMA),
    "cifar10_r50_byol": CIFAR | recipe("byol", 0.05, 512, 1e-4, 512, 2048, **EMA),
    "cifar10_r18_ssql_byol": CIFAR | recipe("byol", 0.05, 512, 5e-4, 2048, 2048, True, BYOL__LAST_NORM=True, **EMA),
    "cifar10_r18_moco": CIFAR | recipe("moco", 0.3, 256, 1e-4, 256, 2048, MOCO__QUEUE=2048, **QUEUE),
    "cifar10_r50_moco": CIFAR | recipe("moco", 0.3, 256, 1e-4, 256, 2048, MOCO__QUEUE=2048, **QUEUE),
    "cifar10_r18_ssql_moco": CIFAR | recipe("moco", 0.3, 256, 1e-4, 256, 2048, True, MOCO__QUEUE=4096, **QUEUE),
    "cifar10_r18_simclr": CIFAR
    | recipe("simclr", 0.5, 512, 1e-4, 256, 2048, SIMCLR__TEMPERATURE=0.5, SIMCLR__GATHER=False),
    "cifar10_r50_simclr": CIFAR
    | recipe("simclr", 0.5, 512, 1e-4, 256, 2048, SIMCLR__TEMPERATURE=0.5, SIMCLR__GATHER=False),
    "cifar10_r18_ssql_simclr": CIFAR
    | recipe("simclr", 0.5, 512, 1e-4, 256, 2048, True, SIMCLR__TEMPERATURE=0.5, SIMCLR__GATHER=False),
    "cifar10_r50_ssql_simclr": CIFAR
    | recipe("simclr", 0.5, 512, 1e-4, 256, 2048, True, SIMCLR__TEMPERATURE=0.5, SIMCLR__GATHER=False),
    "imagenet_r18_simsiam": IMAGENET | SIMSIAM | recipe("simsiam", 0.05, 256, 1e-4, 2048, 2048),
    "imagenet_r50_simsiam": IMAGENET | SIMSIAM | recipe("simsiam", 0.05, 256, 1e-4, 2048, 512),
    "imagenet_r18_ssql": IMAGENET | SIMSIAM | recipe("simsiam", 0.05, 256, 1e-4, 2048, 2048, ssql=True),
    "imagenet_r50_ssql": IMAGENET | SIMSIAM | recipe("simsiam", 0.05, 256, 1e-4, 2048, 512, ssql=True),
    "imagenet_r18_byol": IMAGENET | OWN_NORMS | recipe("byol", 0.1, 512, 1e-4, 512, 2048, **EMA),
    # Published as .05 and 1e-4 of a loss that is four times as large.
    "imagenet_r50_byol": IMAGENET | OWN_NORMS | recipe("byol", 4 * 0.05, 256, 1e-4 / 4, 512, 2048, **EMA),
    "imagenet_r50_moco": IMAGENET
    | OWN_NORMS
    | recipe("moco", 0.03, 256, 1e-4, 128, 2048, OPTIM__EPOCHS=200, MOCO__QUEUE=65536, **QUEUE),
}
PACT = {  # SimSiam, trained at one bit-width; our reconstruction
    "SSQL.ENABLED": True,
    "SSQL.QUANTIZE_TARGETS": True,
    "SSQL.AUXILIARY": False,
    "SSQL.FIXED_BITS": "4w4a",
    "SSQL.SCHEME": "weight=dorefa, act=pact:10",
}
RECIPES |= {f"{data}_r18_simsiam_pact": RECIPES[f"{data}_r18_simsiam"] | PACT for data in ("cifar10", "imagenet")}
LONGER = {name: f"{name}_200ep" for name in RECIPES if name.startswith("imagenet") and name.endswith(("siam", "ssql"))}
RECIPES |= {longer: RECIPES[name] | {"OPTIM.EPOCHS": 200} for name, longer in LONGER.items()}
FILES = {"SimSiam": "simsiam", "SSQL (ours)": "ssql", "BYOL": "byol", "MoCov2": "moco", "SimCLR": "simclr"}
FILES |= {"SSQL-NCE (ours)": "ssql_simclr", "SimSiam-PACT": "simsiam_pact"}
ROWS = "abcdefghi"


@cache
def resolved(name):
    return read_config(CONFIGS / f"{name}.yaml").values


def without(keys, values):
    return {key: value for key, value in values.items() if key not in keys}


# ---- Tables 1 and 3 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_a_config_equals_the_recipe_and_the_defaults(name):
    values, expected = resolved(name), dict(RECIPES[name])
    data, depth, *_ = name.split("_")
    expected["BACKBONE"] = ("cifar_" if data == "cifar10" else "") + f"resnet{depth[1:]}"
    assert {key: values[key] for key in expected} == expected
    free = {*expected, "OUTPUT_DIR"}
    assert without(free, values) == without(free, read_config(None, ["METHOD", values["METHOD"]]).values)


def test_only_configs_for_toy_data_and_for_your_own_have_no_recipe():
    others = {path.stem for path in CONFIGS.glob("*.yaml")} - RECIPES.keys()
    assert all(name.startswith(("mini", "small", "own")) for name in others)


@pytest.mark.parametrize("method", ["byol", "moco", "simclr"])
def test_mini_and_small_configs_differ_in_size_only(method):
    """Except MoCo v2's learning rate, in proportion to the batch size, and its queue, to the number of images."""
    mini, small = ({**resolved(f"{form}_{method}")} for form in ("mini", "small"))
    size = {key for key, value in resolved("mini").items() if value != resolved("small")[key]} | {"OUTPUT_DIR"}
    rates = {"OPTIM.LR", "MOCO.QUEUE"} if method == "moco" else set()
    assert without(size | rates, mini) == without(size | rates, small)
    if method == "moco":
        assert mini["OPTIM.LR"] / mini["OPTIM.BATCH"] == pytest.approx(small["OPTIM.LR"] / small["OPTIM.BATCH"])


@pytest.mark.parametrize(("number", "data"), [(1, "cifar10"), (3, "imagenet")])
def test_every_published_row_has_a_config(number, data):
    rows = load_published_table(number).rows
    names = [f"{data}_r{row.backbone.removeprefix('ResNet-')}_{FILES[row.method]}" for row in rows]
    assert set(names) <= RECIPES.keys()
    assert set(Counter(names).values()) == {1}


def linears(module):
    return [(layer.in_features, layer.out_features) for layer in module.modules() if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize(
    ("name", "title", "projector", "has_last_norm"),
    [
        ("cifar10_r18_byol", "BYOL", [(512, 2048), (2048, 2048), (2048, 512)], False),
        ("cifar10_r18_ssql_byol", "SSQL-BYOL", [(512, 2048), (2048, 2048), (2048, 2048)], True),
        ("cifar10_r18_moco", "MoCo v2", [(512, 2048), (2048, 256)], False),
        ("cifar10_r18_ssql_moco", "SSQL-MoCo v2", [(512, 2048), (2048, 256)], False),
        ("cifar10_r18_simclr", "SimCLR", [(512, 2048), (2048, 256)], False),
        ("cifar10_r18_ssql_simclr", "SSQL-SimCLR", [(512, 2048), (2048, 256)], False),
        ("imagenet_r50_moco", "MoCo v2", [(2048, 2048), (2048, 128)], False),
    ],
)
def test_the_network_is_that_of_the_method(name, title, projector, has_last_norm):
    cfg = read_config(CONFIGS / f"{name}.yaml")
    network, backbone = build_network(cfg)
    method = network.method if isinstance(network, SSQL) else network
    assert (build_metadata(cfg).method, isinstance(network, SSQL)) == (title, title.startswith("SSQL"))
    assert linears(method.encoder.projector) == projector
    *_, last = (layer for layer in method.encoder.projector.modules() if not list(layer.children()))
    assert isinstance(last, nn.BatchNorm1d) == has_last_norm
    assert backbone.module.conv1.kernel_size == ((3, 3) if "cifar" in name else (7, 7))
    if "moco" in name:
        assert sorted(method.queue.keys.shape) == sorted((cfg.hyperparameters["queue"], cfg.hyperparameters["dim"]))
    if "byol" in name:
        assert linears(method.predictor) == [(cfg.hyperparameters["dim"], 2048), (2048, cfg.hyperparameters["dim"])]


# ---- Table 8 -------------------------------------------------------------------------------------------------------


def get_published_row(letter):
    (row,) = (row.settings for row in load_published_table(8).rows if row.method == f"({letter})")
    return row


def interval(text):
    return [int(end) for end in text.split("~")]


@pytest.mark.parametrize("letter", ROWS)
@pytest.mark.parametrize("form", ["", "mini_", "small_"])
def test_a_row_of_the_ablation_has_the_tables_switches(form, letter):
    values, row = resolved(f"table8/{form}{letter}"), get_published_row(letter)
    quantizes = row["q_pred"] or row["q_target"]
    assert values["SSQL.ENABLED"] == quantizes
    if not quantizes:
        return
    assert values["SSQL.QUANTIZE_PREDICTIONS"] == row["q_pred"]
    assert values["SSQL.QUANTIZE_TARGETS"] == row["q_target"]
    assert values["SSQL.AUXILIARY"] == row["aux"]
    if "~" in row["w_bits"]:
        assert [values["SSQL.WEIGHT_BITS"], values["SSQL.ACT_BITS"]] == [*map(interval, (row["w_bits"], row["a_bits"]))]
        assert values["SSQL.FIXED_BITS"] == ""
        assert values["SSQL.SHARED_DRAW"] == (row["w_bits"] == "4~16")  # as in the published program
    else:
        assert values["SSQL.FIXED_BITS"] == f"{row['w_bits']}w{row['a_bits']}a"


def test_the_ablation_differs_from_its_recipe_in_the_switches_only():
    def others(name):
        return {key: value for key, value in resolved(name).items() if key != "OUTPUT_DIR" and key[:5] != "SSQL."}

    for letter in ROWS:
        assert others(f"table8/{letter}") == others("cifar10_r34_ssql")
        assert others(f"table8/mini_{letter}") == others("mini")
        assert others(f"table8/small_{letter}") == others("small")
    same = {"a": "cifar10_r34_simsiam", "i": "cifar10_r34_ssql", "mini_i": "mini", "small_i": "small"}
    for name, recipe_of_it in same.items():
        assert without(["OUTPUT_DIR"], resolved(f"table8/{name}")) == without(["OUTPUT_DIR"], resolved(recipe_of_it))


def test_every_row_of_the_ablation_has_its_own_folder():
    names = sorted(path.stem for path in (CONFIGS / "table8").glob("*.yaml"))
    assert names == sorted([*ROWS, *(f"{form}_{letter}" for form in ("mini", "small") for letter in ROWS)])
    assert all(resolved(f"table8/{name}")["OUTPUT_DIR"] == f"./output/table8/{name}" for name in names)


@pytest.mark.parametrize("letter", ROWS)
def test_the_ablation_draws_its_bits(letter):
    network, _ = build_network(read_config(CONFIGS / f"table8/mini_{letter}.yaml"))
    if letter == "a":
        assert not isinstance(network, SSQL)
        return
    drawn = {network.bits(step) for step in range(1000)}
    if letter in "ef":
        assert drawn == {Bits(6, 6) if letter == "e" else Bits(4, 4)}
    elif letter in "bcd":
        assert drawn == {Bits(width, width) for width in range(4, 17)}
    else:
        assert drawn == {Bits(weight, act) for weight in range(2, 9) for act in range(4, 9)}
