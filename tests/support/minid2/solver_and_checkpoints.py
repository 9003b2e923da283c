"""Scenarios of optimizers, schedules and checkpoints, which run in both engines; see ``record_answers.py``.

Learning rates are compared by twelve digits, as text. ``SCENARIOS`` includes those of ``running.py``.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from support.minid2 import running
from support.minid2.modules import encode_text, seed_weights, small_config
from support.minid2.running import capturing_records, encode_lines, get_error_name
from support.minid2.structures_and_layers import random_tensor
from torch import nn

from ssql_det.core.unpickler import read_tensors


def make_solver_config(engine, *keys):
    cfg = engine("config").get_cfg()
    cfg.SOLVER.merge_from_list(list(keys))
    return cfg


SETTINGS = ("lr", "weight_decay", "momentum", "dampening", "nesterov", "foreach")


def describe_groups(groups, parameters):
    """Each group's settings, then the positions of its parameters in ``parameters``."""
    places = {parameter: place for place, parameter in enumerate(parameters)}
    for group in groups:
        yield {name: group[name] for name in SETTINGS if name in group}
        yield [places[parameter] for parameter in group["params"]]


def optimizers(engine):
    """A whole detector's parameter groups."""
    cfg = small_config(engine)
    cfg.MODEL.RESNETS.NORM = "BN"
    model = engine("modeling").build_model(cfg)
    parameters = list(model.parameters())
    answers = {"names": encode_lines(name for name, _ in model.named_parameters())}
    for name, keys in {
        "default": [],
        "biases": ["BASE_LR", 0.02, "BIAS_LR_FACTOR", 2.0, "WEIGHT_DECAY_BIAS", 0.0],
        "rates of biases": ["BIAS_LR_FACTOR", 2.0],
        "decay of biases": ["WEIGHT_DECAY_BIAS", 5e-4],
        "decay of norms": ["WEIGHT_DECAY", 5e-4, "WEIGHT_DECAY_NORM", 5e-4],
        "one for all": ["WEIGHT_DECAY_NORM", None],
        "nesterov": ["NESTEROV", True, "MOMENTUM", 0.8],
        "value": ["CLIP_GRADIENTS.ENABLED", True],
        "norm": ["CLIP_GRADIENTS.ENABLED", True, "CLIP_GRADIENTS.CLIP_TYPE", "norm"],
    }.items():
        optimizer = engine("solver").build_optimizer(make_solver_config(engine, *keys), model)
        answers[name] = encode_lines([type(optimizer).__name__, *describe_groups(optimizer.param_groups, parameters)])
    clipped = make_solver_config(engine, "CLIP_GRADIENTS.ENABLED", True, "CLIP_GRADIENTS.CLIP_TYPE", "full_model")
    return answers | {
        "full model": encode_text(get_error_name(lambda: engine("solver").build_optimizer(clipped, model)))
    }


def make_toy_model():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    return seed_weights(model)


def parameter_groups(engine):
    """The arguments of ``get_default_optimizer_params``, some of which no config sets."""
    model = make_toy_model()
    model[4].weight.requires_grad = False
    model.add_module("tied", nn.Linear(4, 4))
    model.tied.weight = model[2].weight
    parameters = list(model.parameters())
    find, answers = engine("solver").get_default_optimizer_params, {}
    for name, arguments in {
        "nothing": {},
        "norms": {"weight_decay_norm": 0.0},
        "rate": {"base_lr": 0.1, "weight_decay": 1e-3, "weight_decay_norm": 0.0, "bias_lr_factor": None},
        "factors": {"base_lr": 0.1, "lr_factor_func": lambda name: 0.5 if name.startswith("2.") else 1.0},
        "overrides": {"weight_decay_norm": 0.0, "overrides": {"weight": {"lr": 0.3}, "bias": {"weight_decay": 0.2}}},
        "biases win": {"base_lr": 0.1, "weight_decay_norm": 0.5, "bias_lr_factor": 3.0, "weight_decay_bias": 0.25},
    }.items():
        answers[name] = encode_lines(describe_groups(find(model, **arguments), parameters))
    answers["refused"] = encode_lines(
        get_error_name(lambda arguments=arguments: find(model, **arguments))
        for arguments in (
            {"bias_lr_factor": 2.0},
            {"lr_factor_func": len},
            {"weight_decay_bias": 0.1, "overrides": {"bias": {"lr": 0.1}}},
        )
    )
    groups = [
        {"params": ["a", "b", "c"], "param_names": ["A", "B", "C"], "lr": 1.0, "weight_decay": 0.0},
        {"params": ["d"], "param_names": ["D"], "weight_decay": 0.0, "lr": 1.0},
        {"params": ["c", "b"], "param_names": ["C", "B"], "momentum": 0.5},
        {"params": ["b", "e"], "param_names": ["B", "E"], "lr": 2.0, "momentum": 0.5},
    ]
    reduced = engine("solver.build").reduce_param_groups(groups)
    return answers | {"reduced": encode_lines(sorted(group.items()) for group in reduced)}


