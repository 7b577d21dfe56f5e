"""What a loss may be: its forms, weights, reductions, rows and errors."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from landscapes.networks import mlp, reference
from thalweg.errors import DataError, LossError
from thalweg.landscapes import NetworkLandscape


def test_batches_of_unequal_size_are_weighted(digits):
    x, y = digits
    model = mlp()
    whole = NetworkLandscape(model, F.cross_entropy, [(x, y)])
    for split in (1790, 1400):
        parts = NetworkLandscape(
            model, F.cross_entropy, [(x[:split], y[:split]), (x[split:], y[split:])]
        )
        p = whole.origin + 0.1
        assert abs(float(parts.loss(p) - whole.loss(p))) < 1e-12
        assert float((parts.gradient(p) - whole.gradient(p)).abs().max()) < 1e-12


def test_sum_reduction_adds(digits):
    x, y = digits[0][:20], digits[1][:20]
    loss = nn.CrossEntropyLoss(reduction="sum")
    parts = NetworkLandscape(
        mlp(), loss, [(x[:13], y[:13]), (x[13:], y[13:])], reduction="sum"
    )
    expected = 20 * F.cross_entropy(mlp()(x), y)
    torch.testing.assert_close(parts.loss(parts.origin), expected.detach())
    torch.testing.assert_close(parts.example_losses().sum(), expected.detach())


def test_token_weights_through_the_loss_and_through_weight(digits):
    x, y = digits[0][:40], digits[1][:40].clone()
    y[::3] = -100
    expected = F.cross_entropy(mlp()(x), y).detach()
    batches = [(x[:7], y[:7]), (x[7:], y[7:])]
    counted = lambda batch: (batch[1] != -100).sum()  # noqa: E731
    by_option = NetworkLandscape(mlp(), F.cross_entropy, batches, weight=counted)

    def pairs(output, target):
        return F.cross_entropy(output, target), (target != -100).sum()

    by_loss = NetworkLandscape(mlp(), pairs, batches)
    for land in (by_option, by_loss):
        torch.testing.assert_close(land.loss(land.origin), expected)
    values = by_option.example_losses()
    torch.testing.assert_close(values[y != -100].mean(), expected)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignore", [-100, 2])
def test_the_weights_of_cross_entropy_are_known(digits, weighted, ignore):
    x, y = digits[0][:60], digits[1][:60].clone()
    y[::4] = ignore
    y[50:53] = ignore  # a batch of which nothing counts
    classes = torch.linspace(0.2, 3, 10, dtype=torch.float64) if weighted else None
    loss = nn.CrossEntropyLoss(weight=classes, ignore_index=ignore)
    split = [(x[a:b], y[a:b]) for a, b in ((0, 7), (7, 50), (50, 53), (53, 60))]
    whole = NetworkLandscape(mlp(), loss, [(x, y)])
    parts = NetworkLandscape(mlp(), loss, split)
    p, v = whole.origin, torch.ones_like(whole.origin)
    torch.testing.assert_close(whole.loss(p), loss(mlp()(x), y).detach())
    for left, right in (
        (parts.loss(p), whole.loss(p)),
        (parts.gradient(p), whole.gradient(p)),
        (parts.hessian(p) @ v, whole.hessian(p) @ v),
        (parts.ggn(p) @ v, whole.ggn(p) @ v),
    ):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-12)
    values, counted = parts.example_losses(), y != ignore
    weights = torch.ones(10).double() if classes is None else classes
    weights = weights[y[counted]] / weights[y[counted]].sum()
    torch.testing.assert_close(weights @ values[counted], whole.loss(p))


def test_examples_combine_to_loss_and_gradient(digits):
    x, y = digits[0][:23], digits[1][:23]
    land = NetworkLandscape(
        mlp(), F.cross_entropy, [(x[:16], y[:16]), (x[16:], y[16:])], weight_decay=1.0
    )
    model = mlp()
    rows = F.cross_entropy(model(x), y, reduction="none").detach()
    torch.testing.assert_close(land.example_losses(), rows)
    gradients = land.example_gradients(chunk=5)
    assert gradients.shape == (23, land.dim)
    torch.testing.assert_close(
        gradients.mean(0) + land.origin, land.gradient(land.origin)
    )
    p = land.origin.clone().requires_grad_()
    (first,) = torch.autograd.grad(reference(model, x[:1], y[:1], p), p)
    torch.testing.assert_close(gradients[0], first)
    stderr = float(rows.std() / 23**0.5)
    assert land.loss_stderr() == pytest.approx(stderr, rel=1e-10)
    p = land.origin + 0.1
    paired = land.example_losses(p) - rows
    expected = float(paired.std() / 23**0.5)
    assert land.loss_stderr(p, reference=land.origin) == pytest.approx(expected)


def test_a_loss_that_couples_rows_is_refused(digits):
    x, y = digits[0][:20], digits[1][:20]

    def contrast(output, target):
        return (output - output.mean(0)).square().mean()

    land = NetworkLandscape(mlp(), contrast, (x, y))
    with pytest.raises(LossError, match="couples the rows"):
        land.example_losses()


def test_looped_examples_equal_vectorized_ones(digits):
    x, y = digits[0][:6], digits[1][:6]

    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, x):
            return self.net(x) * (2.0 if x.sum().item() > -1 else 1.0)

    looped = NetworkLandscape(Branching(), F.cross_entropy, (x, y))
    scaled = lambda o, t: F.cross_entropy(2 * o, t)  # noqa: E731
    plain = NetworkLandscape(mlp(), scaled, (x, y))
    torch.testing.assert_close(looped.example_gradients(), plain.example_gradients())
    torch.testing.assert_close(looped.example_losses(), plain.example_losses())


def test_subset_batches_and_subsample(digits):
    x, y = digits
    land = NetworkLandscape(mlp(), F.cross_entropy, (x, y))
    rows = land.example_losses()
    part = land.subset([5, 3, 1000])
    torch.testing.assert_close(part.loss(land.origin), rows[[3, 5, 1000]].mean())
    pieces = land.batches(500)
    assert [p.rows for p in pieces] == [500, 500, 500, 297]
    torch.testing.assert_close(pieces[3].loss(land.origin), rows[1500:].mean())
    torch.testing.assert_close(
        land.subset(range(100)).subset([7]).loss(land.origin), rows[7]
    )
    few = NetworkLandscape(mlp(), F.cross_entropy, (x, y), subsample=100, seed=3)
    again = NetworkLandscape(
        mlp(), F.cross_entropy, [(x[:100], y[:100]), (x[100:], y[100:])],
        subsample=100, seed=3,
    )  # fmt: skip
    assert few.rows == 100
    assert float(few.loss(few.origin)) == pytest.approx(
        float(again.loss(few.origin)), rel=1e-14
    )
    first = NetworkLandscape(
        mlp(), F.cross_entropy, [(x[:9], y[:9]), (x[9:], y[9:])], max_batches=1
    )
    torch.testing.assert_close(first.loss(land.origin), rows[:9].mean())


def test_weight_decay_enters_loss_and_gradient_only(digits):
    x, y = digits[0][:50], digits[1][:50]
    plain = NetworkLandscape(mlp(), F.cross_entropy, (x, y))
    land = NetworkLandscape(
        mlp(), F.cross_entropy, (x, y), weight_decay=0.3, decay="*.weight"
    )
    mask = torch.zeros(land.dim, dtype=torch.float64)
    mask[land.layout.indices("*.weight")] = 1
    p = land.origin
    torch.testing.assert_close(
        land.loss(p), plain.loss(p) + 0.15 * (mask * p).square().sum()
    )
    torch.testing.assert_close(land.gradient(p), plain.gradient(p) + 0.3 * mask * p)
    assert land.metrics() == plain.metrics()
    torch.testing.assert_close(land.example_losses(), plain.example_losses())


class Output(dict):
    __getattr__ = dict.__getitem__


class Transformerlike(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x, labels=None):
        logits = self.net(x)
        return Output(logits=logits, loss=F.cross_entropy(logits, labels))


def test_three_forms_agree(digits):
    x, y = digits[0][:30], digits[1][:30]
    batches = [{"x": x[:20], "labels": y[:20]}, {"x": x[20:], "labels": y[20:]}]
    expected = NetworkLandscape(mlp(), F.cross_entropy, (x, y))
    lands = [
        NetworkLandscape(Transformerlike(), "auto", batches),
        NetworkLandscape(
            Transformerlike(), lambda m, b: m(**b)["loss"], batches, form="model"
        ),
        NetworkLandscape(
            Transformerlike(), F.cross_entropy, batches,
            forward=lambda m, b: m(**b)["logits"],
        ),
        NetworkLandscape(Transformerlike(), "auto", {"x": x, "labels": y}),
    ]  # fmt: skip
    p = expected.origin + 0.1
    for land in lands:
        torch.testing.assert_close(land.loss(p), expected.loss(p))
        torch.testing.assert_close(land.gradient(p), expected.gradient(p))
        torch.testing.assert_close(land.example_losses(p), expected.example_losses(p))
        torch.testing.assert_close(
            land.example_gradients(p), expected.example_gradients(p)
        )
    assert lands[2].metrics(p) == expected.metrics(p)
    plain = Transformerlike()
    plain.register_forward_hook(lambda module, args, output: dict(output))
    torch.testing.assert_close(
        NetworkLandscape(plain, "auto", batches).loss(p), expected.loss(p)
    )
    attribute = lambda m, b: m(**b)["loss"]  # noqa: E731
    attribute.form = "model"
    assert NetworkLandscape(Transformerlike(), attribute, batches).loss(p).isfinite()


def test_a_loss_that_differentiates_inside_works(digits):
    x, y = digits[0][:10], digits[1][:10]

    def penalty(model, batch):
        inputs = batch[0].clone().requires_grad_()
        loss = F.cross_entropy(model(inputs), batch[1])
        (slope,) = torch.autograd.grad(loss, inputs, create_graph=True)
        return loss + slope.square().sum()

    land = NetworkLandscape(mlp(), penalty, (x, y), form="model")
    value, _ = land.value_and_gradient(land.origin)
    torch.testing.assert_close(land.loss(land.origin), value)


def test_with_loss_and_own_metrics(digits):
    x, y = digits[0][:30], digits[1][:30]
    land = NetworkLandscape(
        mlp(), F.cross_entropy, [(x[:9], y[:9]), (x[9:], y[9:])],
        metrics={"confidence": lambda o, t: o.softmax(1).amax(1)},
    )  # fmt: skip
    expected = mlp()(x).softmax(1).amax(1).mean().detach()
    assert land.metrics() == {"confidence": pytest.approx(float(expected))}
    other = land.with_loss(lambda o, t: o.square().mean())
    torch.testing.assert_close(
        other.loss(land.origin), mlp()(x).square().mean().detach()
    )


def test_non_finite_losses_are_kept_and_errors_recorded(digits):
    x, y = digits[0][:30], digits[1][:30]
    land = NetworkLandscape(mlp(), F.cross_entropy, (x, y))
    points = torch.stack([land.origin, land.origin * float("nan"), land.origin])
    values = land.loss(points)
    assert values.isnan().tolist() == [False, True, False]
    calls = []

    def sometimes(output, target):
        calls.append(1)
        if len(calls) == 4:
            raise MemoryError("no room")
        return F.cross_entropy(output, target)

    land = NetworkLandscape(mlp(), sometimes, (x, y), on_error="record")
    assert land.loss(points[[0, 0, 0]]).isnan().tolist() == [False, True, False]
    assert land.failures == ["MemoryError: no room"]


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (lambda o, t: F.cross_entropy(o, t, reduction="none"), {}, r"shape \(30,\)"),
        (lambda o, t: F.cross_entropy(o, t).item(), {}, "returned a float"),
        (lambda m, b: m(b[0]).mean(), {}, 'give form="model"'),
        (lambda o, t, extra: o.mean(), {}, "raised TypeError"),
        (lambda o, t: t.sum(), {}, "floating"),
    ],
)
def test_losses_that_are_none(digits, loss, options, message):
    land = NetworkLandscape(mlp(), loss, (digits[0][:30], digits[1][:30]), **options)
    with pytest.raises(LossError, match=message):
        land.loss(land.origin)


def test_losses_without_a_graph(digits):
    data = digits[0][:30], digits[1][:30]
    land = NetworkLandscape(mlp(), lambda o, t: F.cross_entropy(o, t).detach(), data)
    assert land.loss(land.origin).isfinite()
    with pytest.raises(LossError, match="no graph"):
        land.gradient(land.origin)
    held = mlp()
    fixed = NetworkLandscape(
        mlp(), lambda m, b: F.cross_entropy(held(b[0]), b[1]), data, form="model"
    )
    with pytest.raises(LossError, match="none of the selected parameters"):
        fixed.gradient(fixed.origin)


def test_labels_out_of_range(digits):
    x, y = digits[0][:30], digits[1][:30].clone()
    y[-1] = 10
    land = NetworkLandscape(mlp(), F.cross_entropy, [(x[:9], y[:9]), (x[9:], y[9:])])
    with pytest.raises(DataError, match="found 0 to 10, but the model has 10 outputs"):
        land.loss(land.origin)

    def own(output, target):
        return -output.log_softmax(1).gather(1, target[:, None]).mean()

    land = NetworkLandscape(mlp(), own, (x, y))
    with pytest.raises(DataError, match="labels out of range"):
        land.loss(land.origin)
