"""The directory of a survey: plan, results by step, directions, summary, report."""

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from thalweg.errors import StoreError
from thalweg.execution import atomic_file
from thalweg.surveying.plan import Plan

if TYPE_CHECKING:
    import xarray as xr

RESULTS = "survey.nc"


class Archive:
    """Datasets by step, in memory, and in one NetCDF file where there is a directory.

    The file is written anew after each step (temporary file, then rename), one group a
    step, so that an interrupted survey keeps every finished step.
    """

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory
        self.datasets: dict[str, xr.Dataset] = {}
        self._directions: dict[str, Tensor] = {}

    @classmethod
    def create(
        cls, directory: Path | None, plan: Plan, landscape: str, *, resume: bool
    ) -> "Archive":
        """Open a directory for a survey of `landscape` (a fingerprint) with `plan`.

        Raises:
            StoreError: The directory holds another survey, or anything else.
        """
        archive = cls(directory)
        if directory is None:
            return archive
        stamp = f"{landscape}\n"
        if not directory.exists() or not any(directory.iterdir()):
            directory.mkdir(parents=True, exist_ok=True)
            _write(directory / "plan.json", plan.to_json())
            _write(directory / "landscape.txt", stamp)
            return archive
        if not (directory / "plan.json").is_file():
            raise StoreError(
                f"{directory} is not empty and holds no survey: choose another --out"
            )
        if not resume:
            raise StoreError(
                f"{directory} holds a survey: go on with --resume, or choose another "
                "--out"
            )
        if (directory / "landscape.txt").read_text() != stamp:
            raise StoreError(
                f"{directory} holds the survey of another landscape (weights, data or "
                "loss differ): choose another --out"
            )
        archive._load()
        return archive

    @classmethod
    def open(cls, directory: Path) -> "Archive":
        """Open the results of a survey for reading.

        Raises:
            StoreError: There is no survey, or its results are damaged.
        """
        if not (directory / "plan.json").is_file():
            raise StoreError(f"no survey at {directory}: there is no plan.json")
        archive = cls(directory)
        archive._load()
        return archive

    def _load(self) -> None:
        import xarray as xr

        assert self.directory is not None
        path = self.directory / RESULTS
        if not path.exists():
            return
        try:
            with xr.open_datatree(path, engine="h5netcdf") as tree:
                self.datasets = {
                    name: node.to_dataset().load() for name, node in tree.items()
                }
        except (OSError, ValueError, KeyError) as error:
            raise StoreError(f"{path} cannot be read: {error}") from None

    def put(self, step: str, dataset: "xr.Dataset") -> None:
        """Keep the result of a step."""
        import xarray as xr

        self.datasets[step] = dataset
        if self.directory is None:
            return
        tree = xr.DataTree.from_dict(self.datasets)
        with atomic_file(self.directory / RESULTS) as file:
            file.write(tree.to_netcdf(engine="h5netcdf"))

    def save_directions(self, kind: str, vectors: Tensor) -> None:
        """Keep directions beside the results."""
        if self.directory is None:
            self._directions[kind] = vectors
            return
        from safetensors.torch import save

        folder = self.directory / "directions"
        folder.mkdir(exist_ok=True)
        with atomic_file(folder / f"{kind}.safetensors") as file:
            file.write(save({"basis": vectors.contiguous()}))

    def directions(self, kind: str, count: int) -> Tensor:
        """Return the first `count` directions of that kind that were kept."""
        if kind in self._directions:
            return self._directions[kind][:, :count]
        from safetensors import safe_open

        assert self.directory is not None
        path = self.directory / "directions" / f"{kind}.safetensors"
        with safe_open(path, "pt") as file:
            return file.get_slice("basis")[:, :count]

    def chunks(self, step: str) -> Path | None:
        """Return the folder where a step keeps its finished chunks."""
        return None if self.directory is None else self.directory / "chunks" / step

    def write(self, name: str, text: str) -> None:
        """Write a text file into the directory, at once or not at all."""
        if self.directory is not None:
            _write(self.directory / name, text)


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as file:
        file.write(text.encode())
