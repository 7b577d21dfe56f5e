"""Real data that installs with the package, and readers for the user's own files.

Nothing is downloaded. Everything comes as `LabeledData`: two tensors, the class names
and a name.
"""

from thalweg.data.binary import cifar_binary, idx_dataset, read_idx
from thalweg.data.bundled import digits, mnist_5k
from thalweg.data.folders import image_folder
from thalweg.data.labeled import LabeledData
from thalweg.data.splitting import split

__all__ = [
    "LabeledData",
    # installed with the package
    "digits",
    "mnist_5k",
    # the user's own files
    "cifar_binary",
    "idx_dataset",
    "image_folder",
    "read_idx",
    # parts
    "split",
]
