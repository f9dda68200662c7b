"""What takes part in a comparison, as the command line names it."""

import re
from dataclasses import dataclass

from tax_lightning.files import file_of

SHORT = {"TAX": "TAXLightningModule"}
PARTS = ("checkpoint.", "data.", "explanations.", "model.", "trainer.")  # of a configuration
_OPTION = r"[A-Za-z_][\w.]*="


@dataclass(frozen=True)
class Model:
    """A model that takes part.

    Args:
        name: In tables, and of its folder.
        class_path: As ``--model`` takes it.
        options: Of ``tax fit``. Those of the model hold in training alone, as a test takes the
            model from its checkpoint.
    """

    name: str
    class_path: str
    options: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Name of its folder, which every file system takes."""
        return file_of(self.name)


def model_of(text: str) -> Model:
    """Read ``CLASS``, ``CLASS,OPTION=VALUE,...`` or ``NAME=CLASS,OPTION=VALUE,...``.

    An option is one of the model, or a whole key of the configuration such as
    ``data.init_args.labels_per_image``.

    Raises:
        ValueError: If the text is none of these.

    Example:
        >>> model_of("MultiHead").name
        'MultiHead'
        >>> staple = model_of("STAPLE=Consensus,reference=staple")
        >>> staple.name, staple.class_path, staple.options
        ('STAPLE', 'Consensus', ('--model.init_args.reference=staple',))
        >>> model_of("TAX,data.init_args.annotators=[Ana, Ben]").options
        ('--data.init_args.annotators=[Ana, Ben]',)
    """
    first, *options = re.split(rf",\s*(?={_OPTION})", text.strip())
    name, _, class_path = first.rpartition("=")
    class_path = class_path.strip()
    if not re.fullmatch(r"[A-Za-z_][\w.]*", class_path):
        raise ValueError(
            f"--models {text!r}: expected CLASS or NAME=CLASS, with options after commas, such as "
            "MultiHead or STAPLE=Consensus,reference=staple."
        )
    whole = (o if o.startswith(PARTS) else f"model.init_args.{o}" for o in options)
    return Model(
        name.strip() or ", ".join([class_path, *options]),
        SHORT.get(class_path, class_path),
        tuple(f"--{option}" for option in whole),
    )
