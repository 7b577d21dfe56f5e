"""Reachability and loss floors against descents, brute force and known values."""

import numpy as np
import pytest
import torch

from thalweg.errors import InputError, StructureError
from thalweg.solvable import relu_topology as rt
from thalweg.solvable.relu_topology import Verdict


def circle(n):
    angle = 2 * np.pi * np.arange(n) / n
    x = np.stack([np.cos(angle), np.sin(angle)], 1)
    return x, np.maximum(x[:, 0], 0) - np.maximum(x[:, 1], 0)


def test_two_kinks_of_both_signs_obstruct_equal_locks():
    count = rt.count_neurons(np.eye(2), np.array([[1.0, -1.0]]))
    assert count.least == (1, 1) and count.exact
    assert rt.reachable((2, 0, 0), count).verdict is Verdict.OBSTRUCTED
    assert rt.reachable((1, 1, 0), count).verdict is Verdict.OPEN
    assert rt.reachable((1, 0, 1), count).verdict is Verdict.OPEN
    assert rt.reachable((0, 1, 0), count).verdict is Verdict.OBSTRUCTED


def test_null_and_parallel_neurons_do_not_count():
    w1 = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    w2 = np.array([[1.0, -0.5, 3.0, 1.0, 0.0]])
    assert rt.count_neurons(w1, w2).least == (1, 0)
    # Active on none of the data.
    data = np.array([[1.0, -1.0], [2.0, -3.0]])
    assert rt.count_neurons(w1, w2, data=data).least == (0, 0)


def test_linear_functions_need_a_pair():
    count = rt.count_neurons(np.array([[1.0, 2.0], [-1, -2]]), np.array([[1.0, -1.0]]))
    assert count.least == (1, 1) and count.exact
    constant = rt.count_neurons(np.zeros((1, 2)), np.array([[2.0]]), np.ones(1))
    assert (1, 0) in constant.sufficient


def test_orientations_that_do_not_match_leave_an_interval():
    # |x| + x/2 on one hyperplane: two neurons of one sign.
    w1, w2 = np.array([[1.0, 0.0], [-1.0, 0.0]]), np.array([[1.5, 0.5]])
    count = rt.count_neurons(w1, w2)
    assert count.least == (1, 0) and not count.exact and count.least_total == 2
    assert (2, 0) in count.sufficient
    assert rt.reachable((2, 0, 0), count).verdict is Verdict.OPEN
    assert rt.reachable((1, 0, 0), count).verdict is Verdict.OBSTRUCTED
    # Two kinks with a linear part across: three neurons may or may not do.
    w1 = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, -1.0]])
    count = rt.count_neurons(w1, np.array([[1.0, 1.0, 0.3, -0.3]]))
    assert rt.reachable((3, 0, 0), count).verdict is Verdict.UNDECIDED


def test_leaky_count_finds_the_orientations_of_its_target():
    rng = np.random.default_rng(0)
    w1, w2 = rng.standard_normal((5, 3)), rng.standard_normal((1, 5))
    for slope in (0.0, 0.2):
        count = rt.count_neurons(w1, w2, slope=slope)
        assert count.exact
        assert count.least == (int((w2 > 0).sum()), int((w2 < 0).sum()))


def test_unused_locked_neurons_vanish_in_the_limit():
    count = rt.count_neurons(np.eye(2)[:1], np.array([[1.0]]))
    found = rt.reachable((2, 1, 0), count)
    assert found.verdict is Verdict.OPEN and found.silenced == 1
    assert "in the limit" in found.reason


def test_reachability_reads_the_component_of_a_network():
    count = rt.count_neurons(np.eye(2), np.array([[1.0, -1.0]]))
    start = rt.components(0.1 * np.eye(2), np.array([[1.0, 1.0]]))
    assert rt.reachable(start, count).verdict is Verdict.OBSTRUCTED
    two = rt.components(np.eye(2), np.eye(2))
    with pytest.raises(InputError, match="one output, got 2"):
        rt.reachable(two, count)


def bracket(angles, targets):
    """Return a loss that a positive network has, and one that none goes below.

    Neurons relu(cos(theta - phi)) on a fine grid of directions phi, by bounded least
    squares; then weak duality: for <relu(cos(. - phi)), r> <= 0 at every phi, every
    positive sum f has ½ |y - f|² >= <y, r> - ½ |r|².
    """
    from scipy.optimize import lsq_linear

    phi = 2 * np.pi * np.arange(720) / 720
    atoms = np.cos(angles[:, None] - phi)
    atoms[atoms < 1e-14] = 0
    fit = lsq_linear(atoms, targets, (0, np.inf), method="bvls", tol=1e-15)
    rest = targets - atoms @ fit.x
    above = np.mean(rest**2) / 2
    rest -= max((rest @ atoms).max(), 0) / atoms.sum(0).min()
    assert (rest @ atoms).max() < 1e-15
    return np.mean(2 * rest * targets - rest**2) / 2, above


