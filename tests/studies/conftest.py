"""The quick run of a study, for all tests of it."""

import pytest

from thalweg.studies import run_study


@pytest.fixture(scope="session")
def quick(request, tmp_path_factory):
    """Folder and result of the study whose name is the parameter.

    Pytest brings the tests of one parameter together, so that each study runs once.
    """
    folder = tmp_path_factory.mktemp("study") / "out"
    return folder, run_study(request.param, size="quick", store=folder)
