"""What takes part in a comparison, as the command line names it."""

import re
from dataclasses import dataclass

from tax_lightning.files import file_of

SHORT = {"TAX": "TAXLightningModule"}
PARTS = ("checkpoint", "data", "model", "trainer")  # of a configuration
_OPTION = r"[A-Za-z_][\w.]*="


@dataclass(frozen=True)
class Model:
    """A model that takes part.

    Args:
        name: In tables, and of its folder.
        class_path: As ``--model`` takes it.
        options: Of the model and of the checkpoint that is kept: in training alone, as a test takes
            the model from its checkpoint.
        everywhere: Of data and trainer: in training and in testing.
    """

    name: str
    class_path: str
    options: tuple[str, ...] = ()
    everywhere: tuple[str, ...] = ()

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
        >>> model_of("TAX,data.init_args.annotators=[Ana, Ben]").everywhere
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
    own: list[str] = []
    everywhere: list[str] = []
    for option in options:
        key, _, value = option.partition("=")
        part, dot, _ = key.partition(".")
        whole = key if dot and part in PARTS else f"model.init_args.{key}"
        (everywhere if part in ("data", "trainer") and dot else own).append(f"--{whole}={value}")
    return Model(
        name.strip() or ", ".join([class_path, *options]),
        SHORT.get(class_path, class_path),
        tuple(own),
        tuple(everywhere),
    )
