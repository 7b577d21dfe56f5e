"""The training loop against loops written out, closed forms, and itself resumed."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from thalweg.data import digits
from thalweg.errors import DataError, InputError, LossError, NonFiniteLossError
from thalweg.models import mlp
from thalweg.training import History, fit


def cross_entropy(model, batch, state):
    inputs, targets = batch
    return F.cross_entropy(model(inputs), targets)


def regression(n=10, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=g, dtype=torch.float64)
    return x, x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def squares(model, batch, state):
    x, y = batch
    return (model(x)[:, 0] - y).square().mean()


def linear():
    model = nn.Linear(3, 1, dtype=torch.float64)
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    return model


def test_full_batch_gradient_descent_follows_its_closed_form():
    x, y = regression()
    model = linear()
    model.bias.requires_grad_(False)
    lr, epochs = 0.1, 20
    history = fit(
        model,
        squares,
        (x, y),
        torch.optim.SGD([model.weight], lr=lr),
        epochs=epochs,
        batch_size=None,
    )
    solution = torch.linalg.lstsq(x, y).solution
    shrink = torch.eye(3, dtype=torch.float64) - lr * 2 * x.T @ x / 10
    expected = solution - torch.linalg.matrix_power(shrink, epochs) @ solution
    torch.testing.assert_close(model.weight[0], expected, rtol=0, atol=1e-14)
    # the loss of a step is that before it
    assert history.steps["loss"][0] == pytest.approx(float(y.square().mean()), 1e-14)
    assert history.steps["evaluations"].tolist() == [1] * epochs


def test_equals_a_loop_written_out():
    x, y = regression(10)
    model, other = linear(), linear()
    seen = []

    def spying(model, batch, state):
        seen.append(batch)
        return squares(model, batch, state)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    history = fit(model, spying, (x, y), optimizer, epochs=3, batch_size=4, seed=5)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for batch in seen:
        optimizer.zero_grad()
        loss = squares(other, batch, None)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    assert torch.equal(model.weight, other.weight)
    assert history.steps["loss"].tolist() == losses
    # 10 rows in batches of 4: the last one holds 2; each epoch holds each row once
    assert history.steps["examples"].tolist() == [4, 4, 2] * 3
    for epoch in range(3):
        rows = torch.cat([b[0] for b in seen[3 * epoch : 3 * epoch + 3]])
        assert torch.equal(rows.sort(0).values, x.sort(0).values)
        weighted = np.average(losses[3 * epoch : 3 * epoch + 3], weights=[4, 4, 2])
        assert history.epochs["loss"][epoch] == pytest.approx(weighted, 1e-15)
    assert not torch.equal(seen[0][0], seen[3][0])  # another order in each epoch


def test_user_state_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    model.eval()
    model[1].train()
    torch.manual_seed(1), np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    data = torch.randn(6, 3, generator=torch.Generator()), torch.arange(6) % 2

    def noisy(model, batch, state):
        assert model.training and model[1].training
        np.random.rand()
        return cross_entropy(model, batch, state)

    fit(model, noisy, data, torch.optim.SGD(model.parameters(), lr=0.1), epochs=2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert [m.training for m in model] == [False, True, False] and not model.training
    assert all(p.grad is None for p in model.parameters())


def dropout_run(global_seed, seed=0):
    model = mlp((4, 8, 2))
    model.insert(2, nn.Dropout(0.5))
    torch.manual_seed(global_seed)
    data = torch.ones(9, 4), torch.arange(9) % 2
    optimizer = torch.optim.Adam(model.parameters())
    return fit(
        model, cross_entropy, data, optimizer, epochs=2, batch_size=4, seed=seed
    ).steps["loss"]


def test_dropout_is_a_function_of_the_seed():
    assert np.array_equal(dropout_run(1), dropout_run(2))
    assert not np.array_equal(dropout_run(1), dropout_run(1, seed=1))


def test_schedules_and_what_is_logged():
    x, y = regression(8)
    model = linear()
    seen = []

    def loss(model, batch, state):
        seen.append((state["eps"], state.fraction, state.epoch, state.step))
        state.log(rows=len(batch[0]))
        fit_term = squares(model, batch, state)
        return {"fit": fit_term, "decay": state["eps"] * model.weight.square().sum()}

    def validation(model, state):
        state.log(validation=state.epoch + 0.5)

    history = fit(
        model,
        loss,
        (x, y),
        torch.optim.Adam(model.parameters()),
        epochs=2,
        batch_size=4,
        schedules={"lr": lambda t: 0.1 * (1 - t), "eps": lambda t: 2 * t},
        after_epoch=[validation],
    )
    assert seen == [(0, 0, 0, 0), (0.5, 0.25, 0, 1), (1, 0.5, 1, 2), (1.5, 0.75, 1, 3)]
    np.testing.assert_allclose(history.steps["lr"], [0.1, 0.075, 0.05, 0.025])
    assert history.steps["rows"].tolist() == [4] * 4
    total = history.steps["fit"] + history.steps["decay"]
    np.testing.assert_allclose(history.steps["loss"], total, rtol=1e-15)
    assert history.last["validation"] == 1.5 and history.last["rows"] == 4
    assert list(history.epochs) == ["loss", "fit", "decay", "rows", "validation"]
    dataset = history.to_dataset()
    assert dataset.sizes == {"step": 4, "epoch": 2}
    assert dataset["epoch_of_step"].values.tolist() == [0, 0, 1, 1]
    assert dataset["epoch_loss"].values.tolist() == history.epochs["loss"].tolist()
    assert dataset.attrs["seed"] == "0" and dataset.attrs["status"] == "finished"
    with pytest.raises(ValueError, match="read-only"):
        history.steps["lr"][0] = 1.0


def test_lbfgs_calls_the_loss_as_often_as_it_likes():
    x, y = regression()
    model = linear()
    evaluations = []

    def loss(model, batch, state):
        evaluations.append(state.evaluations)
        state.log(which=state.evaluations)
        return squares(model, batch, state)

    optimizer = torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe")
    history = fit(model, loss, (x, y), optimizer, epochs=2, batch_size=None)
    assert history.steps["evaluations"].sum() == len(evaluations) > 4
    assert history.steps["which"].tolist() == [0, 0]  # the first evaluation's
    assert squares(model, (x, y), None).item() < 1e-9


class TwoPass(torch.optim.Optimizer):
    """Sharpness-aware descent in the least code: perturb, again, put back, step."""

    def __init__(self, base, rho):
        self.base, self.rho, self.prepared = base, rho, False
        super().__init__(base.param_groups, base.defaults)

    def prepare(self, closure):
        closure()
        weights = [p for g in self.param_groups for p in g["params"]]
        old = [p.detach().clone() for p in weights]
        norm = torch.stack([p.grad.norm() for p in weights]).norm()
        with torch.no_grad():
            for p in weights:
                p += self.rho * p.grad / norm
        closure()
        with torch.no_grad():
            for p, o in zip(weights, old, strict=True):
                p.copy_(o)
        self.prepared = True

    def step(self, closure=None):
        if not self.prepared:
            self.prepare(closure)
        self.prepared = False
        self.base.step()


def two_pass_run(**options):
    model, data = linear(), regression()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    history = fit(
        model, squares, data, TwoPass(base, 0.1), epochs=3, batch_size=None, **options
    )
    return model, history


def test_two_pass_optimizers_report_the_unperturbed_loss():
    model, history = two_pass_run()
    assert history.steps["evaluations"].tolist() == [2, 2, 2]
    x, y = regression()
    assert history.steps["loss"][0] == pytest.approx(float(y.square().mean()), 1e-14)
    assert history.steps["loss"][2] < history.steps["loss"][0]


@pytest.mark.parametrize("kind", ["plain", "two-pass", "lbfgs"])
def test_hooks_before_a_step_see_the_final_gradient(kind):
    calls = []

    def freeze_first(model, state):
        calls.append(state.evaluations)
        model.weight.grad[:, 0] = 0.0

    if kind == "two-pass":
        model, _ = two_pass_run(before_step=[freeze_first])
        assert calls == [2, 2, 2]
    else:
        model = linear()
        optimizer = {
            "plain": torch.optim.SGD(model.parameters(), lr=0.1),
            "lbfgs": torch.optim.LBFGS(model.parameters(), lr=0.1),
        }[kind]
        fit(
            model,
            squares,
            regression(),
            optimizer,
            epochs=3,
            before_step=[freeze_first],
        )
    assert model.weight[0, 0] == 0 and (model.weight[0, 1:] != 0).all()


@pytest.mark.parametrize(
    "form",
    ["mapping", "data set", "loader", "list of batches", "labeled"],
)
def test_forms_of_data(form):
    data = digits()
    x, y = data.inputs[:10], data.targets[:10]
    pairs = [(x[i], int(y[i])) for i in range(10)]

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 10

        def __getitem__(self, i):
            return pairs[i]

    given = {
        "mapping": {"x": x, "labels": y},
        "data set": Rows(),
        "loader": torch.utils.data.DataLoader(Rows(), batch_size=4, shuffle=True),
        "list of batches": [(x[:4], y[:4]), (x[4:8], y[4:8]), (x[8:], y[8:])],
        "labeled": data.subset(range(10)),
    }[form]
    sums = []

    def loss(model, batch, state):
        inputs, targets = batch.values() if form == "mapping" else batch
        sums.append(float(inputs.sum()))
        return F.cross_entropy(model(inputs), targets)

    def run():
        sums.clear()
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return fit(model, loss, given, optimizer, epochs=2, batch_size=4)

    first = run()
    assert first.steps["examples"].tolist() == [4, 4, 2] * 2
    assert sum(sums[:3]) == pytest.approx(float(x.sum()), 1e-5)
    torch.manual_seed(77)  # a loader's order does not hang on the global generator
    assert np.array_equal(run().steps["loss"], first.steps["loss"])
    if form not in ("list of batches",):
        assert sums[:3] != sums[3:]


def test_stop_ends_the_run():
    lengths = []

    def enough(history):
        assert isinstance(history, History)
        lengths.append(len(history))
        return len(history) == 3

    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    history = fit(model, squares, regression(), optimizer, epochs=9, stop=enough)
    assert (history.status, len(history), lengths) == ("stopped", 3, [1, 2, 3])
    assert repr(history).startswith("History(stopped: 3 epochs, 3 steps")


def test_a_non_finite_loss_says_where_and_leaves_the_weights_before():
    model = linear()
    weights = []

    def loss(model, batch, state):
        weights.append(model.weight.detach().clone())
        return squares(model, batch, state) * (math.nan if state.step == 5 else 1.0)

    with pytest.raises(
        NonFiniteLossError, match=r"loss is nan in epoch 1, step 2, eps = 0.625"
    ):
        fit(
            model,
            loss,
            regression(9),
            torch.optim.SGD(model.parameters(), lr=0.1),
            epochs=3,
            batch_size=4,
            schedules={"eps": lambda t: t * 9 / 8},
        )
    assert torch.equal(model.weight, weights[-1])


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda m, b, s: m(b[0])[:, 0], r"scalar, got shape \(10,\)"),
        (lambda m, b, s: 1.0, "tensor with a graph, got float"),
        (lambda m, b, s: squares(m, b, s).detach(), "no graph"),
        (lambda m, b, s: {"a": None}, "without any loss"),
        (lambda m, b, s: {"a": m(b[0])}, r"part 'a' of the loss must be a scalar"),
        (lambda m, b, s: {"loss": squares(m, b, s)}, r"named \['loss'\]"),
    ],
)
def test_bad_losses_are_refused(loss, message):
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(LossError, match=message):
        fit(model, loss, regression(), optimizer, epochs=1)
    assert model.weight.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epochs": 0}, InputError, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, InputError, "batch_size must be at least 1 or None, got 0"),
        ({"resume": True}, InputError, "need a checkpoint"),
        ({"checkpoint_every": 0}, InputError, "checkpoint_every must be"),
        ({"schedules": {"loss": float}}, InputError, r"named \['loss'\]"),
        ({"schedules": {"lr": lambda t: math.inf}}, InputError, "'lr' gave inf"),
        ({"data": (torch.zeros(0, 3),)}, DataError, "is empty"),
        ({"data": []}, DataError, "is empty"),
        ({"data": iter([1])}, DataError, "wrap the batches in a list"),
        (
            {"data": (torch.zeros(2, 3), torch.zeros(3))},
            DataError,
            r"leading dimension, got \(2, 3\), \(3,\)",
        ),
        ({"data": {"x": [1]}}, DataError, "tensors only"),
        (
            {"optimizer": torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1)},
            InputError,
            "no parameter of the model",
        ),
    ],
)
def test_bad_arguments_are_refused(options, error, message):
    model = linear()
    arguments = {
        "data": regression(),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "epochs": 1,
    }
    with pytest.raises(error, match=message):
        fit(model, squares, **(arguments | options))
