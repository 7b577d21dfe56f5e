"""Copies of models that deepcopy refuses."""

import torch
from torch import nn
from torch.nn.utils import prune

from thalweg.models import copy_model, mlp


def test_pruned_models_are_copied_with_their_values():
    model = mlp((4, 3, 1))
    prune.random_unstructured(model[1], "weight", 0.5)
    model(torch.ones(2, 4))
    twin = copy_model(model)
    assert isinstance(twin, nn.Sequential)
    assert torch.equal(twin(torch.ones(2, 4)), model(torch.ones(2, 4)))
    with torch.no_grad():
        twin[1].weight_orig.zero_()
    assert model[1].weight_orig.abs().sum() > 0
    assert twin[1].weight_mask is not model[1].weight_mask
