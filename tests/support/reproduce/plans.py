"""Plans as the command line makes them, steps of a few lines, and a program that does them in no time."""

import json
import os
import subprocess
import sys
from pathlib import Path

from ssql_det.reproduce.plan import make_plan
from ssql_det.reproduce.presets import Options, get_preset
from ssql_det.reproduce.runner import run_steps
from ssql_det.reproduce.step_cache import StepCache
from ssql_det.reproduce.steps import Step

ROOT = Path(__file__).parents[3]
WIDTHS = ("FP", "8w8a", "6w6a", "5w5a", "4w4a", "2w4a")  # of the toy presets


def plan_of(name, out="runs/x", **choices):
    checkpoints = tuple(dict(choices.pop("checkpoints", ())).items())
    return make_plan(get_preset(name), Options(Path(out), checkpoints=checkpoints, **choices))


def a_step(name, folder, reads=(), makes=("made.txt",), arguments=(), minutes=1.0, kind="train"):
    """``makes`` are names of files in the step's folder."""
    made = tuple(folder / each for each in makes)
    return Step(name, kind, tuple(map(str, arguments)), folder, tuple(reads), made, minutes, 1.0)


def begun(folder, out="out", arguments=("train", "LR", "0.1"), given=b"given", makes=("a.txt", "b/c.txt")):
    """A folder as it is while a step is at work: what it reads and makes is there."""
    out = folder / out
    (folder / "base.yaml").write_text("A: 1\nB:\n  C: 2\n")
    (folder / "config.yaml").write_text("_BASE_: base.yaml\nD: 3  # a word\n")
    (folder / "input.bin").write_bytes(given)
    before = a_step("before", out / "before")
    step = a_step(
        "train-a",
        out / "work/a",
        (folder / "config.yaml", folder / "input.bin", *before.outputs),
        makes,
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


FAKE = """
import json, os, sys, time
asked = json.loads(sys.argv[1])
def note(what):
    with open(asked["events"], "a") as file:
        file.write(f"{what} {asked['name']} {os.getpid()}\\n")
note("begin")
time.sleep(asked["seconds"])
print(asked["say"])
if not asked["status"]:
    text = asked["text"] + "".join(open(path).read() for path in asked["reads"])
    for path in asked["makes"]:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, "w").write(text)
note("end")
sys.exit(asked["status"])
"""


class Fake:
    """A program for `runner.run`, and steps for it. ``events`` are what it did, as ``("begin", "a")``."""

    def __init__(self, folder):
        self.out, self._events = folder / "out", folder / "events.txt"
        script = folder / "fake.py"
        script.write_text(FAKE)
        self.program = [sys.executable, "-I", "-S", str(script)]
        self.environment = dict(os.environ)

    def step(self, name, *needed, reads=(), seconds=0.0, status=0, say="", text=None, makes=True, minutes=1.0):
        """It makes one file, with ``text`` and the content of what it reads in it, unless ``makes`` is false."""
        folder = self.out / "work" / name
        reads = (*reads, *(path for other in needed for path in other.outputs))
        made = [str(folder / "made.txt")] if makes else []
        asked = {"name": name, "events": str(self._events), "seconds": seconds, "status": status, "say": say}
        asked |= {"text": name if text is None else text, "reads": list(map(str, reads)), "makes": made}
        return a_step(name, folder, reads, ("made.txt",), [json.dumps(asked)], minutes)

    def run_steps(self, steps, jobs=2):
        return run_steps(steps, self.out, jobs, self.program, self.environment)

    @property
    def events(self):
        lines = self._events.read_text().splitlines() if self._events.exists() else []
        return [tuple(line.split()[:2]) for line in lines]

    @property
    def pids(self):
        return [int(line.split()[2]) for line in self._events.read_text().splitlines() if line.startswith("begin")]

    def forget(self):
        self._events.unlink(missing_ok=True)


def states(outcomes):
    return {name: outcome.state for name, outcome in outcomes.items()}


def is_running(pid):
    """A process that is dead and that nobody has asked for is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def started(out, *arguments):
    """The command itself, on few toy data."""
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    asked = ["reproduce", "--preset", "mini", "--budget", "0.02", "--jobs", "2", "--out", str(out), *arguments]
    command = [sys.executable, "-c", "from ssql_det.cli.main import main; main()", *asked]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(out, *arguments, status=0):
    """What it printed."""
    process = started(out, *arguments)
    said = process.communicate()[0]
    assert process.returncode == status, said
    assert "Traceback" not in said
    return said


def at_work_in(folder):
    """The processes that were told of a folder."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if str(folder) in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(pid)
        except OSError:
            continue
    return found
