"""TAXLightningModule in somebody's own script: the README's example, run for one step."""

import re
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent


def script() -> str:
    readme = (REPO / "README.md").read_text()
    found = re.search(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    assert found, "README.md has no Python example"
    return found.group(1)


def shortened(text: str) -> str:
    """One step on four images; nothing else differs."""
    for long, short in (("range(16)", "range(4)"), ("max_epochs=5", "max_epochs=1")):
        assert text.count(long) == 1
        text = text.replace(long, short)
    return text


def test_it_is_short():
    assert len(script().splitlines()) <= 25


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Lightning, on a run as small as this
def test_it_trains_saves_reloads_and_predicts_the_same(tmp_path, monkeypatch, capsys):
    assert "weights_only=True" in script()
    assert "torch.equal(" in script()
    monkeypatch.chdir(tmp_path)
    exec(compile(shortened(script()), "README.md", "exec"), {"__name__": "__main__"})
    assert "PrototypeSource(annotator='Ana'" in capsys.readouterr().out