def test_floor_of_the_circle_lies_between_a_network_and_a_certificate():
    x, y = circle(48)
    low, high = bracket(2 * np.pi * np.arange(48) / 48, y)
    assert high - low < 1e-13
    floor = rt.loss_floor(x, y, 1)
    assert floor.certified and floor.exact and floor.gap < 1e-12
    assert floor.value == pytest.approx(high, rel=1e-12)
    # On the circle convexity alone gives the same floor, by another program.
    convexity = rt.loss_floor(x, y, 1, method="convexity")
    assert convexity.value == pytest.approx(high, rel=1e-9) and convexity.gap < 1e-10
    assert rt.loss_floor(x, -y, -1).value == pytest.approx(floor.value, rel=1e-12)


def test_floor_of_sixty_four_points_by_coordinate_descent():
    # One neuron at a time; the kinks at 64 points are at angles of the data.
    x, y = circle(64)
    steps = np.arange(64)
    atoms = np.cos(2 * np.pi * (steps[:, None] - steps) / 64)
    atoms[atoms < 1e-12] = 0
    weights, rest = np.zeros(64), y.copy()
    for _ in range(4000):
        for k in range(64):
            move = rest @ atoms[:, k] / (atoms[:, k] @ atoms[:, k])
            move = max(move, -weights[k])
            weights[k] += move
            rest -= move * atoms[:, k]
    found = np.mean(rest**2) / 2
    assert found == pytest.approx(0.0945919608, abs=1e-9)
    assert rt.loss_floor(x, y, 1).value == pytest.approx(found, abs=1e-9)


def test_bounds_are_ordered():
    rng = np.random.default_rng(3)
    for d in (2, 3):
        x, y = rng.standard_normal((16, d)), rng.standard_normal(16)
        sign, convexity, nnls = (
            rt.loss_floor(x, y, 1, method=m) for m in ("sign", "convexity", "nnls")
        )
        assert 0 < sign.value <= convexity.value + 1e-10
        assert convexity.value <= nnls.value + 1e-9
        assert convexity.gap < 1e-8 and nnls.exact


@pytest.mark.parametrize("activation", ["leaky_relu", "abs"])
def test_convexity_bounds_other_activations_too(activation):
    # Positive sums of many of their neurons, fitted by another solver, stay above.
    from scipy.optimize import nnls

    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((15, 2)), rng.standard_normal(15)
    angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    z = x @ np.stack([np.cos(angle), np.sin(angle)])
    atoms = np.abs(z) if activation == "abs" else np.where(z > 0, z, 0.2 * z)
    _, rest = nnls(atoms, y)
    bound = rt.loss_floor(x, y, 1, activation=activation, method="convexity")
    assert bound.certified and 0 < bound.value <= rest**2 / 30 + 1e-9
    if activation == "abs":
        sign = rt.loss_floor(x, y, 1, activation="abs", method="sign")
        assert sign.value <= bound.value
    else:
        relu = rt.loss_floor(x, y, 1, method="convexity")
        assert bound.value <= relu.value
        assert rt.loss_floor(x, y, 1, activation=activation, method="sign").value == 0


def test_convexity_is_tight_for_one_input_and_a_bias():
    rng = np.random.default_rng(5)
    x, y = rng.uniform(-1, 1, (20, 1)), rng.standard_normal(20)
    convexity = rt.loss_floor(x, y, 1, bias=True, method="convexity").value
    assert convexity == pytest.approx(rt.loss_floor(x, y, 1, bias=True).value, rel=1e-7)


def test_convexity_is_not_tight_on_the_support_function_of_a_triangle():
    x, _ = circle(12)
    corners = circle(3)[0]
    y = (x @ corners.T).max(1)
    assert rt.loss_floor(x, y, 1, method="convexity").value < 1e-10
    floor = rt.loss_floor(x, y, 1)
    assert floor.gap < 1e-12 and floor.value == pytest.approx(1 / 64, rel=1e-10)
    low, high = bracket(2 * np.pi * np.arange(12) / 12, y)
    assert low == pytest.approx(1 / 64, abs=1e-13)
    assert high == pytest.approx(1 / 64, abs=1e-13)


