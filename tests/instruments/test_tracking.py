"""Tracking: numbers in closed form, models and generators untouched, every trainer."""

import inspect
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from thalweg import NetworkLandscape, Quadratic
from thalweg import instruments as ti
from thalweg.data import digits
from thalweg.errors import InputError, MissingExtraError, StoreError
from thalweg.execution import load_dataset
from thalweg.instruments import trainer_callbacks
from thalweg.models import mlp
from thalweg.training import fit


def regression(rows=40, inputs=6):
    """A linear model with MSE: H = 2 XᵀX / N."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(rows, inputs, generator=g, dtype=torch.float64)
    y = torch.randn(rows, 1, generator=g, dtype=torch.float64)
    model = nn.Linear(inputs, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.arange(inputs) / inputs)
    return model, x, y, NetworkLandscape(model, nn.MSELoss(), (x, y))


def test_every_quantity_of_linear_regression_in_closed_form():
    model, x, y, land = regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    tracker = ti.track(land, rho=0.1, tol=1e-9)
    for step in range(4):
        found = tracker(step, optimizer=optimizer)
        N, w = len(x), model.weight.detach()[0]
        H = 2 * x.T @ x / N
        residual = x @ w - y[:, 0]
        each = 2 * residual[:, None] * x
        g = each.mean(0)
        eigenvalues = torch.linalg.eigvalsh(H)
        unit = g / g.norm()
        variance = (each - g).square().sum() / (N - 1)
        exact = {
            "loss": residual.square().mean(),
            "gradient_norm": g.norm(),
            "lambda_max": eigenvalues[-1],
            "trace": eigenvalues.sum(),
            "sharpness": 0.1 * g.norm() + 0.005 * unit @ H @ unit,
            "noise_scale": variance / g.square().sum(),
            "learning_rate": 0.05,
            "threshold": 40.0,
        }
        for name, value in exact.items():
            assert found[name] == pytest.approx(float(value), rel=1e-9), name
        model.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
    data = tracker.to_dataset()
    assert data["step"].values.tolist() == [0, 1, 2, 3]
    assert (data["lambda_max_residual"] < 1e-8 * data["lambda_max"]).all()
    assert data["loss"].values[0] > data["loss"].values[3]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.5, "dampening": 0.5},
        {"momentum": 0.9, "nesterov": True},
    ],
)
def test_the_threshold_is_where_sgd_diverges_on_a_parabola(settings):
    model, _, _, land = regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, **settings)
    threshold = ti.track(land, quantities=("gradient_norm",))(optimizer=optimizer)
    for factor, grows in ((0.99, False), (1.01, True)):
        curvature = factor * threshold["threshold"]
        x = torch.ones(1, dtype=torch.float64, requires_grad=True)
        sgd = torch.optim.SGD([x], lr=0.1, **settings)
        size = 0.0
        for step in range(3000):
            x.grad = curvature * x.detach()
            sgd.step()
            size = max(size, float(x.detach().abs())) if step > 2000 else 0.0
        assert (size > 1) == grows


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.RMSprop])
def test_no_threshold_is_claimed_of_other_optimizers_or_mixed_rates(make):
    model, _, _, land = regression()
    tracker = ti.track(land, quantities=("gradient_norm",))
    found = tracker(optimizer=make(model.parameters(), lr=0.1))
    assert math.isnan(found["threshold"]) and found["learning_rate"] == 0.1
    extra = nn.Parameter(torch.zeros(1))
    groups = [{"params": list(model.parameters())}, {"params": [extra], "lr": 0.2}]
    found = tracker(optimizer=torch.optim.SGD(groups, lr=0.1))
    assert math.isnan(found["threshold"]) and found["learning_rate"] == 0.2


class Noisy(nn.Module):
    """Dropout and batch normalization: generators and buffers are at stake."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(64, 8),
            nn.BatchNorm1d(8),
            nn.Tanh(),
            nn.Dropout(0.3),
            nn.Linear(8, 10),
        )

    def forward(self, x):
        return self.body(x)


def trained(tracked):
    data = digits().subset(range(120))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Noisy()
    land = NetworkLandscape(model, nn.CrossEntropyLoss(), data)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    tracker = ti.track(land, 3, rho=0.05, probes=2)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for step in range(7):
            optimizer.zero_grad()
            F.cross_entropy(model(data.inputs), data.targets).backward()
            gradients = [p.grad.clone() for p in model.parameters()]
            optimizer.step()
            if tracked:
                tracker(step, optimizer=optimizer)
                kept = [p.grad for p in model.parameters()]
                assert all(map(torch.equal, gradients, kept))
        drawn = torch.rand(3)
    return model, optimizer, drawn, tracker, data


