"""Record Detectron2's answers: ``python tests/goldens/make.py``, where Detectron2 can be imported.

Run it again when a scenario is added or changed; the answers are those of Detectron2 at 02b5c4e.
"""

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent

if __name__ == "__main__":
    record = TESTS / "goldens/structures_and_layers.npz"
    subprocess.run([sys.executable, TESTS / "minid2/scenarios.py", "detectron2", record], check=True)
    print(f"{record}: {record.stat().st_size / 1e3:.0f} kB")
