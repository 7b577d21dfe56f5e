"""Chunked work: keyed items, atomic files, executors, progress, resume."""

from thalweg.execution.datasets import load_dataset, save_dataset
from thalweg.execution.executors import (
    Executor,
    FuturesExecutor,
    LocalExecutor,
    as_executor,
    running_executor,
)
from thalweg.execution.interrupts import deferred_interrupt
from thalweg.execution.jobs import Item, OnError, execute, thread_count
from thalweg.execution.processes import ProcessExecutor
from thalweg.execution.progress import Progress, ProgressName, as_progress
from thalweg.execution.ray_actors import RayExecutor
from thalweg.execution.rounds import in_rounds
from thalweg.execution.store import Store, atomic_file

__all__ = [
    # jobs
    "Item",
    "deferred_interrupt",
    "OnError",
    "execute",
    "in_rounds",
    "thread_count",
    # where finished work is kept
    "Store",
    "atomic_file",
    "load_dataset",
    "save_dataset",
    # who does the work
    "Executor",
    "FuturesExecutor",
    "LocalExecutor",
    "ProcessExecutor",
    "RayExecutor",
    "as_executor",
    "running_executor",
    # what is shown
    "Progress",
    "ProgressName",
    "as_progress",
]