def test_convex_regression_agrees_with_a_general_solver():
    from scipy.optimize import minimize

    rng = np.random.default_rng(6)
    x, y = rng.uniform(-1, 1, (6, 1)), rng.standard_normal(6)
    tilde = np.pad(x, ((0, 0), (0, 1)), constant_values=1.0)

    def slacks(g):
        values = g.reshape(6, 2) @ tilde.T
        return (np.diag(values)[None] - values).ravel()

    found = minimize(
        lambda g: 0.5 * np.mean((np.sum(g.reshape(6, 2) * tilde, 1) - y) ** 2),
        np.zeros(12),
        constraints={"type": "ineq", "fun": slacks},
        options={"maxiter": 500, "ftol": 1e-14},
    )
    floor = rt.loss_floor(x, y, 1, output_bias=True, method="convexity")
    assert floor.value == pytest.approx(found.fun, abs=1e-7)


@pytest.mark.parametrize("output_bias", [False, True])
def test_descent_of_wide_networks_approaches_the_floor_from_above(output_bias):
    rng = np.random.default_rng(7)
    x, y = rng.standard_normal((10, 2)), rng.standard_normal(10)
    floor = rt.loss_floor(x, y, 1, output_bias=output_bias)
    w = torch.from_numpy(rng.standard_normal((200, 2))).requires_grad_()
    b = torch.zeros((), dtype=torch.float64, requires_grad=output_bias)
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
    # Output weights of 1/200, absorbed: positive sums of neurons.
    parameters = [w, b] if output_bias else [w]
    optimizer = torch.optim.LBFGS(parameters, max_iter=400, tolerance_change=1e-14)

    def closure():
        optimizer.zero_grad()
        value = (torch.relu(inputs @ w.T).mean(1) + b - targets).pow(2).mean() / 2
        value.backward()
        return value

    optimizer.step(closure)
    reached = closure().item()
    assert floor.value - 1e-10 <= reached <= floor.value + 0.02


def test_sign_bound_of_the_logistic_loss():
    x = np.ones((4, 1))
    y = np.array([1.0, -1.0, -1.0, 1.0])
    floor = rt.loss_floor(x, y, 1, loss="logistic", method="sign")
    assert floor.value == pytest.approx(0.5 * np.log(2))
    free = rt.loss_floor(x, y, 1, loss="logistic", method="sign", output_bias=True)
    assert free.value == 0.0


def test_logistic_convexity_against_descent_and_the_sign_bound():
    # Labels of a ring: no convex f is positive inside and negative outside.
    x = np.array([[0.0], [1.0], [-1.0], [0.5], [-0.5], [0.2]])
    y = np.array([1.0, -1.0, -1.0, -1.0, 1.0, 1.0])
    options = {"loss": "logistic", "method": "convexity", "output_bias": True}
    floor = rt.loss_floor(x, y, 1, **options)
    assert floor.certified and floor.gap < 1e-9
    # The best convex function of 6 points on a line, by its values and slopes.
    from scipy.optimize import minimize

    order = np.argsort(x[:, 0])
    t, labels = x[order, 0], y[order]

    def bends(z):
        return np.diff(np.diff(z) / np.diff(t))

    found = minimize(
        lambda z: np.mean(np.logaddexp(0, -labels * z)),
        np.zeros(6),
        constraints={"type": "ineq", "fun": bends},
        options={"maxiter": 1000, "ftol": 1e-14},
    )
    assert floor.value == pytest.approx(found.fun, abs=1e-6)
    assert floor.value > 0.1
    sign = rt.loss_floor(x, y, 1, loss="logistic", method="sign").value
    both = rt.loss_floor(x, y, 1, bias=True, loss="logistic", method="convexity").value
    assert both >= sign


@pytest.mark.parametrize("sign", [1, -1])
def test_sign_bound_of_a_loss_of_ones_own(sign):
    x, y = np.ones((4, 1)), np.array([1.5, -1.0, 1.0, -1.0])
    options = {"method": "sign"}

    def squares(z, t):
        return (z - t) ** 2 / 2

    expected = rt.loss_floor(x, y, sign, **options).value
    found = rt.loss_floor(x, y, sign, loss=squares, **options).value
    assert found == pytest.approx(expected, rel=1e-12)
    labels = np.sign(y)
    expected = rt.loss_floor(x, labels, sign, loss="logistic", **options).value
    found = rt.loss_floor(
        x, labels, sign, loss=lambda z, t: torch.nn.functional.softplus(-t * z),
        **options,
    ).value  # fmt: skip
    assert found == pytest.approx(expected, rel=1e-12)
    # Huber's and the hinge, where the minimum is flat or a kink; a brute-force grid.
    grid = sign * np.linspace(0, 20, 200_001)
    for loss in (
        lambda z, t: torch.nn.functional.huber_loss(z, 3 * t, reduction="none"),
        lambda z, t: (1 - t * z).relu(),
        lambda z, t: (z - t).abs() + 0.25 * (z + 1) ** 2,
    ):
        points = torch.from_numpy(grid)
        values = torch.stack([loss(points, torch.full_like(points, t)) for t in y])
        found = rt.loss_floor(x, y, sign, loss=loss, **options).value
        assert found == pytest.approx(values.min(1).values.mean().item(), abs=1e-8)
        assert found <= values.min(1).values.mean().item() + 1e-12
    free = rt.loss_floor(x, y, sign, loss=squares, output_bias=True, **options)
    assert free.value == 0.0


