"""Record Detectron2's answers in the scenarios: ``python tests/goldens/make.py``, where Detectron2 can be imported.

Run it again when a scenario is added or changed; the answers are those of Detectron2 at commit 02b5c4e.
"""

import subprocess
import sys
from pathlib import Path

GOLDENS = Path(__file__).parent
DUMP = "import sys; from detectron2.config import get_cfg; open(sys.argv[1], 'w').write(get_cfg().dump())"

if __name__ == "__main__":
    subprocess.run([sys.executable, "-c", DUMP, GOLDENS / "default_config.yaml"], check=True)
    command = [sys.executable, "-m", "support.minid2.record_answers", "detectron2", GOLDENS / "answers.npz"]
    subprocess.run(command, cwd=GOLDENS.parent, check=True)
    for record in sorted(GOLDENS.iterdir()):
        print(f"{record.name}: {record.stat().st_size / 1e3:.0f} kB")
