"""Small problems, and their curvature by dense autograd on one flat vector.

The references use torch.func on the whole data at once; the operators use retained
double-backward graphs a batch. They share no code.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, hessian, jacrev

from thalweg.landscapes import NetworkLandscape


@dataclass
class Problem:
    model: nn.Module
    loss: Any  # (output, target) -> scalar mean over the rows given
    x: torch.Tensor
    y: torch.Tensor
    names: tuple[str, ...] | None = None

    def landscape(self, *, sizes=None, **options):
        """The landscape, its data cut into batches of `sizes` rows."""
        sizes = sizes or [len(self.x)]
        batches = list(zip(self.x.split(sizes), self.y.split(sizes), strict=True))
        return NetworkLandscape(self.model, self.loss, batches, **options)

    def parameters(self):
        return {
            n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad
        }

    def flat(self):
        return torch.cat([p.reshape(-1) for p in self.parameters().values()])

    def output(self, point):
        pieces, start = {}, 0
        for name, p in self.parameters().items():
            pieces[name] = point[start : start + p.numel()].view(p.shape)
            start += p.numel()
        return functional_call(self.model, pieces, (self.x,))

    def dense_hessian(self):
        return hessian(lambda p: self.loss(self.output(p), self.y))(self.flat())

    def jacobian(self):
        J = jacrev(self.output)(self.flat())
        return J.reshape(-1, J.shape[-1])

    def dense_ggn(self):
        o = self.output(self.flat()).detach()
        B = hessian(lambda out: self.loss(out, self.y))(o)
        J = self.jacobian()
        return J.T @ B.reshape(len(J), len(J)) @ J

    def example_gradients(self):
        rows = [
            jacrev(
                lambda p, i=i: self.loss(self.output(p)[i : i + 1], self.y[i : i + 1])
            )(self.flat())
            for i in range(len(self.x))
        ]
        return torch.stack(rows)


def tanh_net(*widths, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    layers = []
    for a, b in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).to(dtype).eval()


def classification(rows=23, inputs=4, classes=3, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, dtype=dtype, generator=generator)
    y = torch.randint(0, classes, (rows,), generator=generator)
    return x, y


def softmax_problem():
    return Problem(tanh_net(4, 5, 3), F.cross_entropy, *classification())


def squared_problem():
    x, _ = classification()
    y = torch.randn(
        23, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    return Problem(tanh_net(4, 5, 2), nn.MSELoss(), x, y)


def binary_problem():
    x, _ = classification()
    y = (torch.rand(23, 2, generator=torch.Generator().manual_seed(1)) < 0.4).double()
    return Problem(tanh_net(4, 5, 2), nn.BCEWithLogitsLoss(), x, y)


def huber_problem():
    problem = squared_problem()
    problem.loss = nn.HuberLoss(delta=0.7)
    return problem


class Tied(nn.Module):
    """One square matrix used twice, a frozen scale, a parameter nobody uses."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.tensor(1.7), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(2))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(
            torch.tanh(self.second(torch.tanh(self.first(x)) * self.scale))
        )


def tied_problem():
    torch.manual_seed(3)
    return Problem(Tied().double().eval(), F.cross_entropy, *classification())


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(2, 6)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        q, k, v = self.qkv(x.view(-1, 2, 2)).chunk(3, dim=-1)
        return self.head(F.scaled_dot_product_attention(q, k, v).flatten(1))


def attention_problem():
    torch.manual_seed(4)
    return Problem(Attention().double().eval(), F.cross_entropy, *classification())
