"""Set-up of all tests: one torch thread, checked shapes and types."""

import torch
from jaxtyping import install_import_hook

torch.set_num_threads(1)
install_import_hook("thalweg", "typechecks.checked")