def clipped_steps(engine):
    answers = {}
    for name, (kind, bound, norm) in {
        "free": (None, 0.0, 0.0),
        "value": ("value", 0.05, 2.0),
        "norm": ("norm", 0.1, 2.0),
        "largest": ("norm", 0.02, float("inf")),
        "sum": ("norm", 0.5, 1.0),
    }.items():
        cfg = make_solver_config(engine, "BASE_LR", 0.3, "WEIGHT_DECAY", 0.01, "BIAS_LR_FACTOR", 2.0)
        if kind is not None:
            clipping = {"ENABLED": True, "CLIP_TYPE": kind, "CLIP_VALUE": bound, "NORM_TYPE": norm}
            cfg.SOLVER.CLIP_GRADIENTS.update(clipping)
        model = make_toy_model()
        optimizer = engine("solver").build_optimizer(cfg, model)
        for seed in range(3):
            optimizer.zero_grad()
            out = model(random_tensor(seed, 5, 3, dtype=torch.float64))
            (out * random_tensor(seed + 10, 5, 3, dtype=torch.float64)).sum().backward()
            optimizer.step()
        answers[name] = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    clip = engine("solver.build").maybe_add_gradient_clipping
    cfg = make_solver_config(engine, "CLIP_GRADIENTS.ENABLED", True)
    answers["classes"] = encode_lines(
        f"{clip(each, torch.optim.Adam).__name__} {issubclass(clip(each, torch.optim.Adam), torch.optim.Adam)}"
        for each in (cfg, make_solver_config(engine))
    )
    return answers


STEPS = ["MAX_ITER", 200, "WARMUP_ITERS", 30, "STEPS", (80, 150)]
COSINE = ["MAX_ITER", 200, "WARMUP_ITERS", 30, "LR_SCHEDULER_NAME", "WarmupCosineLR"]
DECAYS = ["MAX_ITER", 200, "WARMUP_ITERS", 30, "LR_SCHEDULER_NAME", "WarmupStepWithFixedGammaLR"]
SCHEDULES = {
    "steps": STEPS,
    "constant warm-up": [*STEPS, "WARMUP_METHOD", "constant", "WARMUP_FACTOR", 0.25],
    "rescaled steps": [*STEPS, "RESCALE_INTERVAL", True],
    "steps to ignore": [*STEPS, "STEPS", (40, 120, 300), "GAMMA", 0.5],
    "a step in the warm-up": [*STEPS, "STEPS", (10, 20), "WARMUP_FACTOR", 0.0],
    "no warm-up": [*STEPS, "WARMUP_ITERS", 0],
    "only warm-up": [*STEPS, "WARMUP_ITERS", 1000],
    "no steps": [*STEPS, "STEPS", ()],
    "cosine": COSINE,
    "cosine to an end": [*COSINE, "BASE_LR", 0.02, "BASE_LR_END", 0.002],
    "rescaled cosine": [*COSINE, "RESCALE_INTERVAL", True, "WARMUP_METHOD", "constant"],
    "decays": DECAYS,
    "rescaled decays": [*DECAYS, "RESCALE_INTERVAL", True, "NUM_DECAYS", 7, "GAMMA", 0.7],
}


def build_optimizer_and_schedule(engine, cfg):
    """An optimizer of two groups, and its schedule."""
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": cfg.SOLVER.BASE_LR * 2}], lr=1)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": cfg.SOLVER.BASE_LR})
    return optimizer, engine("solver").build_lr_scheduler(cfg, optimizer)


def step_rates(optimizer, schedule, count):
    """The learning rates of each iteration; after the last the schedule is not stepped: some raise an error there."""
    for index in range(count):
        if index:
            optimizer.step()
            schedule.step()
        yield " ".join(f"{group['lr']:.12g}" for group in optimizer.param_groups)


