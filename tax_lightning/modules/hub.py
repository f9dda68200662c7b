"""Models to share: a folder of safetensors and JSON, here or on the Hugging Face hub."""

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download
from safetensors.torch import load_file, save_file
from torch import Tensor

from tax_lightning.files import appearing, write_json
from tax_lightning.modules.checkpoints import TRAIN_AGAIN, check_format, check_plain

_WEIGHTS, _CONFIG = "model.safetensors", "config.json"
_CARD = """\
---
{{ card_data }}
---

# {{ kind }}: segmentation as {{ annotators | length }} annotators would draw

A model of tax-lightning, a library for images that several annotators labelled.

- Annotators: {{ annotators | join(", ") }}
- Classes: {{ classes | join(", ") }}
- Who was taught with the reference: {{ reference }}
{% for line in said %}- {{ line }}
{% endfor %}
```python
from tax_lightning import {{ kind }}

model = {{ kind }}.from_pretrained("FOLDER OR NAME")
```
{% if metrics %}
| metric | value |
|---|---:|
{% for name, value in metrics.items() %}| `{{ name }}` | {{ "%.3f" | format(value) }} |
{% endfor %}{% endif %}"""


class Shareable(
    ModelHubMixin,
    library_name="tax-lightning",
    pipeline_tag="image-segmentation",
    paper_url="https://arxiv.org/abs/2302.09561",
    model_card_template=_CARD,
):
    """``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` of a Lightning module.

    A folder holds what a checkpoint does, but for the optimizer: the tensors in
    ``model.safetensors``, and the rest in ``config.json``. Nothing in it is executed. The card,
    ``README.md``, gets a table of figures by ``model_card_kwargs={"metrics": {name: value}}``.
    """

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write the weights and the configuration."""
        module: Any = self
        state = module.state_dict()
        checkpoint = {"hyper_parameters": dict(module.hparams)}
        module.on_save_checkpoint(checkpoint)
        tensors = {name: x for name, x in state.items() if isinstance(x, Tensor)}
        checkpoint["extra_state"] = {name: state[name] for name in state if name not in tensors}
        # Copies, since a file holds no tensor twice.
        copies = {name: x.detach().cpu().clone().contiguous() for name, x in tensors.items()}
        with appearing(save_directory / _WEIGHTS) as part:
            save_file(copies, part)
        write_json(save_directory / _CONFIG, checkpoint)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        network: torch.nn.Module | None = None,
        **options: Any,  # noqa: ANN401
    ) -> Self:
        """The model of a folder, or of a name on the hub; ``network`` where it is one's own."""
        known = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        fetched = {name: options[name] for name in known}

        def file(name: str) -> Path:
            path = Path(model_id, name)
            return (
                path if path.parent.is_dir() else Path(hf_hub_download(model_id, name, **fetched))
            )

        if not file(_CONFIG).is_file():
            raise FileNotFoundError(f"{model_id}: no {_CONFIG} in this folder. {TRAIN_AGAIN}")
        checkpoint = json.loads(file(_CONFIG).read_text("utf-8"))
        check_plain(checkpoint["hyper_parameters"], model_id)
        extra = checkpoint.pop("extra_state", {})
        checkpoint["state_dict"] = {**load_file(file(_WEIGHTS)), **extra}
        check_format(checkpoint, model_id)
        checkpoint["pytorch-lightning_version"] = "2.6.0"  # nothing to migrate
        # Of the classes that are loaded already: what a folder names is never imported.
        kinds = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in _with_subclasses(cls)}
        if (name := checkpoint.get("class_path")) not in kinds:
            raise ValueError(
                f"{model_id}: its model is a {name}, expected {cls.__name__} or a subclass. Import "
                "the module of that class first, or load it by its own from_pretrained."
            )
        stored = io.BytesIO()
        torch.save(checkpoint, stored)
        stored.seek(0)
        given = {} if network is None else {"network": network}
        model: Self = (
            kinds[name]
            .load_from_checkpoint(stored, map_location="cpu", weights_only=True, **given)
            .eval()
        )
        return model

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:  # noqa: ANN401
        """The card: annotators, classes, and what who was taught with."""
        module: Any = self
        facts: Mapping[str, Any] = {
            "kind": type(self).__name__,
            "annotators": module.shown_names,
            "classes": module.classes,
            "reference": module.reference,
            "said": [module.type_note] if module.type_note else [],
        }
        return super().generate_model_card(*args, **{**facts, **kwargs})


def _with_subclasses(kind: Any) -> Iterator[Any]:  # noqa: ANN401 - a class
    yield kind
    for child in kind.__subclasses__():
        yield from _with_subclasses(child)
