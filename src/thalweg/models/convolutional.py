"""Small convolutional networks."""

from collections.abc import Sequence

from torch import nn

from thalweg.errors import InputError
from thalweg.models.perceptrons import Activation, make_activation
from thalweg.seeding import seeded


def small_cnn(
    image_shape: Sequence[int] = (1, 8, 8),
    classes: int = 10,
    *,
    channels: Sequence[int] = (8, 16),
    activation: Activation = "relu",
    seed: int = 0,
) -> nn.Sequential:
    """Return 3 x 3 convolutions, each with 2 x 2 average pooling, then one Linear.

    The default (1,898 parameters) suits `thalweg.data.digits(images=True)`.

    Args:
        image_shape: Channels, height and width of an input.
        classes: Number of outputs.
        channels: Width of each convolution.
        activation: "relu", "tanh" or "gelu", after each convolution.
        seed: The same seed gives the same weights; the global RNG stays untouched.

    Raises:
        InputError: Images too small for the number of poolings, or sizes below 1.
    """
    if len(image_shape) != 3 or min(*image_shape, classes, *channels, 1) < 1:
        raise InputError(
            "image_shape (channels, height, width), classes and channels must be "
            f"positive, got {tuple(image_shape)}, {classes}, {tuple(channels)}"
        )
    width, *sides = image_shape
    if min(sides) < 2 ** len(channels):
        raise InputError(
            f"images of {sides[0]} x {sides[1]} cannot be halved {len(channels)} times"
        )
    layers: list[nn.Module] = []
    with seeded(seed, "small_cnn"):
        for out in channels:
            layers += [
                nn.Conv2d(width, out, 3, padding=1),
                make_activation(activation),
                nn.AvgPool2d(2),
            ]
            width, sides = out, [side // 2 for side in sides]
        layers += [nn.Flatten(), nn.Linear(width * sides[0] * sides[1], classes)]
    return nn.Sequential(*layers)
