"""Jobs and surfaces through a Dask client, with two worker processes."""

import os
import signal

import pytest

from execution.work import check_surface, dots, items, recipe, same
from thalweg.errors import ExecutionError
from thalweg.execution import execute

distributed = pytest.importorskip("distributed", reason="Dask is not installed")


@pytest.fixture(scope="module")
def client():
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            silence_logs=50,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def test_the_recipe_is_scattered_once_and_built_once_a_worker(
    client, tmp_path, monkeypatch
):
    def build():
        (tmp_path / f"{os.getpid()}-{os.urandom(4).hex()}").touch()
        return recipe()

    scattered = []
    scatter = client.scatter
    monkeypatch.setattr(
        client, "scatter", lambda *a, **k: scattered.append(1) or scatter(*a, **k)
    )
    result = execute(items(30), dots, build, executor=client)
    same(result, execute(items(30), dots, recipe))
    assert len(scattered) == 1
    assert 1 <= len(list(tmp_path.iterdir())) <= 2


def test_a_surface_has_the_bits_of_the_local_one(client):
    check_surface(client)


def test_errors_name_the_item_and_a_dead_worker_loses_nothing(client, tmp_path):
    def bad(constant, i):
        raise ZeroDivisionError("by nought")

    def deadly(constant, i):
        if i == 3 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return dots(constant, i)

    with pytest.raises(ExecutionError, match=r"'i0' failed: ZeroDivisionError: by n"):
        execute(items(1), bad, recipe, executor=client)
    result = execute(items(8), deadly, recipe, executor=client)
    assert (tmp_path / "died").exists()
    same(result, execute(items(8), dots, recipe))
