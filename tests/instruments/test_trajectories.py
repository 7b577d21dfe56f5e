"""The trajectory recorder: what it keeps, where, and that it goes on."""

import json
import warnings

import pytest
import torch

from thalweg import NetworkLandscape
from thalweg import instruments as ti
from thalweg.errors import InputError, StoreError
from thalweg.training import fit


def net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torch.nn.Sequential(
            torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)
        )


def flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def walk(model, steps=10, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        with torch.no_grad():
            for p in model.parameters():
                p += 0.1 * torch.randn(p.shape, generator=generator)
        yield step


@pytest.mark.parametrize("buffer", [1, 3, 100])
def test_states_steps_and_scalars_are_kept(tmp_path, buffer):
    model = net()
    rec = ti.Trajectory(model, every=2, store=tmp_path / "t", buffer=buffer)
    expected = []
    for step in walk(model):
        if rec(step, loss=torch.tensor(float(step))):
            expected.append(flat(model).clone())
        assert len(rec._pending) <= buffer
    expected = torch.stack(expected)
    assert rec.steps == [0, 2, 4, 6, 8] and rec.shape == (5, 26)
    assert rec.scalars == {"loss": [0.0, 2.0, 4.0, 6.0, 8.0]}
    assert torch.equal(torch.stack(list(rec)), expected)
    assert torch.equal(rec.columns(5, 9), expected[:, 5:9])
    assert torch.equal(rec[-1], expected[-1])
    assert rec.layout.names == tuple(n for n, _ in model.named_parameters())


def test_a_resumed_run_continues_its_trajectory(tmp_path):
    once, twice = net(), net()
    whole = ti.Trajectory(once, store=tmp_path / "a", buffer=3)
    for step in walk(once):
        whole(step, loss=step)
    parts = ti.Trajectory(twice, store=tmp_path / "b", buffer=3)
    for step in walk(twice, steps=8):
        parts(step, loss=step)
    again = net()  # what was in memory is lost: steps 6 and 7
    parts = ti.Trajectory(again, store=tmp_path / "b", buffer=3)
    assert parts.steps == list(range(6))
    for step in walk(again):
        parts(step, loss=step)
    assert parts.steps == whole.steps and parts.scalars == whole.scalars
    assert torch.equal(torch.stack(list(parts)), torch.stack(list(whole)))


def test_an_unfinished_chunk_does_not_count(tmp_path):
    model = net()
    with ti.Trajectory(model, store=tmp_path, buffer=2) as rec:
        for step in walk(model, steps=4):
            rec(step)
    (tmp_path / "chunk-000001.json").unlink()
    assert ti.Trajectory(model, store=tmp_path).steps == [0, 1]


def test_an_optimizer_drives_it_until_it_is_closed():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))

    def step():
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    with ti.Trajectory(model) as rec:
        rec()
        rec.attach(optimizer)
        for _ in range(3):
            step()
    assert rec.steps == [0, 1, 2, 3]
    assert torch.equal(rec[3], flat(model))
    step()
    assert len(rec) == 4


def test_the_training_loop_drives_it():
    model = net()
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    rec = ti.Trajectory(model, every=2)

    def loss(model, batch, state):
        return model(batch[0]).square().mean()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fit(model, loss, (x,), optimizer, epochs=3, batch_size=4, after_step=[rec.hook])
    assert rec.steps == [0, 2, 4]


def test_principal_directions_are_streamed_from_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("thalweg.instruments.principal.BLOCK", 50)
    model = net()
    rec = ti.Trajectory(model, store=tmp_path, buffer=4, dtype=torch.float64)
    for step in walk(model):
        rec(step)
    found = ti.pca_directions(rec, 2)
    dense = ti.pca_directions(torch.stack(list(rec)), 2)
    torch.testing.assert_close(found.basis, dense.basis, rtol=1e-12, atol=1e-12)
    assert found.layout == rec.layout
    coordinates, residual = rec.project(found)
    expected = found.project(torch.stack(list(rec)))
    torch.testing.assert_close(coordinates, expected.coordinates)
    torch.testing.assert_close(residual, expected.residual)
    assert residual[-1] == 0 and residual[0] > 0


def test_a_landscape_selects_the_parameters():
    model = net()
    x, y = torch.randn(6, 3), torch.tensor([0, 1, 0, 1, 0, 1])
    land = NetworkLandscape(
        model.eval(), torch.nn.functional.cross_entropy, (x, y), include="2.*"
    )
    rec = ti.Trajectory(land)
    rec()
    assert rec.dim == land.dim == 10
    assert torch.equal(rec[0], land.origin)


def test_a_sketch_keeps_distances():
    model = torch.nn.Linear(400, 50)
    rec = ti.Trajectory(model, sketch=1000)
    states = []
    for step in walk(model, steps=6):
        rec(step)
        states.append(flat(model).double())
    assert rec.shape == (6, 1000) and rec.layout is None
    true = torch.cdist(torch.stack(states), torch.stack(states)) ** 2
    kept = torch.cdist(torch.stack(list(rec)).double(), torch.stack(list(rec)).double())
    pairs = torch.triu_indices(6, 6, 1)
    ratio = (kept[*pairs] ** 2 / true[*pairs]) - 1
    assert ratio.abs().max() < 4 * rec.distortion
    assert rec.distortion == pytest.approx(0.0447, rel=1e-3)


def test_temporary_stores_go_with_the_recorder():
    rec = ti.Trajectory(net(), buffer=1)
    rec()
    path = rec.path
    assert path.exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del rec
    assert not path.exists()


def test_bad_input_is_refused(tmp_path):
    model = net()
    with pytest.raises(InputError, match="every must be at least 1, got 0"):
        ti.Trajectory(model, every=0)
    with pytest.raises(InputError, match="dtype must be one of"):
        ti.Trajectory(model, dtype=torch.bfloat16)
    ti.Trajectory(model, store=tmp_path / "a")
    with pytest.raises(StoreError, match="something else: its names, shapes differ"):
        ti.Trajectory(torch.nn.Linear(2, 2), store=tmp_path / "a")
    with pytest.raises(StoreError, match="dtype differ"):
        ti.Trajectory(model, store=tmp_path / "a", dtype=torch.float64)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="not empty"):
        ti.Trajectory(model, store=tmp_path / "b")
    rec = ti.Trajectory(model, store=tmp_path / "a", buffer=1)
    rec()
    (tmp_path / "a" / "chunk-000000.npy").write_bytes(b"short")
    with pytest.raises(StoreError, match="cannot be read"):
        ti.Trajectory(model, store=tmp_path / "a")
    meta = tmp_path / "a" / "trajectory.json"
    meta.write_text(json.dumps({})[:1])
    with pytest.raises(StoreError, match="cannot be read"):
        ti.Trajectory(model, store=tmp_path / "a")
    with pytest.raises(InputError, match="no states"):
        ti.Trajectory(model).project(ti.Directions(torch.eye(26)))
