"""How layers with weights act on permuted units."""

from torch import nn

from thalweg.instruments.alignment.units import Labels
from thalweg.instruments.alignment.walk import Tensors, Walk, argument, option
from thalweg.models import Node

QKV = ("query", "key", "value")


class Layers(Walk):
    """The rules for layers with weights."""

    def _linear(self, node: Node) -> Tensors:
        axes = self.source(node)
        weight = self.operand(node, 1, "weight")
        bias = self.operand(node, 2, "bias")
        assert weight is not None
        self.tie(axes[-1], weight[1])
        if bias is not None:
            self.tie(weight[0], bias[0])
        return [*axes[:-1], weight[0]]

    def _conv(self, node: Node) -> Tensors:
        return self._convolve(node, 6, into=1, out=0)

    def _conv_transpose(self, node: Node) -> Tensors:
        return self._convolve(node, 6, into=0, out=1)

    def _convolve(self, node: Node, position: int, into: int, out: int) -> Tensors:
        axes = self.source(node)
        weight = self.operand(node, 1, "weight")
        bias = self.operand(node, 2, "bias")
        assert weight is not None and node.shape is not None
        channel = len(axes) - (len(weight) - 1)
        self.fix(weight[2:])
        self.fix(axes[channel + 1 :])
        before = self.plain(axes[channel])
        groups = option(node, position, "groups", 1)
        if groups == 1:
            self.tie(before, weight[into])
            after = weight[out]
        else:
            after = self._grouped(before, groups, node.shape[channel])
            self.units.fix(weight[1])
            self.tie(weight[0], before if into == 0 else after)
        if bias is not None:
            self.tie(bias[0], after)
        rest = self.fixed(node.shape[channel + 1 :])
        return [*axes[:channel], after, *rest]

    def _grouped(self, before: Labels, groups: int, size: int) -> Labels:
        """Return the outputs of groups that move as a whole, with their inputs."""
        width = self.units.size(self.units.now(before)) // groups
        blocks = self.units.block(before, width)
        after = self.units.new(size)
        if any(repeat % width for _, repeat in blocks):
            self.units.fix(blocks)
            self.units.fix(after)
        else:
            scale = size // groups
            self.tie(after, tuple((i, r // width * scale) for i, r in blocks))
        return after

    def _norm(self, node: Node) -> Tensors:
        axes = self.source(node)
        first, names = 2, ["weight", "bias"]
        if node.operation in ("batch_norm", "instance_norm"):
            first, names = 1, ["running_mean", "running_var", *names]
        given = [self.operand(node, first + i, name) for i, name in enumerate(names)]
        if node.operation in ("layer_norm", "rms_norm"):
            for tensor in given:
                for axis, labels in zip(
                    axes[len(axes) - len(tensor or []) :], tensor or [], strict=True
                ):
                    self.tie(axis, labels)
            return axes
        channels = self.plain(axes[1])
        for tensor in given:
            if tensor is not None:
                self.tie(channels, tensor[0])
        if node.operation == "group_norm":
            groups = option(node, 1, "num_groups", 1)
            if 1 < groups < self.units.size(self.units.now(channels)):
                self.units.heads(channels, groups)
        return [axes[0], channels, *axes[2:]]

    def _prelu(self, node: Node) -> Tensors:
        axes = self.source(node)
        weight = self.operand(node, 1, "weight")
        assert weight is not None
        if self.units.size(self.units.now(weight[0])) > 1:
            self.tie(axes[1], weight[0])
        return axes

    def _embedding(self, node: Node) -> Tensors:
        axes = self.source(node)
        weight = self.operand(node, 1, "weight")
        assert weight is not None
        self.units.fix(weight[0])
        return [*axes, weight[1]]

    def _attention(self, node: Node) -> None:
        module, path = node.module, node.path
        assert isinstance(module, nn.MultiheadAttention)

        def own(name: str) -> list[Labels] | None:
            return self.operand(node, 0, name)

        query, key, value = (
            self.axes[argument(node, i, name).name] for i, name in enumerate(QKV)
        )
        rows = [self.units.new(module.embed_dim) for _ in QKV]
        packed = own("in_proj_weight")
        if packed is not None:
            self.tie(packed[0], rows[0] + rows[1] + rows[2])
            sources = [packed[1]] * 3
        else:
            separate = [own(f"{name}_proj_weight") for name in "qkv"]
            sources = []
            for weight, row in zip(separate, rows, strict=True):
                assert weight is not None
                self.tie(weight[0], row)
                sources.append(weight[1])
        for axes, source in zip((query, key, value), sources, strict=True):
            self.fix(axes[:-1])
            self.tie(axes[-1], source)
        bias = own("in_proj_bias")
        if bias is not None:
            self.tie(bias[0], rows[0] + rows[1] + rows[2])
        for name, row in (("bias_k", rows[1]), ("bias_v", rows[2])):
            extra = own(name)
            if extra is not None:
                self.tie(extra[-1], row)
        self.tie(rows[0], rows[1])
        heads = self.units.heads(rows[0], module.num_heads)
        self.tie(heads, self.units.heads(rows[2], module.num_heads))
        prefix = f"{path}.out_proj".lstrip(".")
        out = self.parameter(f"{prefix}.weight", node)
        self.tie(out[1], rows[2])
        if module.out_proj.bias is not None:
            self.tie(out[0], self.parameter(f"{prefix}.bias", node)[0])
        self.parts[node.name] = [[*query[:-1], out[0]]]
