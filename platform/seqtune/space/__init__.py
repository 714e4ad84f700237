"""What a study searches: spaces of hyperparameters, read, checked and sampled."""

from seqtune.space.read import load_space, read_dimension, shipped
from seqtune.space.space import Dimension, Given, Space

__all__ = ["Dimension", "Given", "Space", "load_space", "read_dimension", "shipped"]
