"""What tests of networks share: the digits."""

import pytest
import torch


@pytest.fixture(scope="session")
def digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.data / 16), torch.tensor(data.target)
