"""Plans as the command line makes them, steps whose program does nothing slow, and runs of the command itself."""

import functools
import json
import os
import runpy
import sys
from pathlib import Path

from ssql_det.reproduce.plan import make_plan
from ssql_det.reproduce.presets import Options, get_preset
from ssql_det.reproduce.runner import run_steps
from ssql_det.reproduce.step_cache import StepCache
from ssql_det.reproduce.steps import Step

ROOT = Path(__file__).parents[3]
BUDGET = 0.007  # of runs of the command: as little as it allows
WIDTHS = ("FP", "8w8a", "6w6a", "5w5a", "4w4a", "2w4a")  # of the toy presets


def build_plan(preset, out="runs/x", **options):
    """``checkpoints`` may be a dictionary."""
    checkpoints = tuple(dict(options.pop("checkpoints", ())).items())
    return make_plan(get_preset(preset), Options(Path(out), checkpoints=checkpoints, **options))


def make_step(name, folder, inputs=(), outputs=("made.txt",), arguments=(), minutes=1.0, kind="train"):
    """``outputs`` are names of files in the step's folder."""
    paths = tuple(folder / each for each in outputs)
    return Step(name, kind, tuple(map(str, arguments)), folder, tuple(inputs), paths, minutes, 1.0)


def begin_step(folder, out="out", arguments=("train", "LR", "0.1"), content=b"input", outputs=("a.txt", "b/c.txt")):
    """A cache and a step that is running: its inputs and outputs exist."""
    out = folder / out
    (folder / "base.yaml").write_text("A: 1\nB:\n  C: 2\n")
    (folder / "config.yaml").write_text("_BASE_: base.yaml\nD: 3  # a comment\n")
    (folder / "input.bin").write_bytes(content)
    before = make_step("before", out / "before")
    step = make_step(
        "train-a",
        out / "work/a",
        (folder / "config.yaml", folder / "input.bin", *before.outputs),
        outputs,
        (*arguments, "OUTPUT_DIR", out / "work/a"),
    )
    for path in before.outputs:
        path.parent.mkdir(parents=True)
        path.write_text("of the step before")
    StepCache(out).begin(step)
    for path in step.outputs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    return StepCache(out), step


FAKE_PROGRAM = """
import json, os, sys, time
task = json.loads(sys.argv[1])
def log_event(event):
    with open(task["events"], "a") as file:
        file.write(f"{event} {task['name']} {os.getpid()}\\n")
log_event("begin")
time.sleep(task["seconds"])
print(task["message"])
if not task["exit_code"]:
    text = task["text"] + "".join(open(path).read() for path in task["inputs"])
    for path in task["outputs"]:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, "w").write(text)
log_event("end")
sys.exit(task["exit_code"])
"""


def run_script(script, arguments):
    sys.argv = [script, *arguments]
    runpy.run_path(script)


class FakeProgram:
    """A script as ``main`` of `run_steps`, and steps for it. ``events`` are what it did, such as ``("begin", "a")``."""

    def __init__(self, folder):
        self.out, self._events = folder / "out", folder / "events.txt"
        self.script = folder / "fake.py"
        self.script.write_text(FAKE_PROGRAM)
        self.main = functools.partial(run_script, str(self.script))

    def step(self, name, *needed, inputs=(), seconds=0.0, exit_code=0, message="", text=None, writes=True, minutes=1.0):
        """It writes one file, with ``text`` and the content of its inputs, unless ``writes`` is false."""
        folder = self.out / "work" / name
        inputs = (*inputs, *(path for other in needed for path in other.outputs))
        outputs = [str(folder / "made.txt")] if writes else []
        task = {"name": name, "events": str(self._events), "seconds": seconds, "exit_code": exit_code}
        task |= {"message": message, "text": name if text is None else text}
        task |= {"inputs": list(map(str, inputs)), "outputs": outputs}
        return make_step(name, folder, inputs, ("made.txt",), [json.dumps(task)], minutes)

    def run(self, steps, jobs=2):
        return run_steps(steps, self.out, jobs, self.main, os.environ)

    @property
    def events(self):
        lines = self._events.read_text().splitlines() if self._events.exists() else []
        return [tuple(line.split()[:2]) for line in lines]

    @property
    def pids(self):
        return [int(line.split()[2]) for line in self._events.read_text().splitlines() if line.startswith("begin")]

    def clear_events(self):
        self._events.unlink(missing_ok=True)


def get_states(outcomes):
    return {name: outcome.state for name, outcome in outcomes.items()}


def reproduce_arguments(out, *arguments):
    """The command itself, with very little toy data."""
    return ["reproduce", "--preset", "mini", "--budget", str(BUDGET), "--jobs", "2", "--out", str(out), *arguments]


def find_processes(folder):
    """The processes with that folder in their command line, and those that write there, as jobs do to their logs."""
    pids = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            files = [os.readlink(link) for link in process.glob("fd/*")]
            if any(str(folder) in text for text in [os.fsdecode((process / "cmdline").read_bytes()), *files]):
                pids.append(process.name)
        except OSError:
            continue
    return pids