def schedules(engine):
    answers = {}
    for name, keys in SCHEDULES.items():
        cfg = make_solver_config(engine, *keys)
        with capturing_records(engine, "solver.build") as records:
            optimizer, schedule = build_optimizer_and_schedule(engine, cfg)
            found = list(step_rates(optimizer, schedule, 200))
        answers[name] = encode_lines([*found, get_error_name(schedule.step), *(record.levelname for record in records)])
    cfg = make_solver_config(engine, *COSINE)
    optimizer, schedule = build_optimizer_and_schedule(engine, cfg)
    list(step_rates(optimizer, schedule, 121))
    state = schedule.state_dict()
    answers["state"] = encode_text(str(sorted(state.items())))
    other, resumed = build_optimizer_and_schedule(engine, cfg)
    resumed.load_state_dict(state)
    other.load_state_dict(optimizer.state_dict())
    answers["resumed"] = encode_lines(step_rates(other, resumed, 50))
    unusable = (
        ["LR_SCHEDULER_NAME", "WarmupPolyLR"],
        ["WARMUP_METHOD", "burnin"],
        ["STEPS", (20, 10), "MAX_ITER", 200],
        [*COSINE, "BASE_LR_END", 1.0],
    )
    errors = [
        get_error_name(lambda keys=keys: build_optimizer_and_schedule(engine, make_solver_config(engine, *keys)))
        for keys in unusable
    ]
    errors.append(get_error_name(lambda: engine("solver").LRMultiplier(optimizer, lambda where: 1.0, 10)))
    return answers | {"refused": encode_lines(errors)}


KEY_SETS = {  # the model's names and the checkpoint's, with lengths where they are not 1
    "prefixes": (["backbone.res2.conv.weight", "backbone.stem.conv.weight"], ["res2.conv.weight", "stem.conv.weight"]),
    "the longest": (["net.a.res2.w", "net.a.w", "net.w"], ["w", "a.w", "res2.w", "a.res2.w"]),
    "itself first": (["fc.weight", "head.fc.weight"], ["fc.weight", "head.fc.weight", "weight"]),
    "whole parts": (["box_head.fc1.weight", "my_fc.weight"], ["fc.weight", "1.weight"]),
    "module": (["a.weight", "a.bias"], ["module.a.weight", "module.a.bias"]),
    "shapes": (["x.a.weight 2", "x.b.weight", "x.c.bias"], ["b.weight", "a.weight 3", "weight 2", "bias"]),
    "a taker of the right shape": (["a.conv.weight 2", "b.conv.weight"], ["conv.weight"]),
    "two takers": (["a.conv.weight", "b.conv.weight"], ["conv.weight", "other"]),
    "nothing fits": (["a.weight", "b"], ["c.weight", "d"]),
    "left over": (["m.z", "m.b", "m.a"], ["z", "y", "b", "x.q", "a"]),
    "one": (["deep.down.weight"], ["down.weight"]),
    "modules": (
        ["m.a.weight", "m.a.bias", "m.b.norm.weight", "m.b.norm.bias", "m.b.weight", "m.c", "m.d.weight"],
        ["a.weight", "a.bias", "b.norm.weight", "b.norm.bias", "b.weight", "c", "d.weight"],
    ),
    "unlike names": (["m.a.x", "m.a.y", "n.a.x", "n.a.y"], ["m.a.x", "a.y 2", "n.a.x", "n.a.y"]),
    "parts after parts": (["one.conv.weight", "two.conv.weight"], ["one.conv.weight", "two.conv.weight"]),
}
LEVELS = ("INFO", "WARNING")


def make_state(names):
    pairs = [(*name.split(), "1")[:2] for name in names]
    return {name: torch.full((int(length),), float(index)) for index, (name, length) in enumerate(pairs)}


def matched_names(engine):
    align = engine("checkpoint.c2_model_loading").align_and_update_state_dicts
    answers = {}

    def match(name, model, checkpoint):
        with capturing_records(engine, "checkpoint.c2_model_loading") as records:
            try:
                found = align(model, checkpoint, c2_conversion=False)
            except ValueError:
                answers[name] = encode_text("refused")
                return
        messages = {level: [each.getMessage() for each in records if each.levelname == level] for level in LEVELS}
        warned = " ".join(messages["WARNING"]) + " "
        named_in_warnings = [key for key in sorted({*model, *checkpoint}) if f"{key} " in warned]
        places = [f"{key} {value.flatten()[0]:g}" for key, value in found.items()]
        answers[name] = encode_lines([*places, *messages["INFO"], named_in_warnings])

    for name, (model, checkpoint) in KEY_SETS.items():
        match(name, make_state(model), make_state(checkpoint))
    model = engine("modeling").build_model(small_config(engine)).state_dict()
    weights = {name: torch.full_like(value, index) for index, (name, value) in enumerate(model.items())}
    prefix = "backbone.bottom_up."
    match("a detector", model, weights)
    match("a backbone", model, {name.removeprefix(prefix): each for name, each in weights.items() if prefix in name})
    return answers


