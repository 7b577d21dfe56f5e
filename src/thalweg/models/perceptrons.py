"""Fully connected networks."""

from collections.abc import Callable, Sequence
from typing import Literal

from torch import nn

from thalweg.errors import InputError
from thalweg.seeding import seeded

Activation = Literal["relu", "tanh", "gelu"]
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
}


def mlp(
    sizes: Sequence[int] = (64, 32, 10),
    *,
    activation: Activation = "tanh",
    bias: bool = True,
    seed: int = 0,
) -> nn.Sequential:
    """Return a fully connected network with torch's own initialization, seeded.

    Inputs of any shape are flattened first, so images may come as they are. The
    default suits `thalweg.data.digits`.

    Args:
        sizes: Widths from the input to the output.
        activation: "relu", "tanh" or "gelu", between the layers.
        bias: Whether the layers have biases.
        seed: The same seed gives the same weights; the global RNG stays untouched.

    Raises:
        InputError: Fewer than two sizes, one below 1, or an unknown activation.
    """
    if len(sizes) < 2 or any(size < 1 for size in sizes):
        raise InputError(f"sizes must be two or more positive widths, got {sizes}")
    layers: list[nn.Module] = [nn.Flatten()]
    with seeded(seed, "mlp"):
        for i, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
            if i:
                layers.append(make_activation(activation))
            layers.append(nn.Linear(fan_in, fan_out, bias=bias))
    return nn.Sequential(*layers)


def make_activation(name: str) -> nn.Module:
    """Return the activation module of that name."""
    if name not in ACTIVATIONS:
        raise InputError(
            f"activation must be one of {tuple(ACTIVATIONS)}, got {name!r}"
        )
    return ACTIVATIONS[name]()
