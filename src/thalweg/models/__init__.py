"""Networks that the demo, the studies and published checkpoints need."""

from thalweg.models.convolutional import small_cnn
from thalweg.models.perceptrons import mlp

__all__ = ["mlp", "small_cnn"]
