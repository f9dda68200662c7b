"""What all rooms of the package share: the version, and the conventions of labels and batches."""

__version__ = "0.2.0.dev0"

IGNORE_INDEX = 255
"""Label of a pixel that nobody labelled, or whose label is unknown."""

LABEL_KEYS = ("masks", "reference", "expert", "deviation")
"""Keys of a batch whose tensors hold labels."""
