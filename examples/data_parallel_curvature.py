"""Curvature of a network whose data is spread over processes.

torchrun --nproc-per-node 2 examples/data_parallel_curvature.py
"""

import os

import torch
import torch.distributed as dist
from torch.nn import functional as F

from thalweg import NetworkLandscape
from thalweg import instruments as ti
from thalweg.data import digits
from thalweg.models import mlp


def main() -> None:
    """Measure on all ranks, print on the first."""
    gpus = torch.cuda.is_available()
    dist.init_process_group("nccl" if gpus else "gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    device = torch.device("cpu")
    if gpus:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)

    data = digits()
    shard = data.subset(range(rank, len(data), ranks))  # of any size
    model = mlp((64, 16, 10), seed=0).to(device)
    land = NetworkLandscape(model, F.cross_entropy, shard, process_group="world")

    H = land.hessian(land.point())
    pairs = ti.top_eigenpairs(H, 3)
    trace = ti.trace(H, rtol=0.05)
    if rank == 0:
        sizes = " + ".join(str(n) for n in land.describe()["shards"])
        print(f"rows: {sizes} on {ranks} ranks")
        print("eigenvalues:", *(f"{value:.5f}" for value in pairs.values))
        print(f"trace: {trace.value:.3f} ± {trace.stderr:.3f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
