"""From a model's explanation in tensors to pictures that a person can read."""

from tax_lightning.explain.explanation import Explanation, PrototypeSource

__all__ = ["Explanation", "PrototypeSource"]
