"""The Python in the docs, run as it stands."""

import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parent.parent / "docs" / "lightning.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.mark.filterwarnings("ignore")  # of Lightning, on runs as small as these
@pytest.mark.parametrize(
    ("block", "said"), list(enumerate(("1, 64, 64", "1, 2, 64, 64", "4, 2, 64")))
)
def test_each_block_runs(block, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert len(BLOCKS[block].splitlines()) <= 15
    exec(compile(BLOCKS[block], f"lightning.md, block {block}", "exec"), {"__name__": "__main__"})
    assert f"torch.Size([{said}" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_every_block_is_tried():
    assert len(BLOCKS) == 3
