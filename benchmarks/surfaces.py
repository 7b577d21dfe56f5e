"""A surface of 25 x 25 points: bare forward passes, ours, and the peers'."""

import copy

import numpy as np
import torch
from torch.nn import functional

from benchmarks.subject import Subject
from benchmarks.timing import race
from thalweg import instruments as ti

SIDE = 25


def surface(s: Subject) -> dict[str, dict[str, object]]:
    """The loss alone at start + i/25 u + j/25 v, as the peer spaces its points.

    "bare" is what cannot be avoided: the weights set and one forward pass a point.
    Results are the largest difference from it, alternate rows of loss-landscapes (which
    come out shifted by one) left out.
    """
    land = s.land
    point = land.point()
    directions = ti.random_directions(land, 2, seed=0)
    axis = np.arange(SIDE) / SIDE
    grid = {}

    @torch.inference_mode()
    def bare() -> object:
        model = copy.deepcopy(s.model)
        flat = torch.empty_like(point)
        parameters = list(model.parameters())
        parts = flat.split([p.numel() for p in parameters])
        for p, part in zip(parameters, parts, strict=True):
            p.data = part.view(p.shape)
        losses = np.empty((SIDE, SIDE))
        basis = directions.basis
        for i, a in enumerate(axis):
            for j, b in enumerate(axis):
                step = torch.tensor([a, b], dtype=point.dtype)
                torch.addmv(point, basis, step, out=flat)
                losses[i, j] = functional.cross_entropy(model(s.x), s.y).item()
        grid["bare"] = losses
        return float(losses.max())

    def ours() -> object:
        plain = land.with_loss(land.objective.loss, metrics=None)
        losses = ti.surface(plain, directions, [axis, axis])["loss"].values
        return {"largest_difference": float(np.abs(losses - grid["bare"]).max())}

    def loss_landscapes() -> object:
        from loss_landscapes import planar_interpolation

        ends = []
        for j in range(2):
            end = copy.deepcopy(s.model)
            end.load_state_dict(land.unflatten(point + directions.basis[:, j]))
            ends.append(end)

        def metric(wrapped) -> float:
            with torch.no_grad():
                return float(functional.cross_entropy(wrapped.forward(s.x), s.y))

        losses = planar_interpolation(s.model, *ends, metric, SIDE, deepcopy_model=True)
        # Even rows run one step ahead of their coordinates.
        gap = np.abs(losses[::2, :-1] - grid["bare"][::2, 1:])
        return {"largest_difference": float(gap.max())}

    contenders = {"bare": bare, "thalweg": ours, "loss-landscapes": loss_landscapes}
    return race(contenders, 5)
