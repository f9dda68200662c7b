"""From a model's explanation in tensors to pictures and pages that a person can read."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Names are imported when they are used: data modules need the colours, but not the panels.
_HOMES = {
    "PrototypeCard": "gallery",
    "annotator_palette": "palette",
    "render_card": "gallery",
    "render_gallery": "gallery",
    "render_panel": "panels",
    "write_report": "report",
}

__all__ = [
    "PrototypeCard",
    "annotator_palette",
    "render_card",
    "render_gallery",
    "render_panel",
    "write_report",
]

if TYPE_CHECKING:
    from tax_lightning.visualization.gallery import PrototypeCard, render_card, render_gallery
    from tax_lightning.visualization.palette import annotator_palette
    from tax_lightning.visualization.panels import render_panel
    from tax_lightning.visualization.report import write_report


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public object
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
