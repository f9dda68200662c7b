"""The Lightning modules of the method, and what happens around training."""
