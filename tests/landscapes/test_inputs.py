"""The loss over one input against plain calls of the model."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from thalweg.errors import DataError, InputError, LossError
from thalweg.landscapes import InputLandscape


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 4)
    ).double()


def test_many_points_go_through_one_call():
    model = net()
    model[1].running_var.uniform_(0.5, 2)
    x, y = torch.randn(1, 6, 6).double(), 2
    calls = []
    model.register_forward_hook(lambda m, i, o: calls.append(len(o)))
    land = InputLandscape(model, x, y)
    assert land.dim == 36 and land.layout["x"].shape == (1, 6, 6)
    points = land.origin + torch.randn(3, 5, 36).double()
    values, gradients = land.value_and_gradient(points)
    assert calls == [15] and model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    model.eval()
    inputs = points.reshape(15, 1, 6, 6).requires_grad_()
    expected = F.cross_entropy(model(inputs), torch.full((15,), y), reduction="none")
    (slope,) = torch.autograd.grad(expected.sum(), inputs)
    torch.testing.assert_close(values.reshape(-1), expected.detach())
    torch.testing.assert_close(gradients.reshape(slope.shape), slope)
    torch.testing.assert_close(land.loss(points), values)
    torch.testing.assert_close(land.output(points).reshape(15, 4), model(inputs).data)


def test_margin_and_own_losses():
    model = net()
    x = torch.randn(1, 6, 6).double()
    scores = InputLandscape(model, x, 0).output(torch.zeros(36).double())
    margin = InputLandscape(model, x, 1, "margin")
    others = torch.stack([scores[0], scores[2], scores[3]]).max()
    torch.testing.assert_close(
        margin.loss(torch.zeros(36).double()), others - scores[1]
    )
    points = torch.randn(4, 36).double()
    named = InputLandscape(model, x, 1)
    by_mean = InputLandscape(model, x, torch.tensor(1), F.cross_entropy)
    by_row = InputLandscape(
        model, x, 1, lambda o, t: F.cross_entropy(o, t, reduction="none")
    )
    looped = InputLandscape(
        model, x, 1, lambda o, t: F.cross_entropy(o, t) * (o.sum().item() < 1e9)
    )
    for land in (by_mean, by_row, looped):
        torch.testing.assert_close(land.loss(points), named.loss(points))
        torch.testing.assert_close(land.gradient(points), named.gradient(points))


def test_hessian_and_restriction():
    model = net()
    land = InputLandscape(model, torch.randn(1, 6, 6).double(), 3)
    model.eval()

    def plain(p):
        return F.cross_entropy(model(p.reshape(1, 1, 6, 6)), torch.tensor([3]))

    expected = torch.autograd.functional.hessian(plain, land.origin)
    torch.testing.assert_close(land.hessian(land.origin).dense(), expected)
    basis = torch.randn(36, 2).double()
    c = torch.randn(3, 2).double()
    torch.testing.assert_close(
        land.restrict(land.origin, basis).loss(c), land.loss(land.origin + c @ basis.T)
    )


def test_each_example_has_its_landscape():
    xs, ys = torch.randn(3, 1, 6, 6).double(), torch.tensor([0, 1, 3])
    lands = InputLandscape.each(net(), xs, ys)
    model = net().eval()
    expected = F.cross_entropy(model(xs), ys, reduction="none").detach()
    values = torch.stack([land.loss(land.origin) for land in lands])
    torch.testing.assert_close(values, expected)
    assert len({land.describe()["data"] for land in lands}) == 3


def test_bad_inputs():
    x = torch.randn(1, 6, 6).double()
    with pytest.raises(InputError, match="loss must be"):
        InputLandscape(net(), x, 0, "hinge")
    with pytest.raises(InputError, match="floating"):
        InputLandscape(net(), x.long(), 0)
    land = InputLandscape(net(), x, 4)
    with pytest.raises(DataError, match="from 0 to 3, got 4"):
        land.loss(land.origin)
    vector = InputLandscape(net(), x, 0, lambda o, t: o)
    with pytest.raises(LossError, match="one value a row"):
        vector.loss(vector.origin)
