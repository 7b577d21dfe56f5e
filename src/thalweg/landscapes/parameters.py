"""Which parameters of a model are a landscape's coordinates, and how a point reads."""

import copy
import fnmatch
from collections.abc import Callable, Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thalweg.errors import InputError, StructureError
from thalweg.landscapes._state import Slot, tensor_slots
from thalweg.landscapes.layout import Block, Layout

Predicate = Callable[[str, nn.Parameter, nn.Module], bool]
Selection = str | Iterable[str] | Predicate | None


class Parameters:
    """The selected trainable parameters of a model as coordinates of a flat point.

    A tied parameter counts once, under its first name; frozen and unselected ones are
    constants. A complex parameter counts twice, as its real view. Points of a model in
    half precision are float32.

    Args:
        model: The model.
        include: Shell patterns on dotted names, or a predicate (name, parameter, owner
            module) -> bool; None selects all that have `requires_grad`.
        exclude: Likewise, taken away again.
        dtype: Real dtype that floating parameters are cast to; None leaves them.
        device: Device of points and of the tensors made from them; the parameters' by
            default.

    Raises:
        InputError: Nothing is selected, or parameters lie on several devices.
    """

    def __init__(
        self,
        model: nn.Module,
        include: Selection = None,
        exclude: Selection = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.slots = _selected(model, include, exclude)
        first = {name: _tensor(slots[0]) for name, slots in self.slots.items()}
        self.dtypes = {name: _cast(p.dtype, dtype) for name, p in first.items()}
        devices = {p.device for p in first.values()}
        if len(devices) > 1:
            raise InputError(
                f"the selected parameters lie on several devices "
                f"({', '.join(sorted(map(str, devices)))}); select those of one with "
                "`include=`"
            )
        self.device = next(iter(devices)) if device is None else device
        self.dtype = _point_dtype(self.dtypes.values())
        self.layout = _layout(self.slots, first)
        names = all_names(model)
        self.aliases = {name: names[id(tensor)] for name, tensor in first.items()}

    @property
    def half(self) -> bool:
        """Whether a parameter is in half precision."""
        return any(d in (torch.float16, torch.bfloat16) for d in self.dtypes.values())

    def in_dtype(self, dtype: torch.dtype) -> "Parameters":
        """Return the same coordinates, the tensors made of them in another dtype."""
        other = copy.copy(self)
        other.dtypes = {name: _cast(own, dtype) for name, own in self.dtypes.items()}
        other.dtype = _point_dtype(other.dtypes.values())
        return other

    def read(self) -> Float[Tensor, " dim"]:
        """Return the point at which the model stands now."""
        return self.join({n: _tensor(slots[0]) for n, slots in self.slots.items()})

    def join(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, " dim"]:
        """Return the point whose parameters are `tensors`."""
        real = {
            name: torch.view_as_real(t) if t.is_complex() else t
            for name, t in tensors.items()
        }
        cast = {
            name: t.detach().to(dtype=self.dtype, device=self.device)
            for name, t in real.items()
        }
        return self.layout.join(cast)

    def split(
        self, point: Float[Tensor, " dim"], layout: Layout | None = None
    ) -> dict[str, Tensor]:
        """Return the parameters at a point, differentiable, in the model's dtypes.

        With a `layout` those of a part of the point, `Layout.part` of this one.
        """
        layout = self.layout if layout is None else layout
        pieces = torch.split(point, [block.size for block in layout.blocks])
        return {
            block.name: _typed(piece.reshape(block.shape), self.dtypes[block.name])
            for block, piece in zip(layout.blocks, pieces, strict=True)
        }

    def flat(self, gradients: Iterable[Tensor | None]) -> Float[Tensor, " dim"]:
        """Return gradients of `split`'s tensors as a vector; None counts as zero."""
        rows = []
        for block, gradient in zip(self.layout.blocks, gradients, strict=True):
            if gradient is None:
                gradient = torch.zeros(block.shape, device=self.device)
            elif gradient.is_complex():
                gradient = torch.view_as_real(gradient.resolve_conj())
            rows.append(gradient.reshape(-1).to(self.dtype))
        return torch.cat(rows)

    def from_state(self, state: Mapping[str, Tensor], known: set[str]) -> Tensor:
        """Return the point of a state dict; entries of `known` are passed over.

        Raises:
            StructureError: As `match_state`.
        """
        wanted = {
            block.name: block.shape[:-1]
            if self.dtypes[block.name].is_complex
            else block.shape
            for block in self.layout.blocks
        }
        return self.join(match_state(state, wanted, self.aliases, known))


def match_state(
    state: Mapping[str, Tensor],
    wanted: Mapping[str, tuple[int, ...]],
    aliases: Mapping[str, tuple[str, ...]],
    known: set[str],
) -> dict[str, Tensor]:
    """Return the tensors of a state dict that are wanted, under their first names.

    Args:
        state: The state dict; a tied tensor may stand under any of its names.
        wanted: Name -> shape.
        aliases: Name -> all names of the tensor.
        known: Further names that are passed over.

    Raises:
        StructureError: Names missing or unexpected (listed), a shape that differs, or
            two names of one tied tensor that disagree.
    """
    chosen, missing, used = {}, [], set(known)
    for name, shape in wanted.items():
        used.update(aliases[name])
        given = [alias for alias in aliases[name] if alias in state]
        if not given:
            missing.append(name)
            continue
        chosen[name] = state[given[0]]
        if tuple(chosen[name].shape) != tuple(shape):
            raise StructureError(
                f"{given[0]!r} has shape {tuple(chosen[name].shape)} in the state "
                f"dict, {tuple(shape)} in the model"
            )
        for alias in given[1:]:
            if not torch.equal(state[alias], chosen[name]):
                raise StructureError(
                    f"{given[0]!r} and {alias!r} are one tied tensor of the model, but "
                    "their values in the state dict differ"
                )
    unexpected = [name for name in state if name not in used]
    if missing or unexpected:
        raise StructureError(
            f"the state dict does not fit the model: missing {_some(missing)}; "
            f"unexpected {_some(unexpected)}"
        )
    return chosen


class Workspace:
    """One working buffer whose views are the model's parameters at a point.

    Made once; a point is written by one copy where all parameters share a real dtype.
    """

    def __init__(self, parameters: Parameters) -> None:
        layout, dtypes = parameters.layout, set(parameters.dtypes.values())
        device = parameters.device
        self._flat: Tensor | None = None
        self._sizes = [block.size for block in layout.blocks]
        if len(dtypes) == 1 and not next(iter(dtypes)).is_complex:
            self._flat = torch.empty(layout.dim, dtype=dtypes.pop(), device=device)
            self.tensors = layout.split(self._flat)
            return
        self.tensors = {}
        for block in layout.blocks:
            dtype = parameters.dtypes[block.name]
            shape = block.shape[:-1] if dtype.is_complex else block.shape
            self.tensors[block.name] = torch.empty(shape, dtype=dtype, device=device)

    def write(self, point: Float[Tensor, " dim"]) -> None:
        """Move the parameters to a point."""
        with torch.no_grad():
            if self._flat is not None:
                self._flat.copy_(point)
                return
            pieces = torch.split(point, self._sizes)
            for tensor, piece in zip(self.tensors.values(), pieces, strict=True):
                real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
                real.copy_(piece.reshape(real.shape))


def _selected(
    model: nn.Module, include: Selection, exclude: Selection
) -> dict[str, list[Slot]]:
    slots = tensor_slots(model, "_parameters")
    if not slots:
        raise InputError(f"the model {type(model).__name__} has no parameters")
    lazy = [n for n, s in slots.items() if nn.parameter.is_lazy(_tensor(s[0]))]
    if lazy:
        raise InputError(
            f"parameters {_some(lazy)} are not initialized yet: call the model once"
        )
    matching = {
        name: places
        for name, places in slots.items()
        if (include is None or matches(include, name, places[0]))
        and not (exclude is not None and matches(exclude, name, places[0]))
    }
    if not matching:
        raise InputError(
            f"include={include!r}, exclude={exclude!r} select no parameter; the first "
            f"names are {list(slots)[:8]}"
        )
    trainable = {n: s for n, s in matching.items() if _tensor(s[0]).requires_grad}
    if not trainable:
        raise InputError(
            f"all selected parameters are frozen (requires_grad=False): "
            f"{_some(list(matching))}"
        )
    return trainable


def all_names(model: nn.Module) -> dict[int, tuple[str, ...]]:
    """Return all dotted names of each parameter and buffer, by the tensor's id."""
    names: dict[int, tuple[str, ...]] = {}
    for named in (model.named_parameters, model.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            names[id(tensor)] = (*names.get(id(tensor), ()), name)
    return names


def matches(selection: Selection, name: str, slot: Slot) -> bool:
    """Say whether a parameter is one of a selection by patterns or predicate."""
    if selection is None:
        return True
    if callable(selection):
        parameter = slot[0]._parameters[slot[1]]
        assert isinstance(parameter, nn.Parameter)
        return bool(selection(name, parameter, slot[0]))
    patterns = [selection] if isinstance(selection, str) else selection
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _tensor(slot: Slot) -> Tensor:
    tensor = slot[0]._parameters[slot[1]]
    assert tensor is not None
    return tensor


def _layout(slots: dict[str, list[Slot]], first: dict[str, Tensor]) -> Layout:
    blocks, offset = [], 0
    for name, tensor in first.items():
        shape = tuple(tensor.shape) + ((2,) if tensor.is_complex() else ())
        owner = slots[name][0][0]
        axis, groups = _filters(owner, tensor)
        block = Block(name, shape, offset, axis, groups, type(owner).__name__)
        blocks.append(block)
        offset += block.size
    return Layout(tuple(blocks))


def _filters(owner: nn.Module, tensor: Tensor) -> tuple[int | None, int]:
    """Return the axis of output units and the groups, from the owning module."""
    if tensor.ndim < 2:
        return None, 1
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    if isinstance(owner, transposed):
        return 1, owner.groups
    return 0, 1


_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}
_REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}


def _cast(own: torch.dtype, dtype: torch.dtype | None) -> torch.dtype:
    if dtype is None:
        return own
    if not dtype.is_floating_point:
        raise InputError(f"dtype must be a real floating dtype, got {dtype}")
    if own.is_complex:
        return _COMPLEX.get(dtype, torch.complex64)
    return dtype


def _point_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    wide = {_REAL.get(dtype, dtype) for dtype in dtypes}
    return torch.float64 if torch.float64 in wide else torch.float32


def _typed(piece: Tensor, dtype: torch.dtype) -> Tensor:
    if not dtype.is_complex:
        return piece.to(dtype)
    real = piece.to(_REAL[dtype])
    return torch.complex(real[..., 0], real[..., 1])


def _some(names: list[str]) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{names[:8]}{more}"
