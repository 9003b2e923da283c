"""Scenarios of what surrounds a training loop, which run in both engines; see ``record_answers.py``.

They cover writers, arguments, logs and set-up. No clock is read; logs are compared without times, colours and the
engine's name.
"""

import contextlib
import io
import logging
import os
import re
import tempfile
from argparse import Namespace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from support.minid2.modules import encode_text
from support.minid2.structures_and_layers import random_tensor
from torch import nn


def encode_lines(values):
    return encode_text("\n".join(map(str, values)))


def get_error_name(call):
    """The type of the error that the call raises."""
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return "not at all"


@contextlib.contextmanager
def capturing_records(engine, module):
    """A list to which the records that one of the engine's modules logs inside the block are added."""
    records, logger = [], logging.getLogger(engine(module).__name__)
    handler = logging.Handler()
    handler.emit = records.append
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield records
    logger.removeHandler(handler)
    logger.setLevel(level)


def simulate_training(engine, storage, iterations=45):
    """A made-up run: yields in each iteration, after its scalars are stored."""
    for index in range(iterations):
        storage.put_scalars(total_loss=3 - index * 0.013 * (-1) ** index, loss_cls=index * 7 % 11 / 3)
        storage.put_scalar("lr", 0.02 * (index + 1) / 45, smoothing_hint=False)
        storage.put_scalar("[metric]accuracy", index / 45)
        if index >= 10:
            storage.put_scalars(time=0.25 + index % 5 / 10, data_time=0.001 * index)
        if index % 17 == 0:
            storage.put_scalar("eval/AP", index, smoothing_hint=False)
        yield index
        storage.step()


class Recorder:
    """A SummaryWriter that records the calls of its methods."""

    calls = ()

    def __init__(self, **arguments):
        type(self).calls = [sorted(arguments)]

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.calls.append((name, *map(to_plain, args), to_plain(kwargs)))


def to_plain(value):
    if isinstance(value, dict):
        return {name: to_plain(each) for name, each in sorted(value.items())}
    if isinstance(value, (list, torch.Tensor, float)):
        return [f"{each:.6g}" for each in np.asarray(value).ravel().tolist()]
    return value


def writers(engine):
    kit, answers = engine("utils.events"), {}
    patches = contextlib.ExitStack()
    with patches, tempfile.TemporaryDirectory() as folder:
        patches.enter_context(mock.patch("torch.cuda.is_available", return_value=False))
        patches.enter_context(mock.patch("torch.utils.tensorboard.SummaryWriter", Recorder))
        records = patches.enter_context(capturing_records(engine, "utils.events"))
        storage = patches.enter_context(kit.EventStorage(0))
        patches.enter_context(mock.patch("time.perf_counter", side_effect=lambda: 1.5 * storage.iter))
        path = os.path.join(folder, "metrics.json")
        Path(path).write_text('{"before": 1}\n')
        json_lines, printer, board = kit.JSONWriter(path), kit.CommonMetricPrinter(45), kit.TensorboardXWriter(folder)
        others = [kit.CommonMetricPrinter(), kit.CommonMetricPrinter(200, window_size=3)]
        board.close()
        printer.write()
        for index in simulate_training(engine, storage):
            if index % 10 == 4:
                storage.put_image("picture", random_tensor(index, 3, 2, 2))
                storage.put_histogram("weights", random_tensor(index, 20), bins=4)
            if index % 10 == 9 or index in (3, 5, 44):
                for writer in (json_lines, printer, board, *others):
                    writer.write()
        storage.put_scalar("eval/AP", 50.0, smoothing_hint=False)
        for writer in (json_lines, printer, board):
            writer.write()
            writer.write()
            writer.close()
        answers["json"] = encode_text(Path(path).read_text())
        answers["printed"] = encode_lines(record.getMessage() for record in records)
        answers["board"] = encode_lines(Recorder.calls)
        answers["left"] = np.array([len(storage._vis_data), len(storage._histograms)])
    return answers


COMMAND_LINES = (
    "",
    "--config-file a.yaml --resume --num-gpus 4 MODEL.WEIGHTS b.pth SOLVER.BASE_LR 0.1",
    "--eval-only --num-machines 2 --machine-rank 1 --dist-url tcp://10.0.0.1:5 --opts",
    "SEED 3 --resume",
    "--config a.yaml --num-g 2 TEST.AUG.ENABLED True",
    "--num-gpus many",
    "--unknown 1",
    "--machine-rank",
)


def arguments(engine):
    answers = []
    with mock.patch("os.getuid", return_value=70001), contextlib.redirect_stderr(io.StringIO()):
        parser = engine("engine").default_argument_parser("as given\n  here")
        for line in COMMAND_LINES:
            try:
                answers.append(sorted(vars(parser.parse_args(line.split())).items()))
            except SystemExit as stop:
                answers.append(stop.code)
    fields = ("option_strings", "dest", "nargs", "type", "default", "metavar")
    known = [[getattr(action, field) for field in fields] for action in parser._actions]
    return {"parsed": encode_lines(answers), "known": encode_lines(known), "epilog": encode_text(parser.epilog)}


