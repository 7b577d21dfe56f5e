"""The step of a survey that shows sign-locked neurons, silent where there are none."""

import numpy as np
import torch
from torch import nn

from thalweg import NetworkLandscape, Quadratic, survey
from thalweg.models import mlp
from thalweg.seeding import normal, seeded
from thalweg.solvable.relu_topology import scan
from thalweg.surveying.sign_locks import find_locks

_F64 = torch.zeros((), dtype=torch.float64)


class Residual(nn.Module):
    """One chain to scan, that only a trace shows."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 1)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


def landscape(model):
    x, y = normal((20, 3), 0, "x", like=_F64), normal((20, 1), 0, "y", like=_F64)
    return NetworkLandscape(model.double(), nn.MSELoss(), (x, y))


def test_locked_neurons_are_counted_at_the_point_of_the_survey(tmp_path):
    model = mlp((3, 5, 1), activation="relu", seed=2)
    land = landscape(model)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    state["3.weight"] = 5 * torch.tensor([[1.0, -1, 1, 1, 1]]).double()
    state["1.bias"][0] = -100.0
    land = land.at(land.flatten(state))
    found = survey(land, out=tmp_path / "s", only="sign_locks")
    table = found.datasets["sign_locks"]
    model.load_state_dict(state)
    (pair,) = scan(model, data=land.data[0]).pairs
    assert len(pair.locked) == 4 and pair.dead.tolist() == [0]
    assert table["locked_positive"].item() == int((pair.signs[pair.locked] > 0).sum())
    assert table["locked_negative"].item() == 1
    assert table["dead"].item() == 1
    assert table["log2_components"].item() == 4
    assert found.summary["figures"]["sign_locked_neurons"] == 4
    assert "Sign-locked neurons" in (tmp_path / "s" / "report.html").read_text()


def test_a_model_without_chains_is_traced():
    with seeded(0, "residual"):
        model = Residual()
    with torch.no_grad():
        model.b.weight.fill_(9.0)
    table = survey(landscape(model), only="sign_locks").datasets["sign_locks"]
    assert table["pair"].values.tolist() == ["a → b"]
    np.testing.assert_array_equal(
        table["locked_positive"] + table["locked_negative"], [5]
    )


def test_every_form_of_data_is_read_for_dead_neurons():
    model = mlp((3, 5, 1), activation="relu").double()
    with torch.no_grad():
        model[3].weight.fill_(9.0)
        model[1].bias[1] = -50.0
    x, y = normal((20, 3), 0, "x", like=_F64), normal((20, 1), 0, "y", like=_F64)
    rows = torch.utils.data.TensorDataset(x, y)
    for data in ((x, y), [(x[:9], y[:9]), (x[9:], y[9:])], rows):
        land = NetworkLandscape(model, nn.MSELoss(), data)
        found = find_locks(land)
        assert found is not None
        assert 1 in found.pairs[0].dead.tolist()
    loader = torch.utils.data.DataLoader(rows, batch_size=10)
    found = find_locks(NetworkLandscape(model, nn.MSELoss(), loader))
    assert found is not None and found.pairs[0].dead is None


def test_it_is_silent_where_nothing_is_locked(tmp_path):
    for land in (
        landscape(mlp((3, 5, 1), activation="tanh")),
        NetworkLandscape(
            mlp((3, 5, 2), activation="relu"),
            nn.MSELoss(),
            (torch.ones(4, 3), torch.ones(4, 2)),
        ),
        Quadratic(torch.eye(3)),
    ):
        found = survey(land, only="sign_locks")
        assert "sign_locks" not in found.datasets
