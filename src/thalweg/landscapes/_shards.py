"""One landscape on several processes: who holds which rows, and how sums are made.

Everything of `torch.distributed` is here. A pass over the data runs on each rank's own
rows; the weighted sums are reduced, so that uneven shards are exact.
"""

from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import torch
from torch import Tensor

from thalweg.errors import ExecutionError, InputError, StructureError
from thalweg.provenance import fingerprint

if TYPE_CHECKING:
    from thalweg.landscapes.network import NetworkLandscape

T = TypeVar("T")
WORLD = "world"


class Shards:
    """The ranks of a process group, each with its shard of the rows.

    Its methods are collective: every rank calls them, in one order.

    Args:
        group: A group of `torch.distributed`, or "world", the default group.
        device: Where tensors have to lie to be sent: a GPU for nccl.

    Raises:
        InputError: `torch.distributed` is not initialized, the group is none or not
            this process's, or its backend does not go with the device.
    """

    def __init__(self, group: Any, device: torch.device) -> None:
        import torch.distributed as dist

        if not dist.is_available() or not dist.is_initialized():
            raise InputError(
                f"process_group={group!r} needs an initialized torch.distributed: "
                "call init_process_group() first, in a script run by torchrun"
            )
        if group != WORLD and not isinstance(group, dist.ProcessGroup):
            raise InputError(
                'process_group must be "world" or a group of torch.distributed that '
                f"this process is in, got {group!r}"
            )
        self.group = dist.group.WORLD if group == WORLD else group
        self.rank, self.size = (
            dist.get_rank(self.group),
            dist.get_world_size(group=self.group),
        )
        backend = dist.get_backend(self.group)
        if backend == "nccl" and device.type != "cuda":
            raise InputError(
                f"a process group of backend nccl needs a landscape on a GPU, not on "
                f"{device}: give device=, or use backend gloo"
            )
        self.device = device
        self.rows: tuple[int, ...] = ()
        self.data = ""

    def survey(self, land: "NetworkLandscape") -> None:
        """Learn what the others hold; refuse what is not one landscape.

        Raises:
            StructureError: Parameters or buffers differ between ranks.
        """
        state = (land.layout.names, land.dim, land.origin, land._held)
        constants = land._constants, land.weight_decay, land.reduction
        own = (land._data.rows, land._data.fingerprint, fingerprint(*state, *constants))
        rows, data, models = zip(*self.gather(own), strict=True)
        for rank, model in enumerate(models):
            if model != models[0]:
                raise StructureError(
                    f"rank {rank} holds another model than rank 0 (names, parameters, "
                    "buffers, weight decay or reduction differ): load the same "
                    "checkpoint on every rank"
                )
        self.rows, self.data = rows, fingerprint(data)

    @property
    def first_row(self) -> int:
        """Number of this rank's first row among those of all ranks."""
        return sum(self.rows[: self.rank])

    def share(self, tensor: Tensor) -> Tensor:
        """Return the tensor of rank 0."""
        import torch.distributed as dist

        shared = tensor.detach().to(self.device, copy=True).contiguous()
        dist.broadcast(shared, group=self.group, group_src=0)
        return shared.to(tensor.device)

    def sum(self, total: Tensor, weight: float = 0.0) -> tuple[Tensor, float]:
        """Return the sums over all ranks, in float64, by one all-reduce."""
        import torch.distributed as dist

        flat = total.detach().reshape(-1).to(self.device, torch.float64)
        packed = torch.cat([flat, flat.new_tensor([weight])])
        dist.all_reduce(packed, group=self.group)
        summed = packed[:-1].reshape(total.shape).to(total.device)
        return summed, float(packed[-1])

    def gather(self, thing: T) -> list[T]:
        """Return what every rank gave, in their order."""
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, thing, group=self.group)
        return found

    def concatenate(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all ranks, one after the other along the first axis."""
        return torch.cat([part.to(tensor.device) for part in self.gather(tensor.cpu())])

    def agree(self, failure: Exception | None) -> None:
        """Raise on every rank where one has failed: the others would wait for it."""
        own = None if failure is None else f"{type(failure).__name__}: {failure}"
        reports = self.gather(own)
        if failure is not None:
            raise failure
        for rank, report in enumerate(reports):
            if report is not None:
                raise ExecutionError(f"rank {rank} failed: {report}")

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a landscape whose rows are spread over a process group stays in its "
            "processes"
        )


_REFUSED = {
    "buffers": (("recalibrate",), "the statistics would be those of each shard"),
    "stochastic": (
        ("fix", "average"),
        "the draws would depend on how the rows are spread",
    ),
    "on_error": (("record",), "the other ranks would wait for the one that failed"),
}


def join(land: "NetworkLandscape", group: Any) -> Shards | None:
    """Return the ranks over which a landscape's rows are spread, None for no group.

    Raises:
        InputError: The group cannot be used, or an option of the landscape needs all
            rows in one process.
        StructureError: The ranks hold different models.
    """
    if group is None:
        return None
    for name, (refused, reason) in _REFUSED.items():
        value = getattr(land, name)
        if value in refused:
            raise InputError(
                f"{name}={value!r} does not go with process_group: {reason}"
            )
    shards = Shards(group, land.device)
    shards.survey(land)
    return shards
