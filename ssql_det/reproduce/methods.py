"""How each preset pretrains the methods of the tables, by their printed names.

Toy presets have one network for all tables, so what two tables ask for is one run: SimSiam is row (a) of the ablation,
SSQL its row (i). The published recipes are the configs that `report.producing` knows; their minutes are guesses.

>>> sorted(toy("mini")), toy("mini")["SSQL (ours)"] is ablation("mini")["(i)"]
(['BYOL', 'BYOL+SSQL', 'MoCov2', ...], True)
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from ssql_det.report.producing import probe_of
from ssql_det.reproduce.parts import Pretraining

RANDOM, SIMSIAM, SSQL = "random init.", "SimSiam", "SSQL (ours)"
_FOLDER = "configs/pretrain"
_BASES = {  # the method alone, SSQL over it, and what their files are called by
    SIMSIAM: (SSQL, ""),
    "BYOL": ("BYOL+SSQL", "byol"),
    "MoCov2": ("MoCov2+SSQL", "moco"),
    "SimCLR": ("SSQL-NCE (ours)", "simclr"),
}
_ALONE = ("SSQL.ENABLED", "False")
_MINUTES = {  # of a method alone, and with SSQL over it
    "mini": {"": (1.8, 3.3), "byol": (2.2, 3.8), "moco": (1.7, 2.7), "simclr": (1.8, 3.4)},
    "small": {"": (1.0, 2.0), "byol": (1.3, 2.3), "moco": (1.3, 1.9), "simclr": (1.0, 2.0)},
}
_MEGABYTES = {"mini": 20, "small": 150, 18: 230, 34: 310, 50: 400}  # of a checkpoint: of a preset, or by depth
_HOURS = {("imagenet", 18): 24, ("imagenet", 50): 72, ("cifar10", 18): 2, ("cifar10", 34): 3, ("cifar10", 50): 6}


@cache
def toy(preset: str) -> dict[str, Pretraining]:
    """All eight, of configs ``<preset>.yaml`` and ``<preset>_<method>.yaml``."""
    found = {}
    for method, (with_ssql, file) in _BASES.items():
        config = f"{_FOLDER}/{preset}{file and f'_{file}'}.yaml"
        alone, both = _MINUTES[preset][file]
        found[method] = Pretraining(file or "simsiam", config, _ALONE, alone, _MEGABYTES[preset])
        found[with_ssql] = Pretraining(f"ssql{file and f'-{file}'}", config, (), both, _MEGABYTES[preset])
    return found


@cache
def ablation(preset: str) -> dict[str, Pretraining]:
    """Table 8's nine rows on the toy presets' network."""
    config, cost = f"{_FOLDER}/table8/{preset}_", (_MINUTES[preset][""][1], _MEGABYTES[preset])
    inner = {
        f"({letter})": Pretraining(f"table8-{letter}", f"{config}{letter}.yaml", (), *cost) for letter in "bcdefgh"
    }
    return {"(a)": toy(preset)[SIMSIAM], **inner, "(i)": toy(preset)[SSQL]}


def published(table: int, network: str) -> dict[str, Pretraining]:
    """The lines of a table that a config of the repository pretrains, of one network."""
    configs = probe_of(table).configs
    return {method: recipe(config) for (printed, method), config in configs.items() if printed == network}


def recipe(config: str) -> Pretraining:
    """A config of the published recipes by itself; its name is the file's.

    >>> recipe("configs/pretrain/table8/d.yaml").name
    'table8-d'
    """
    name = "-".join(Path(config).relative_to(_FOLDER).with_suffix("").parts)
    data = "imagenet" if name.startswith("imagenet") else "cifar10"
    depth = next((depth for depth in (18, 50) if f"_r{depth}_" in name), 34)
    passes = 1 if "ssql" not in name and not name.startswith("table8") else 2.1
    hours = _HOURS[data, depth] * passes * (2 if name.endswith("_200ep") else 1)
    return Pretraining(name, config, (), 60 * hours, _MEGABYTES[depth], data)