def alone(engine):
    """The functions of a process group where there is none."""
    comm = engine("utils.comm")
    seed_everything = engine("utils.env").seed_all_rng
    np.random.seed(5)
    seeds = [comm.shared_random_seed() for _ in range(3)]
    comm.synchronize()
    scalars = {"b": torch.tensor(1.0), "a": torch.tensor(2.0)}
    model = nn.Linear(1, 1)
    with mock.patch.dict(os.environ):
        seed_everything(11)
        drawn = [np.random.rand(), torch.rand(1).item(), float(os.environ["PYTHONHASHSEED"])]
    launched = []
    engine("engine").launch(launched.extend, 1, args=([3, 4],))
    sizes = [comm.get_world_size(), comm.get_rank(), comm.get_local_rank(), comm.get_local_size()]
    return {
        "sizes": np.array([*sizes, comm.is_main_process()]),
        "seeds": np.array(seeds),
        "gathered": encode_lines([comm.all_gather({"a": 1}), comm.gather("x"), comm.gather("x", dst=3)]),
        "reduced": encode_lines([comm.reduce_dict(scalars) is scalars, comm.reduce_dict(scalars, average=False)]),
        "drawn": np.array(drawn),
        "launched": np.array(launched),
        "one model": np.array(engine("engine").create_ddp_model(model) is model),
    }


@contextlib.contextmanager
def restoring_loggers(*names):
    """After the block the loggers have their earlier handlers, levels and propagation."""
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    try:
        yield
    finally:
        for logger, (logger.handlers[:], level, logger.propagate) in zip(loggers, before, strict=True):
            logger.setLevel(level)


def mask_times(text, root):
    """The text of a log without times, colours and the engine's name."""
    text = re.sub(r"\x1b\[\d+m", "", text).replace(root, "ROOT")
    return encode_text(re.sub(r"\d\d/\d\d \d\d:\d\d:\d\d", "DATE", text))


def logs(engine):
    kit, answers = engine("utils.logger"), {}
    root = kit.__name__.removesuffix(".utils.logger")
    for memory in (kit._LOG_COUNTER.clear, kit._LOG_TIMER.clear, kit.setup_logger.cache_clear):
        memory()
    with restoring_loggers(root, "a.b", "quiet"), tempfile.TemporaryDirectory() as folder:
        screen = io.StringIO()
        with contextlib.redirect_stdout(screen):
            for _ in range(2):
                kit.setup_logger(folder)
            kit.setup_logger(folder, name="a.b", abbrev_name="")
            kit.setup_logger(os.path.join(folder, "own.txt"), 2, name="quiet")
            kit.setup_logger(name="a.b", color=False)
            for name in (f"{root}.solver.build", root, "a.b", "a.b.c", "quiet.down"):
                for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.CRITICAL):
                    logging.getLogger(name).log(level, "a line of %s", "words")
        answers["screen"] = mask_times(screen.getvalue(), root)
        for path in sorted(Path(folder).iterdir()):
            answers[path.name] = mask_times(path.read_text(), root)
        answers["propagates"] = np.array([logging.getLogger(name).propagate for name in (root, "a.b", "quiet")])
    clock = [0.0]
    with capturing_records(engine, "utils.logger") as records, mock.patch("time.time", side_effect=lambda: clock[0]):
        own = kit.__name__
        for index, clock[0] in enumerate((0.0, 1.0, 5.0, 5.5, 9.9)):
            kit.log_first_n(logging.INFO, f"first {index}", n=2, name=own)
            kit.log_first_n(logging.INFO, f"once {index % 2}", name=own, key="message")
            kit.log_first_n(logging.INFO, f"both {index % 2}", n=2, name=own, key=("caller", "message"))
            kit.log_every_n(logging.WARNING, f"every {index}", n=2, name=own)
            kit.log_every_n(logging.WARNING, f"each {index}", name=own)
            kit.log_every_n_seconds(logging.INFO, f"seconds {index}", n=4.5, name=own)
    answers["now and then"] = encode_lines(record.getMessage() for record in records)
    answers["table"] = encode_text(kit.create_small_table({"AP": 31.41592, "AP50": float("nan"), "n": 3}))
    return answers


def default_setups(engine):
    kit, root = engine("engine"), engine("utils.logger").__name__.removesuffix(".utils.logger")
    answers = {}
    benchmark = torch.backends.cudnn.benchmark
    with restoring_loggers(root, "fvcore"), tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ):
        for name, keys, args in (
            ("trains", ["SEED", 5, "CUDNN_BENCHMARK", True], Namespace(config_file="", eval_only=False)),
            ("evaluates", ["SEED", 0, "CUDNN_BENCHMARK", True], Namespace(eval_only=True)),
        ):
            torch.backends.cudnn.benchmark = False
            cfg = engine("config").get_cfg()
            cfg.merge_from_list([*keys, "OUTPUT_DIR", os.path.join(folder, name)])
            with contextlib.redirect_stdout(io.StringIO()):
                kit.default_setup(cfg, args)
            saved = Path(cfg.OUTPUT_DIR, "config.yaml").read_text()
            log = Path(cfg.OUTPUT_DIR, "log.txt").read_text()
            expected = ("World size: 1", f"Command line arguments: {args}", "Full config saved to")
            answers |= {
                f"{name} saved": np.array(saved == cfg.dump()),
                f"{name} files": encode_lines(sorted(os.listdir(cfg.OUTPUT_DIR))),
                f"{name} drew": np.array([np.random.rand(), torch.rand(1).item()]),
                f"{name} tries": np.array(torch.backends.cudnn.benchmark),
                f"{name} logged": np.array([text in log for text in expected]),
            }
        made = kit.default_writers(os.path.join(folder, "made"), 7)
        answers["writers"] = encode_lines(type(writer).__name__ for writer in made)
        answers["made"] = encode_lines(sorted(os.listdir(os.path.join(folder, "made"))))
        for writer in made:
            writer.close()
    torch.backends.cudnn.benchmark = benchmark
    return answers


SCENARIOS = (writers, arguments, alone, logs, default_setups)
