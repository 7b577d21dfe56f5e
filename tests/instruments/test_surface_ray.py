"""The demo network's surface on Ray, a worker killed in the middle; same bits."""

import os
import signal
import threading
import time

import numpy as np
import pytest

from thalweg import instruments as ti
from thalweg.execution import RayExecutor
from thalweg.surveying.demo import demo_landscape

ray = pytest.importorskip("ray", reason="Ray is not installed: thalweg[ray]")


@pytest.mark.slow
def test_a_surface_of_the_demo_is_the_serial_one_though_a_worker_is_killed(tmp_path):
    land = demo_landscape()
    directions = ti.random_directions(land, 2)
    axes = [np.linspace(-1, 1, 41)] * 2
    here = ti.surface(land, directions, axes)

    with RayExecutor(2) as executor:
        before = []

        def strike():
            until = time.monotonic() + 120
            while len(list(tmp_path.glob("items/*.npz"))) < 20:
                assert time.monotonic() < until
                time.sleep(0.01)
            before.extend(executor.pids)
            os.kill(before[0], signal.SIGKILL)

        killer = threading.Thread(target=strike)
        killer.start()
        there = ti.surface(land, directions, axes, store=tmp_path, executor=executor)
        killer.join()
        assert before[0] not in executor.pids
    assert not ray.is_initialized()
    assert here["loss"].shape == (41, 41) and np.ptp(here["loss"].values) > 1
    for name in here.variables:
        assert here[name].values.tobytes() == there[name].values.tobytes(), name
