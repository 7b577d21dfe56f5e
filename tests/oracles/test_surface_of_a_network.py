"""A network's surface against one vectorized call of the functional model."""

import numpy as np
import pytest
import torch
from torch.func import functional_call, vmap
from torch.nn import functional

from thalweg import NetworkLandscape
from thalweg import instruments as ti
from thalweg.data import digits
from thalweg.models import mlp, small_cnn


@pytest.mark.parametrize("make", [mlp, small_cnn])
def test_a_surface_is_the_vectorized_forward_pass(make):
    data = digits(images=True)
    x, y = data.inputs[:300], data.targets[:300]
    model = make(seed=0).double()
    land = NetworkLandscape(model, functional.cross_entropy, (x.double(), y))
    directions = ti.random_directions(land, 2, seed=3)
    axes = [np.linspace(-1, 1, 5), np.linspace(-0.5, 1, 4)]
    found = ti.surface(land, directions, axes)["loss"].values

    shapes = {name: p.shape for name, p in model.named_parameters()}
    start = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    grid = torch.cartesian_prod(*(torch.from_numpy(axis) for axis in axes))
    points = start + grid @ directions.basis.T

    def loss(point):
        parts = point.split([shape.numel() for shape in shapes.values()])
        state = {
            name: part.view(shape)
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }
        return functional.cross_entropy(functional_call(model, state, x.double()), y)

    expected = vmap(loss)(points).detach().reshape(5, 4)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
