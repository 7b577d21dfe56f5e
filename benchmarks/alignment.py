"""Alignment against rebasin: planted permutations, and digits networks of two seeds.

    python -m benchmarks alignment

Prints JSON and keeps it under results/. Both match weights from the identity, without
restarts. A planted permutation is recovered where the distance that is left is zero;
the error is the largest difference of the permuted network's outputs, over the largest
output. thalweg's time includes measuring that error, which it does by default.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.timing import race
from thalweg import NetworkLandscape
from thalweg import instruments as ti
from thalweg.data import digits
from thalweg.models import mlp, small_cnn
from thalweg.seeding import seeded
from thalweg.training import fit

REPEATS = 5


class Residual(nn.Module):
    """Three residual blocks of convolutions and batch norms."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1),
            )
            for _ in range(3)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean((2, 3)))


class Encoder(nn.Module):
    """Two of torch's encoder layers on the rows of an image."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True)
        self.start = nn.Linear(8, width)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.head(self.layers(self.start(x[:, 0])).mean(1))


NETWORKS = {
    "64-512-512-10": lambda: mlp((64, 512, 512, 10)),
    "convolutions of 64 and 128": lambda: small_cnn(channels=(64, 128)),
    "residual, batch norms": Residual,
    "transformer encoder": Encoder,
}


def drawn(build: object, seed: int) -> nn.Module:
    """Return a network whose units all differ, norms and statistics included."""
    with seeded(seed, "network"):
        model = build().eval()
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.is_floating_point():
                    tensor += 0.1 * torch.rand(tensor.shape)
    return model


def race_of(
    a: nn.Module, b: nn.Module, inputs: Tensor
) -> tuple[dict[str, dict[str, object]], dict[str, nn.Module]]:
    """Let both permute b to a; return the figures and the permuted networks."""
    with torch.no_grad():
        before = b(inputs)

    def judged(model: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            error = float((model(inputs) - before).abs().max() / before.abs().max())
        pairs = zip(a.parameters(), model.parameters(), strict=True)
        squares = sum(float(((p - q).detach() ** 2).sum()) for p, q in pairs)
        return {"distance": squares**0.5, "error": error}

    found: dict[str, nn.Module] = {}

    def ours() -> None:
        model = copy.deepcopy(b)
        model.load_state_dict(ti.align(a, b, inputs, restarts=0).state)
        found["thalweg"] = model

    def peer() -> None:
        from rebasin import PermutationCoordinateDescent

        model = copy.deepcopy(b)
        with seeded(0, "order"):  # it draws from torch's global generator
            PermutationCoordinateDescent(a, model, inputs).rebasin()
        found["rebasin"] = model

    report = race({"thalweg": ours, "rebasin": peer}, REPEATS, warm=True)
    for name, model in found.items():
        report[name]["result"] = judged(model)
    return report, found


def planted(build: object) -> dict[str, object]:
    """Permute a network at random, and let both find the way back."""
    inputs = digits(images=True).inputs[:64]
    b = drawn(build, 1)
    spec = ti.infer_permutations(b, inputs)
    a = copy.deepcopy(b)
    a.load_state_dict(spec.apply(b.state_dict(), spec.random(1)))
    return race_of(a, b, inputs)[0]


def trained(width: int) -> dict[str, object]:
    """Align networks trained on the digits from two seeds; measure the barriers."""
    data = digits()

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor], state: object) -> Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1])

    ends = []
    for seed in (1, 2):
        model = mlp((64, width, width, 10), seed=seed)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        fit(model, loss, data, optimizer, epochs=15, seed=seed)
        ends.append(model.eval())
    land = NetworkLandscape(ends[0], functional.cross_entropy, data.tensors)
    report, found = race_of(*ends, data.inputs[:64])
    for name, model in found.items():
        report[name]["result"]["barrier"] = ti.barrier(land, ends[0], model).value
    return {"barrier": ti.barrier(land, *ends).value, "contenders": report}


def measure() -> dict[str, object]:
    """Measure planted permutations and trained pairs."""
    return {
        "planted": {name: planted(build) for name, build in NETWORKS.items()},
        "trained": {f"64-{w}-{w}-10": trained(w) for w in (32, 128, 512)},
    }
