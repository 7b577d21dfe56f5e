"""Networks that the demo, the studies and published checkpoints need."""

from thalweg.models.convolutional import small_cnn
from thalweg.models.copying import copy_model
from thalweg.models.graph import (
    Graph,
    Kind,
    Node,
    Value,
    operation_of,
    trace_graph,
)
from thalweg.models.perceptrons import mlp

__all__ = [
    # networks
    "mlp",
    "small_cnn",
    # a copy that may be touched
    "copy_model",
    # a network as typed nodes
    "Graph",
    "Kind",
    "Node",
    "Value",
    "operation_of",
    "trace_graph",
]
