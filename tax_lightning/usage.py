"""The commands of ``tax``, told without the import of torch, which takes seconds."""

from difflib import get_close_matches

COMMANDS = {
    "fit": "Train a model; keep the best checkpoint, pictures and figures in one folder.",
    "validate": "Measure a checkpoint on the validation images.",
    "test": "Measure a checkpoint on the test images.",
    "predict": "Write masks, votes and probabilities of images, for annotation tools too.",
    "explain": "Write a page on any images: who decides where, and why.",
    "export": "Write a model as one file for other programs: ONNX, or a graph of PyTorch.",
    "inspect": "Look at a data set before training: findings, tables, masks to look at again.",
    "import": "Turn a tool's export or a published data set into the one format.",
    "optimize": "Pack data into shards that are read fast, or from an object store.",
    "compare": "Train and test several models on equal terms: tables, paired tests, a figure.",
}


def usage() -> str:
    """What ``tax --help`` prints."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: tax COMMAND --config FILE ... [--KEY=VALUE ...]",
            "",
            "Train, test, compare and explain segmentation models of several annotators.",
            "",
            *(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()),
            "",
            "`tax COMMAND --help` lists the options of a command, `tax --version` the version.",
        ]
    )


def unknown(command: str) -> str:
    """What is said of a command that does not exist.

    Example:
        >>> unknown("tset").split(". ")[1]
        'Did you mean test?'
    """
    near = get_close_matches(command, COMMANDS, 1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"{command!r} is unknown, expected one of: {', '.join(COMMANDS)}.{hint}"
