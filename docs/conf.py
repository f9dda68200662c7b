"""The site of the documentation: `python -m sphinx -W --keep-going -b html docs DIR`."""

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.inspect import signature, stringify_signature
from sphinx.writers.html5 import HTML5Translator

import tax_lightning

project = "tax-lightning"
author = "tax-lightning contributors"
project_copyright = "tax-lightning contributors, Apache-2.0"
release = tax_lightning.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4  # links to headings, as on GitHub

nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_output_stderr = "remove"  # lines of progress
nb_merge_streams = True

default_role = "literal"  # of docstrings, where `name` is code
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autosummary_generate = False  # tables alone: the pages are written by hand
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"tax-lightning {release}"
html_math_renderer = "mathml"
html_copy_source = html_show_sourcelink = False

# What is outside of this folder, and the page that includes it: links to the one lead to the other.
ROOT = Path(__file__).parent.parent
PAGES = {
    "README": "index",
    "CHANGELOG": "changelog",
    "CONTRIBUTING": "contributing",
    "experiments/README": "results/experiments",
    "experiments/ablation/README": "results/ablation",
    "experiments/ablation/bubil_mini": "results/ablation",
    "experiments/ablation/synthetic": "results/ablation",
    "experiments/benchmark/README": "results/benchmark",
    "experiments/benchmark/comparison": "results/comparison",
    "experiments/benchmark/lidc_mini/table": "results/comparison",
    "experiments/benchmark/cost": "results/cost",
    "experiments/trust/README": "results/trust",
}


def keep_links(app: Sphinx, path: Path, page: str, text: list[str]) -> None:
    """Let links and pictures of an included file be looked for from its own folder."""
    text[0] = re.sub(r"\]\((?![#/]|\w+:)", f"](/{path.parent.as_posix()}/", text[0])


def lead_to_pages(app: Sphinx, doctree: nodes.document) -> None:
    """Let links to included files lead to the pages that include them."""
    pages = {str(ROOT / path): page for path, page in PAGES.items()}
    for link in doctree.findall(addnodes.pending_xref):
        link["reftarget"] = pages.get(link["reftarget"], link["reftarget"])


def arguments(
    app: Sphinx,
    what: str,
    name: str,
    obj: Any,  # noqa: ANN401 - any object
    options: object,
    shown: str,
    returns: str,
) -> tuple[str, str] | None:
    """Show what a class takes where a base class would take anything."""
    if what == "class" and shown == "(*args, **kwargs)":
        taken = signature(obj.__init__, bound_method=True)
        return stringify_signature(taken, show_annotation=False), returns
    return None


def is_hook(
    app: Sphinx, what: str, name: str, obj: object, skipped: bool, options: object
) -> bool | None:
    """Leave out what Lightning calls, and nobody else."""
    return True if name.startswith("on_") or name.endswith("_step") else None


# Equations as MathML, which all browsers show without a script or a network.
def inline_math(self: HTML5Translator, node: nodes.math) -> None:
    """Write an equation within a line."""
    self.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def block_math(self: HTML5Translator, node: nodes.math_block) -> None:
    """Write an equation that has lines of its own."""
    self.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Add to Sphinx what is ours."""
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.connect("include-read", keep_links)
    app.connect("doctree-read", lead_to_pages)
    app.connect("autodoc-process-signature", arguments)
    app.connect("autodoc-skip-member", is_hook)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
