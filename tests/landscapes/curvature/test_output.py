"""Closed forms of B against dense autograd of the loss in the output."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import hessian

from thalweg.landscapes.curvature.output import (
    LossCurvature,
    SampledCurvature,
    model_curvature,
)


def case(loss, shape=(6, 4), target="labels"):
    generator = torch.Generator().manual_seed(0)
    output = 2 * torch.randn(shape, dtype=torch.float64, generator=generator)
    if target == "labels":
        target = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=generator)
        target.view(-1)[1] = 2
    elif target == "soft":
        target = torch.rand(shape, dtype=torch.float64, generator=generator)
        target = target / target.sum(1, keepdim=True)
    else:
        target = torch.rand(shape, dtype=torch.float64, generator=generator).round()
    return loss, output, target


W = torch.tensor([1.0, 0.5, 3.0, 0.2], dtype=torch.float64)
CASES = {
    "cross entropy": case(F.cross_entropy),
    "sum": case(nn.CrossEntropyLoss(reduction="sum")),
    "class weights": case(nn.CrossEntropyLoss(weight=W)),
    "class weights, sum": case(nn.CrossEntropyLoss(weight=W, reduction="sum")),
    "ignore": case(nn.CrossEntropyLoss(ignore_index=2)),
    "smoothing": case(functools.partial(F.cross_entropy, label_smoothing=0.2)),
    "all options": case(
        nn.CrossEntropyLoss(weight=W, ignore_index=2, label_smoothing=0.1)
    ),
    "pixels": case(nn.CrossEntropyLoss(weight=W), (3, 4, 2)),
    "soft labels": case(nn.CrossEntropyLoss(), target="soft"),
    "soft labels, all": case(
        nn.CrossEntropyLoss(weight=W, label_smoothing=0.3), target="soft"
    ),
    "soft pixels": case(nn.CrossEntropyLoss(weight=W), (3, 4, 2), target="soft"),
    "mse": case(F.mse_loss, target="real"),
    "mse sum": case(nn.MSELoss(reduction="sum"), target="real"),
    "mse one axis": case(nn.MSELoss(), (5,), target="real"),
    "bce": case(nn.BCEWithLogitsLoss(), target="real"),
    "bce weights": case(
        nn.BCEWithLogitsLoss(weight=W, pos_weight=W.flip(0), reduction="sum"),
        target="real",
    ),
    "bce one axis": case(F.binary_cross_entropy_with_logits, (7,), target="real"),
}


@pytest.mark.parametrize("name", CASES)
def test_closed_forms_equal_dense_autograd(name):
    loss, output, target = CASES[name]
    n = output.numel()
    dense = hessian(lambda o: loss(o, target))(output).reshape(n, n)
    B = model_curvature(loss, output, target)
    eye = torch.eye(n, dtype=torch.float64).view(n, *output.shape)
    applied = torch.stack([B.apply(e).reshape(-1) for e in eye])
    torch.testing.assert_close(applied, dense, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(B.gram(eye), dense, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_any_loss_by_double_backward(name):
    loss, output, target = CASES[name]
    n = output.numel()
    dense = hessian(lambda o: loss(o, target))(output).reshape(n, n)
    leaf = output.clone().requires_grad_()
    B = LossCurvature(leaf, loss(leaf, target))
    eye = torch.eye(n, dtype=torch.float64).view(n, *output.shape)
    torch.testing.assert_close(B.gram(eye), dense, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["class weights", "pixels", "mse", "bce weights"])
def test_scores_have_the_curvature_as_their_second_moment(name):
    loss, output, target = CASES[name]
    n, m = output.numel(), 20_000
    B = model_curvature(loss, output, target)
    eye = torch.eye(n, dtype=torch.float64).view(n, *output.shape)
    generator = torch.Generator().manual_seed(0)
    uniforms = torch.rand(m, B.draws, dtype=torch.float64, generator=generator)
    r = torch.stack([B.score(u) for u in uniforms]).reshape(m, -1)
    # Compared per row of the output: other rows have independent targets.
    same = (
        torch.block_diag(
            *[torch.ones(n // len(output), n // len(output))] * len(output)
        )
        > 0
    )
    outer = r[:, :, None] * r[:, None, :]
    gap = (outer.mean(0) - B.gram(eye))[same]
    stderr = (outer.std(0) / m**0.5)[same]
    assert bool((gap.abs() <= 4 * stderr + 1e-12).all())
    assert bool((r.mean(0).abs() <= 4 * r.std(0) / m**0.5).all())


def test_sampled_curvature_is_the_mean_of_outer_products():
    scores = torch.randn(3, 4, 2, dtype=torch.float64)
    B = SampledCurvature(scores)
    u = torch.randn(4, 2, dtype=torch.float64)
    expected = torch.einsum("mik,mil,il->ik", scores, scores, u) / 3
    torch.testing.assert_close(B.apply(u), expected)


def test_losses_that_are_not_known():
    output = torch.zeros(3, 2)
    assert model_curvature(nn.HuberLoss(), output, output) is None
    assert model_curvature(F.mse_loss, output, torch.zeros(2)) is None
    assert model_curvature(lambda o, y: (o - y).pow(2).mean(), output, output) is None


def test_saturated_logits_keep_their_curvature():
    output = torch.tensor([[40.0, -40.0]], dtype=torch.float64)
    B = model_curvature(nn.BCEWithLogitsLoss(reduction="sum"), output, output.sign())
    tail = torch.exp(torch.tensor(-40.0, dtype=torch.float64))
    torch.testing.assert_close(B.apply(torch.ones_like(output))[0], tail.expand(2))
