"""The surface of Müller and Brown, and where it is stationary."""

import torch

from thalweg import Landscape

MINIMA = [
    (-0.558223634633024, 1.441725841804669),
    (0.623499404930877, 0.028037758528686),
    (-0.050010822998206, 0.466694104871972),
]
SADDLES = [
    (-0.822001558732732, 0.624312802814871),
    (0.212486582000662, 0.292988325107368),
]


class MullerBrown(Landscape):
    """K. Müller, L. D. Brown, 1979: four Gaussians, three minima, two saddles."""

    def __init__(self):
        super().__init__(2)

    def loss(self, points):
        x, y = points[..., 0], points[..., 1]
        total = torch.zeros_like(x)
        for A, a, b, c, x0, y0 in (
            (-200.0, -1.0, 0.0, -10.0, 1.0, 0.0),
            (-100.0, -1.0, 0.0, -10.0, 0.0, 0.5),
            (-170.0, -6.5, 11.0, -6.5, -0.5, 1.5),
            (15.0, 0.7, 0.6, 0.7, -1.0, 1.0),
        ):
            u, v = x - x0, y - y0
            total = total + A * torch.exp(a * u * u + b * u * v + c * v * v)
        return total
