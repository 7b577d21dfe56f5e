"""Projected ascent against maxima known in closed form."""

from inspect import unwrap

import pytest
import torch

from thalweg import instruments as ti
from thalweg.errors import InputError, LossError
from thalweg.landscapes import Quadratic

NORMS = ["Linf", "L2", "L1"]
DUAL = {"Linf": 1, "L2": 2, "L1": float("inf")}


def linear(n=4, shape=(3, 2), seed=0):
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(n, *shape, generator=generator, dtype=torch.float64)
    x = torch.randn(n, *shape, generator=generator, dtype=torch.float64)
    return g, x, lambda y: (g * y).flatten(1).sum(1)


@pytest.mark.parametrize("rule", ["sign", "gradient", "adam"])
@pytest.mark.parametrize("norm", NORMS)
def test_linear_functions_reach_the_dual_norm(norm, rule):
    g, x, f = linear()
    radius = torch.tensor([0.1, 0.5, 1.0, 3.0]).double()
    options = {"adam": {"steps": 100, "step": 3.0}, "gradient": {"steps": 50}}
    found = ti.ascend(
        f, x, norm=norm, radius=radius, rule=rule, **options.get(rule, {})
    )
    dual = torch.linalg.vector_norm(g.flatten(1), DUAL[norm], dim=1)
    torch.testing.assert_close(found.values, f(x) + radius * dual, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.values, f(found.points))


@pytest.mark.parametrize("norm", NORMS)
def test_the_box_holds(norm):
    g, x, f = linear()
    x = x.sigmoid()
    found = ti.ascend(f, x, norm=norm, radius=0.8, box=(0, 1), steps=60)
    assert (found.points >= 0).all() and (found.points <= 1).all()
    size = torch.linalg.vector_norm(
        (found.points - x).flatten(1),
        {"Linf": float("inf"), "L2": 2, "L1": 1}[norm],
        dim=1,
    )
    assert (size <= 0.8 + 1e-12).all() and (found.values > f(x)).all()
    if norm == "Linf":
        expected = f((x + 0.8 * g.sign()).clamp(0, 1))
        torch.testing.assert_close(found.values, expected)


def test_gradient_rule_finds_interior_and_boundary_maxima():
    A = -torch.diag(torch.tensor([1.0, 10.0, 100.0]).double())
    c = torch.tensor([0.2, -0.1, 0.3]).double()
    land = Quadratic(A, c)
    start = torch.zeros(1, 3).double()
    found = ti.ascend(land, start, norm="L2", radius=1.0, rule="gradient", steps=100)
    torch.testing.assert_close(found.points[0], c, atol=1e-6, rtol=0)
    top = Quadratic(-A)
    found = ti.ascend(
        top, start, norm="L2", radius=1.0, rule="gradient", steps=60, starts="uniform"
    )
    torch.testing.assert_close(found.values, torch.tensor([50.0]).double())


def test_best_and_last_and_counts():
    calls = []

    def f(y):
        calls.append(y.detach().clone())
        return -(y**2).sum(1)

    x = torch.zeros(2, 3).double()
    options = {"norm": "L2", "radius": 1.0, "step": 1.0, "steps": 5, "restarts": 3}
    options["starts"] = x + 0.5
    best = ti.ascend(f, x, **options)
    assert len(calls) == best.evaluations == 18
    seen = torch.stack([-(c**2).sum(1) for c in calls]).max(0).values
    torch.testing.assert_close(best.values, seen)
    ends = torch.stack([-(c**2).sum(1) for c in calls[5::6]]).max(0).values
    torch.testing.assert_close(ti.ascend(f, x, **options, keep="last").values, ends)


def test_rows_are_independent_and_draws_repeat():
    g, x, _ = linear(n=5, shape=(4,))

    def f(y):
        return (y.sin() * y).sum(1)

    options = {"norm": "Linf", "radius": 0.7, "momentum": 0.9, "steps": 8}
    together = ti.ascend(f, x, **options)
    for i in range(5):
        alone = ti.ascend(f, x[i : i + 1], **options)
        assert torch.equal(alone.points[0], together.points[i])
    state = torch.random.get_rng_state()
    a = ti.ascend(f, x, **options, starts="uniform", restarts=2, seed=3)
    b = ti.ascend(f, x, **options, starts="uniform", restarts=2, seed=3)
    assert torch.equal(a.points, b.points)
    assert torch.equal(state, torch.random.get_rng_state())


def test_several_given_starts_are_runs():
    f = lambda y: (y**4 - y**2).sum(1)  # noqa: E731
    x = torch.zeros(1, 1).double()
    starts = torch.tensor([[[-0.9]], [[0.1]]]).double()
    found = ti.ascend(f, x, norm="L2", radius=1.5, starts=starts)
    assert found.evaluations == 42
    torch.testing.assert_close(found.points, torch.tensor([[-1.5]]).double())


def test_step_schedules_and_nan():
    x = torch.zeros(3, 2).double()

    def f(y):
        return y.sum(1) + torch.tensor([0.0, float("nan"), 0.0])

    found = ti.ascend(f, x, norm="Linf", radius=1.0, steps=2, step=[0.5, 0.25])
    assert found.values[1].isnan()
    torch.testing.assert_close(found.points[0], torch.full((2,), 0.75).double())
    assert torch.isfinite(found.points).all()


def test_the_model_is_left_alone():
    model = torch.nn.Linear(3, 1)
    x = torch.randn(2, 3)
    ti.ascend(lambda y: model(y)[:, 0], x, norm="Linf", radius=0.1)
    assert model.weight.grad is None and not x.requires_grad


def test_bad_input_is_refused():
    _, x, f = linear()
    raw = unwrap(ti.ascend)
    for options, message in [
        ({"rule": "newton"}, "rule must be"),
        ({"keep": "first"}, "keep must be"),
        ({"steps": -1}, "steps must be"),
        ({"momentum": 1.0}, "momentum must"),
        ({"momentum": 0.5, "rule": "adam"}, "momentum must"),
        ({"starts": "corner"}, "starts must be"),
        ({"starts": x[:2]}, "starts must have shape"),
        ({"step": [1.0]}, "1 lengths for 20 steps"),
        ({"step": 0.0}, "step must be positive"),
        ({"norm": "L3"}, "norm must be"),
        ({"radius": -1.0}, "radius must"),
        ({"box": (5.0, 6.0)}, "outside of the box"),
    ]:
        with pytest.raises(InputError, match=message):
            raw(f, x, **({"norm": "L2", "radius": 1.0} | options))
    with pytest.raises(LossError, match="one value a row"):
        ti.ascend(lambda y: y.sum(), x, norm="L2", radius=1.0)
    with pytest.raises(LossError, match="depends on its argument"):
        ti.ascend(lambda y: torch.zeros(4), x, norm="L2", radius=1.0)
