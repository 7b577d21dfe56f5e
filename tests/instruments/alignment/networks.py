"""Small networks of every structure that permutations of units must follow."""

import torch
from torch import nn
from torch.nn import functional as F

from thalweg.models import mlp, small_cnn


class Residual(nn.Module):
    """Pre-activation blocks on one stream of batch norms and convolutions."""

    def __init__(self, width=6, blocks=2):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.BatchNorm2d(width),
                    "conv1": nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
                    "norm2": nn.BatchNorm2d(2 * width),
                    "conv2": nn.Conv2d(2 * width, width, 3, padding=1, bias=False),
                }
            )
            for _ in range(blocks)
        )
        self.down = nn.Conv2d(width, width + 2, 1, stride=2)
        self.head = nn.Linear((width + 2) * 16, 10)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            y = block["conv1"](F.relu(block["norm1"](x)))
            x = x + block["conv2"](F.relu(block["norm2"](y)))
        return self.head(F.relu(self.down(x)).flatten(1))


class ResidualMLP(nn.Module):
    """A stream of Linear blocks."""

    def __init__(self, width=16, hidden=24, blocks=3):
        super().__init__()
        self.stem = nn.Linear(64, width)
        self.up = nn.ModuleList(nn.Linear(width, hidden) for _ in range(blocks))
        self.down = nn.ModuleList(nn.Linear(hidden, width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = self.stem(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(torch.relu(up(x)))
        return self.head(self.norm(x))


class Transformer(nn.Module):
    """Tokens, places, attention in torch's module, a feed-forward part."""

    def __init__(self, width=12, heads=3, tokens=11, length=5):
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.place = nn.Parameter(torch.randn(1, length, width))
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, 20), nn.GELU(), nn.Linear(20, width))
        self.head = nn.Linear(width, tokens, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens) + self.place
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.head(x + self.feed(self.norm2(x)))


class HandWritten(nn.Module):
    """Attention from its parts: one projection cut in three, heads, softmax."""

    def __init__(self, width=12, heads=3, product=False, beside=False):
        super().__init__()
        self.heads, self.product, self.beside = heads, product, beside
        self.inputs = nn.Linear(4, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.rand(heads, 1, 1) + 0.5)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = self.inputs(x)
        rows, length, width = x.shape
        if self.beside:
            shape = (rows, length, 3, self.heads, -1)
            qkv = self.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4)
            q, (k, v) = qkv[0], qkv.unbind(0)[1:]
        else:
            q, k, v = (
                part.view(rows, length, self.heads, width // self.heads).transpose(1, 2)
                for part in self.qkv(x).split(width, dim=-1)
            )
        if self.product:
            y = F.scaled_dot_product_attention(q * self.scale, k, v, is_causal=True)
        else:
            y = ((q @ k.transpose(-2, -1)) * self.scale).softmax(-1) @ v
        y = y.transpose(1, 2).contiguous().view(rows, length, width)
        return self.head((x + self.out(y)).mean(1))


class Encoder(nn.Module):
    """Torch's own layers of attention and feed-forward parts."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True)
        self.inputs = nn.Linear(4, 12)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.layers(self.inputs(x))[:, 0])


class Decoder(nn.Module):
    """An image made from units: each channel of it is a run of them."""

    def __init__(self):
        super().__init__()
        self.start = nn.Linear(6, 8 * 4)
        self.up = nn.ConvTranspose2d(8, 7, 2, stride=2)
        self.last = nn.Conv2d(7, 1, 3)

    def forward(self, x):
        x = torch.relu(self.start(x)).unflatten(1, (8, 2, 2))
        return self.last(F.interpolate(torch.relu(self.up(x)), scale_factor=2))


class Branches(nn.Module):
    """Concatenation, slices, depthwise and grouped convolutions, squeeze-excitation."""

    def __init__(self):
        super().__init__()
        self.left = nn.Conv2d(1, 4, 3, padding=1)
        self.right = nn.Conv2d(1, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(12, 24, 3, groups=12)
        self.norm = nn.GroupNorm(2, 8)
        self.slope = nn.PReLU(24)
        self.mix = nn.Conv2d(24, 8, 1)
        self.grouped = nn.Conv2d(8, 12, 3, groups=4)
        self.squeeze = nn.Linear(12, 5)
        self.excite = nn.Linear(5, 12)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.head = nn.Linear(6 + 3, 10)

    def forward(self, x):
        x = torch.cat([self.left(x), F.silu(self.right(x))], 1)
        x = self.norm(self.mix(self.slope(self.depthwise(x))))
        x = self.grouped(F.pad(x, (1, 1, 1, 1)))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3))))))
        x = torch.tanh(self.up(x * gate[:, :, None, None]))
        x = F.max_pool2d(x, 2)
        return self.head(torch.cat([x.mean((2, 3)), x.amax((2, 3))[:, 1:4]], -1))


class ChannelsLast(nn.Module):
    """A flatten behind which neighbors are units, and a layer applied twice."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 5)
        self.again = nn.Linear(5, 5)
        self.head = nn.Linear(4 * 5, 2)

    def forward(self, x):
        x = torch.relu(self.embed(x))
        x = torch.tanh(self.again(torch.relu(self.again(x))))
        return self.head(x.reshape(x.shape[0], -1))


def images(rows=4):
    return torch.randn(rows, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def vectors(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def randomize(model, seed=0):
    """Draw every parameter and statistic anew, so that no two units are alike."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            fan = tensor[0].numel() if tensor.ndim > 1 else 4
            tensor.copy_(torch.randn(tensor.shape, generator=draw) / fan**0.5)
            if name.endswith("running_var"):
                tensor.abs_().add_(0.5)
            if "norm" in name and name.endswith("weight"):
                tensor.add_(1.0)
    return model.eval()


TOKENS = torch.tensor([[1, 2, 3, 4, 5], [0, 6, 10, 1, 9]])
# name: (build, inputs, the sizes of the permutations)
ZOO = {
    "mlp": (lambda: mlp((64, 20, 16, 10)), vectors(6, 64), [16, 20]),
    "cnn": (small_cnn, images(), [8, 16]),
    "residual": (Residual, images(), [6, 8, 12, 12]),
    "residual mlp": (ResidualMLP, vectors(6, 64), [16, 24, 24, 24]),
    "transformer": (Transformer, TOKENS, [12, 12, 12, 20]),
    "hand-written": (HandWritten, vectors(3, 5, 4), [3, 12, 12, 12]),
    "product": (lambda: HandWritten(product=True), vectors(3, 5, 4), [3, 12, 12, 12]),
    "beside": (lambda: HandWritten(beside=True), vectors(3, 5, 4), [3, 12, 12, 12]),
    "encoder": (Encoder, vectors(3, 5, 4), [12, 12, 12, 12, 12, 20, 20]),
    "decoder": (Decoder, vectors(4, 6), [7, 8]),
    "branches": (Branches, images(), [2, 3, 4, 4, 5, 8]),
    "channels last": (ChannelsLast, vectors(3, 4, 3), [5]),
}
