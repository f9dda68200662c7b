"""TAXLightningModule in somebody's own script: the README's example, run as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parent.parent


def script() -> str:
    readme = (REPO / "README.md").read_text()
    found = re.search(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    assert found, "README.md has no Python example"
    return found.group(1)


def test_it_is_short():
    assert len(script().splitlines()) <= 25


def test_it_trains_saves_reloads_and_predicts_the_same(tmp_path):
    assert "weights_only=True" in script()
    assert "torch.equal(" in script()
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    done = subprocess.run(
        [sys.executable, "-c", script()],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "PrototypeSource(annotator='Ana'" in done.stdout
