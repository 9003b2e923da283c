"""What Detectron2's own loader reads from files: ``python -m support.convert.detectron2_loader FOLDER``.

Of every job in ``jobs.json``, ``[name, file, arch, kind]``, the detector's state and what found no place.
"""

import json
import sys
from pathlib import Path

import torch
from support.convert.checkpoints import build_detector

from ssql_det import d2


class Checkpointer(d2.DetectionCheckpointer):
    def _load_model(self, checkpoint):
        self.incompatible = super()._load_model(checkpoint)
        return self.incompatible


def main(folder):
    assert d2.engine_name() == "detectron2"
    for name, file, arch, kind in json.loads((folder / "jobs.json").read_text()):
        model = build_detector(arch, kind)
        checkpointer = Checkpointer(model)
        checkpointer.load(str(folder / file))
        incompatible = {
            "missing": checkpointer.incompatible.missing_keys,
            "unexpected": checkpointer.incompatible.unexpected_keys,
        }
        torch.save({"state": model.state_dict(), **incompatible}, folder / f"{name}.loaded")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
