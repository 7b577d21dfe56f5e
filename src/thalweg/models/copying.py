"""A copy of a model to trace, hook or run without touching the user's."""

import copy

from torch import Tensor, nn


def copy_model(model: nn.Module) -> nn.Module:
    """Return a copy of a model, also where it keeps results of a graph.

    Pruned or weight-normed layers hold their last weight, which `copy.deepcopy`
    refuses; the copy gets it without its graph.
    """
    held = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(model, held)
