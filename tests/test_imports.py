"""Circles of imports that the contracts in pyproject.toml cannot see."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "tax_lightning"


def test_no_file_imports_the_folder_that_it_is_in():
    """``from tax_lightning.data import X`` within data/ goes round by ``data/__init__.py``."""
    circles = []
    for path in PACKAGE.rglob("*.py"):
        folder = ".".join(path.relative_to(PACKAGE.parent).parent.parts)
        beside = {file.stem for file in path.parent.iterdir()}
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == folder:
                circles += [
                    (path.name, name.name) for name in node.names if name.name not in beside
                ]
    assert circles == []