def test_losses_of_ones_own_are_checked():
    x, y = np.ones((2, 1)), np.array([1.0, -1.0])
    for loss, match in (
        (lambda z, t: z.sum(), "loss must return one value an example"),
        (lambda z, t: z - 1, "not negative at the output 0"),
        (lambda z, t: 2 + torch.cos(3 * z + 1), "loss must be convex"),
    ):
        with pytest.raises(InputError, match=match):
            rt.loss_floor(x, y, 1, loss=loss, method="sign")
    with pytest.raises(InputError, match='a loss of your own needs method="sign"'):
        rt.loss_floor(x, y, 1, loss=lambda z, t: z**2, method="convexity")


def test_linear_networks_are_not_obstructed():
    x, y = circle(8)
    floor = rt.loss_floor(x, y, 1, activation="identity")
    assert (floor.value, floor.method) == (0.0, "trivial")
    # One neuron of positive output sign is any linear function.
    w = np.linalg.lstsq(x, -x[:, 0], rcond=None)[0]
    np.testing.assert_allclose(2.0 * (x @ (w / 2)), -x[:, 0], atol=1e-12)


def test_mixed_signs_have_the_trivial_bound():
    x, y = circle(8)
    mixed = rt.components(0.1 * np.eye(2), np.array([[1.0, -1.0]]))
    assert rt.loss_floor(x, y, mixed).method == "trivial"
    equal = rt.components(0.1 * np.eye(2), np.array([[1.0, 1.0]]))
    assert rt.loss_floor(x, y, equal).value > 0.05


def test_subsets_and_samples_say_so():
    rng = np.random.default_rng(8)
    x, y = rng.standard_normal((30, 2)), rng.standard_normal(30)
    part = rt.loss_floor(x, y, 1, method="convexity", max_points=10)
    whole = rt.loss_floor(x, y, 1, method="convexity")
    assert part.share == pytest.approx(1 / 3) and part.value <= whole.value
    wide = rng.standard_normal((40, 6))
    estimate = rt.loss_floor(wide, rng.standard_normal(40), 1)
    assert estimate.method == "estimate" and not estimate.certified


def test_errors_of_floors_and_counts():
    x, y = circle(8)
    with pytest.raises(StructureError, match="one output, got 2"):
        rt.count_neurons(np.eye(2), np.eye(2))
    with pytest.raises(InputError, match="slope must be in"):
        rt.count_neurons(np.eye(2), np.ones((1, 2)), slope=1.0)
    with pytest.raises(StructureError, match=r"data must have shape \(n, 2\)"):
        rt.count_neurons(np.eye(2), np.ones((1, 2)), data=np.ones((3, 3)))
    with pytest.raises(InputError, match="start must be three counts"):
        rt.reachable((-1, 0, 0), rt.count_neurons(np.eye(2), np.ones((1, 2))))
    with pytest.raises(StructureError, match="x must have shape"):
        rt.loss_floor(x, y[:3], 1)
    with pytest.raises(InputError, match="component must be"):
        rt.loss_floor(x, y, 3)
    with pytest.raises(InputError, match="x and y must be finite"):
        rt.loss_floor(x, y * np.nan, 1)
    with pytest.raises(InputError, match='"logistic" needs method="sign" or'):
        rt.loss_floor(x, y, 1, loss="logistic")
    with pytest.raises(InputError, match="labels of -1 and"):
        rt.loss_floor(x, y, 1, loss="logistic", method="sign")
    with pytest.raises(InputError, match='"nnls" needs activation "relu"'):
        rt.loss_floor(x, y, 1, activation="abs")
    with pytest.raises(InputError, match="max_points must be at least 1"):
        rt.loss_floor(x, y, 1, max_points=0)