def test_training_is_the_same_to_the_bit_with_a_tracker():
    plain, tracked = trained(False), trained(True)
    for (name, a), b in zip(
        plain[0].state_dict().items(), tracked[0].state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    assert tracked[0].training and torch.equal(plain[2], tracked[2])
    for a, b in zip(
        plain[1].state_dict()["state"].values(),
        tracked[1].state_dict()["state"].values(),
        strict=True,
    ):
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_models_present_buffers_count():
    model, _, _, tracker, data = trained(True)
    assert tracker.to_dataset()["step"].values.tolist() == [0, 3, 6]
    model.eval()
    loss = float(F.cross_entropy(model(data.inputs), data.targets).detach())
    assert float(tracker.to_dataset()["loss"][-1]) == pytest.approx(loss, rel=1e-6)


def digits_run(**settings):
    data = digits().subset(range(100))
    model = mlp((64, 6, 10), seed=0)
    land = NetworkLandscape(model, F.cross_entropy, data)
    tracker = ti.track(land, **settings)
    return data, model, tracker


def loss(model, batch, state):
    inputs, targets = batch
    return F.cross_entropy(model(inputs), targets)


def test_a_warm_start_finds_what_dense_hessians_have_with_fewer_products():
    data, model, tracker = digits_run(every=5, quantities=("lambda_max",), tol=1e-4)
    dense, cold = [], []

    def look(model, state):
        if state.step % 5 == 0:
            here = tracker.land.with_state(model)
            H = here.hessian(here.origin)
            dense.append(float(torch.linalg.eigvalsh(H.dense().double())[-1]))
            cold.append(ti.top_eigenpairs(H, 1, tol=1e-4).products)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hooks = [look, tracker.hook]
    fit(model, loss, data, optimizer, epochs=40, batch_size=None, after_step=hooks)
    found = tracker.to_dataset()
    np.testing.assert_allclose(found["lambda_max"], dense, rtol=1e-5)
    assert found["products"].values[1:].sum() < 0.9 * sum(cold[1:])


def test_the_hook_of_an_optimizer_counts_its_steps():
    data, model, tracker = digits_run(every=2, quantities=("gradient_norm",))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = tracker.attach(optimizer)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(model(data.inputs), data.targets).backward()
        optimizer.step()
    handle.remove()
    optimizer.step()
    found = tracker.to_dataset()
    assert found["step"].values.tolist() == [0, 2, 4]
    assert (found["threshold"] == 20.0).all()


def test_a_closed_tracker_has_let_go_of_the_optimizer(tmp_path):
    data, model, tracker = digits_run(
        quantities=("gradient_norm",), store=tmp_path / "run"
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    F.cross_entropy(model(data.inputs), data.targets).backward()
    with tracker:
        tracker.attach(optimizer)
        optimizer.step()
        optimizer.step()
    optimizer.step()
    assert tracker.to_dataset()["step"].values.tolist() == [0, 1]


def test_it_is_stored_with_the_trajectory_and_goes_on(tmp_path):
    store = tmp_path / "run"
    for first, last in ((0, 4), (2, 6)):  # the second run repeats two steps
        _, model, tracker = digits_run(
            every=1, quantities=("gradient_norm",), store=store
        )
        with tracker:
            for step in range(first, last):
                tracker(step, learning_rate=0.5, round=first)
    found = load_dataset(store / "tracking.nc")
    assert found["step"].values.tolist() == list(range(6))
    assert found["round"].values.tolist() == [0, 0, 0, 0, 2, 2]
    assert (found["threshold"] == 4.0).all()
    assert found.attrs["kind"] == "tracking"
    path = ti.Trajectory(
        NetworkLandscape(model, F.cross_entropy, digits()), store=store
    )
    assert path.shape == (6, tracker.land.dim)
    assert torch.equal(path[0], tracker.land.flatten(model))
    other = NetworkLandscape(mlp((64, 5, 10)), F.cross_entropy, digits())
    with pytest.raises(StoreError, match="trajectory of something else"):
        ti.track(other, store=store)


def test_after_divergence_the_numbers_are_nan():
    model, _, _, land = regression()
    tracker = ti.track(land)
    with torch.no_grad():
        model.weight.fill_(1e200)
    found = tracker(0)
    assert found["loss"] == math.inf
    assert all(math.isnan(found[name]) for name in ("lambda_max", "noise_scale"))
    assert float(tracker.to_dataset()["loss"][0]) == math.inf


def test_lightning_calls_it(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")
    data, model, tracker = digits_run(
        every=2, quantities=("lambda_max",), store=tmp_path / "run"
    )

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = model

        def training_step(self, batch, index):
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    rows = torch.utils.data.TensorDataset(data.inputs, data.targets)
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[tracker.lightning_callback()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(rows, batch_size=20))
    found = load_dataset(tmp_path / "run" / "tracking.nc")
    assert found["step"].values.tolist() == [0, 2, 4]
    assert (found["threshold"] == 20.0).all()
    assert (found["lambda_max"] > 0).all()


def test_the_hugging_face_trainer_calls_it(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = mlp((64, 12, 10), seed=0)

        def forward(self, inputs, labels):
            logits = self.model(inputs)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    data = digits().subset(range(100))
    model = Classifier()
    rows = [
        {"inputs": x, "labels": y}
        for x, y in zip(data.inputs, data.targets, strict=True)
    ]
    everything = [{"inputs": data.inputs, "labels": data.targets}]
    land = NetworkLandscape(
        model, lambda model, batch: model(**batch)["loss"], everything, form="model"
    )
    tracker = ti.track(land, 2, ("lambda_max",), store=tmp_path / "run")
    trainer = transformers.Trainer(
        model,
        transformers.TrainingArguments(
            str(tmp_path / "out"),
            num_train_epochs=1,
            per_device_train_batch_size=20,
            learning_rate=0.1,
            lr_scheduler_type="constant",
            optim="sgd",
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=rows,
        callbacks=[tracker.transformers_callback()],
    )
    trainer.train()
    found = load_dataset(tmp_path / "run" / "tracking.nc")
    assert found["step"].values.tolist() == [0, 2, 4]
    assert (found["threshold"] == 20.0).all()
    start = NetworkLandscape(mlp((64, 12, 10), seed=0), F.cross_entropy, data)
    top = ti.top_eigenpairs(start.hessian(start.origin), 1)
    assert float(found["lambda_max"][0]) == pytest.approx(
        float(top.values[0]), rel=1e-3
    )


def test_a_missing_trainer_says_what_to_install(monkeypatch):
    _, _, tracker = digits_run()
    monkeypatch.setattr(trainer_callbacks, "_LIGHTNING", ("no_such_package",))
    with pytest.raises(MissingExtraError, match=r"pip install 'thalweg\[trainers\]'"):
        tracker.lightning_callback()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantities": ("lambda_min",)}, "quantities must be some of"),
        ({"quantities": ()}, "quantities must be some of"),
        ({"every": 0}, "every must be at least 1"),
        ({"rho": 0.0}, "rho must be positive, got 0.0"),
        ({"tol": -1.0}, "tol must be positive"),
        ({"probes": 1}, "probes must be at least 2"),
    ],
)
def test_bad_input_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        inspect.unwrap(ti.track)(regression()[3], **settings)


def test_a_landscape_without_a_model_is_refused():
    land = Quadratic(torch.eye(2, dtype=torch.float64))
    with pytest.raises(InputError, match="land must be a NetworkLandscape"):
        inspect.unwrap(ti.track)(land)


def test_gradient_descent_on_digits_goes_to_the_edge_of_stability():
    """λ_max rises from less than half of 2/η to it, and then stays around it."""
    data = digits().subset(range(300))
    model = mlp((64, 20, 20, 20, 10), seed=0)

    def half_square(outputs, targets):
        return (outputs - F.one_hot(targets, 10)).square().sum(1).mean() / 2

    def loss(model, batch, state):
        return half_square(model(batch[0]), batch[1])

    land = NetworkLandscape(model, half_square, data)
    tracker = ti.track(land, 25, ("lambda_max",))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    fit(
        model,
        loss,
        data,
        optimizer,
        epochs=700,
        batch_size=None,
        after_step=[tracker.hook],
    )
    found = tracker.to_dataset()
    ratio = (found["lambda_max"] / found["threshold"]).values
    assert ratio[0] < 0.5
    late = ratio[found["step"].values >= 300]
    assert 0.95 < late.min() and late.max() < 1.25
