"""Set-up of all tests: one torch thread, checked shapes and types, Ctrl-C heard."""

import signal

import torch
from jaxtyping import install_import_hook

torch.set_num_threads(1)
# A background job of a shell ignores Ctrl-C, and so would the processes of its tests.
signal.signal(signal.SIGINT, signal.default_int_handler)
install_import_hook("thalweg", "typechecks.checked")
