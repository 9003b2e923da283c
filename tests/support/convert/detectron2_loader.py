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
        self.lost = super()._load_model(checkpoint)
        return self.lost


def main(folder):
    assert d2.engine_name() == "detectron2"
    for name, file, arch, kind in json.loads((folder / "jobs.json").read_text()):
        model = build_detector(arch, kind)
        checkpointer = Checkpointer(model)
        checkpointer.load(str(folder / file))
        lost = {"missing": checkpointer.lost.missing_keys, "unexpected": checkpointer.lost.unexpected_keys}
        torch.save({"state": model.state_dict(), **lost}, folder / f"{name}.answer")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