class ModelWithBuffers(nn.Module):
    """A small model that has a detector's buffers."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.fc = nn.Linear(3, 2)
        self.register_buffer("pixel_mean", torch.zeros(3))
        self.register_buffer("other", torch.zeros(3))


def checkpoints(engine):
    kit, answers = engine("checkpoint"), {}
    torch.manual_seed(0)
    model = ModelWithBuffers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sum(each.sum() for each in model.parameters()).backward()
    optimizer.step()
    kit.DetectionCheckpointer.read_file = staticmethod(read_tensors)  # only minid2 calls it
    with tempfile.TemporaryDirectory() as folder:

        def fresh(folder=folder, **others):
            torch.manual_seed(1)
            return kit.DetectionCheckpointer(ModelWithBuffers(), folder, **others)

        def tell(name, checkpointer, rest):
            """Sums show which weights came from where."""
            state = checkpointer.model.state_dict()
            answers[name] = torch.stack([value.double().sum() for value in state.values()])
            answers[f"{name}, left"] = encode_lines(rest)

        saver = kit.DetectionCheckpointer(model, folder, optimizer=optimizer)
        answers["none yet"] = encode_text(f"{saver.has_checkpoint()} {saver.get_checkpoint_file()}")
        tell("from scratch", fresh(), fresh().resume_or_load("", resume=True))
        periodic = kit.PeriodicCheckpointer(saver, 3, max_iter=10, max_to_keep=2)
        for iteration in range(10):
            periodic.step(iteration, note="kept")
        kit.DetectionCheckpointer(model, folder, save_to_disk=False).save("not_saved")
        kit.DetectionCheckpointer(model).save("not_saved")
        answers["files"] = encode_lines(sorted(os.listdir(folder)))
        known = map(os.path.basename, [*sorted(saver.get_all_checkpoint_files()), saver.get_checkpoint_file()])
        answers["known"] = encode_lines([*known, Path(folder, "last_checkpoint").read_text()])

        resumed = fresh()
        other = torch.optim.SGD(resumed.model.parameters(), lr=0.7, momentum=0.9)
        resumed.add_checkpointable("optimizer", other)
        rest = resumed.resume_or_load("nowhere.pth", resume=True)
        tell("resumed", resumed, rest)
        answers["resumed at"] = np.array([rest["iteration"], other.param_groups[0]["lr"], len(other.state)])
        started, first = fresh(), os.path.join(folder, "model_0000005.pth")
        tell("started", started, started.resume_or_load(first, resume=False))
        first = fresh()
        first.add_checkpointable("optimizer", other)
        tell("only the model", first, first.load(os.path.join(folder, "model_final.pth"), checkpointables=[]))

        bare = os.path.join(folder, "bare.pth")
        torch.save({"0.weight": torch.ones(3, 2), "fc.weight": torch.ones(2, 3), "0.bias": torch.ones(4)}, bare)
        for name, path in {"bare": bare, "bare, matched": f"{bare}?matching_heuristics=True"}.items():
            loader = fresh()
            tell(name, loader, loader.load(path))
        answers["a wrong query"] = encode_text(get_error_name(lambda: fresh().load(f"{bare}?matching=True")))

    weights = {
        "module.backbone.0.weight": np.ones((3, 2), np.float32),
        "module.fc.weight": torch.ones(3, 2),
        "module.anchor_generator.cell_anchors.0": torch.ones(3),
        "module.stray": torch.ones(1),
    }
    for name, extra in {"in a module": {}, "in a module, matched": {"matching_heuristics": True}}.items():
        loader = fresh("")
        misfits = loader._load_model({"model": dict(weights), **extra})
        tell(name, loader, misfits)
    return answers


SCENARIOS = (
    *(optimizers, parameter_groups, clipped_steps, schedules, matched_names, checkpoints),
    *running.SCENARIOS,
)
