"""TARGET: a landscape named by module or file, as the command line and workers do.

The code of a TARGET is the user's own and is run; checkpoints are only read.
"""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import numpy as np
import torch
from torch import Tensor, nn

from thalweg.errors import CheckpointError, StructureError, TargetError, ThalwegError
from thalweg.landscapes._state import preserved_random, seed_all
from thalweg.landscapes.base import Landscape
from thalweg.landscapes.checkpoints import read_checkpoint
from thalweg.landscapes.network import NetworkLandscape
from thalweg.provenance import fingerprint

FORMS = '"package.module:name" or "path/to/file.py:name"'
KINDS = (
    "a Landscape, a tuple (model, loss, data) or (model, x, y), or a function without "
    "arguments that returns one"
)


@dataclass(frozen=True)
class Recipe:
    """How to build a landscape again, in whichever process: small and picklable.

    Args:
        target: TARGET with an absolute path, or module and name.
        checkpoints: Absolute paths; the landscape stands at the first.
        options: Keywords of `NetworkLandscape`.
        folder: Folder from which modules are imported first.
    """

    target: str
    checkpoints: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    folder: str = ""

    def __call__(self) -> Landscape:
        """Build the landscape."""
        return load_target(
            self.target, self.checkpoints, folder=self.folder, **self.options
        ).landscape


@dataclass(frozen=True)
class Target:
    """What a TARGET gave.

    Args:
        landscape: The landscape, standing at the first checkpoint where there is one.
        states: The checkpoints' state dicts, in order.
        notes: What was assumed, for a reader.
        recipe: Builds the landscape again.
        examples: (x, y) where the TARGET was (model, x, y).
    """

    landscape: Landscape
    states: tuple[dict[str, Tensor], ...]
    notes: tuple[str, ...]
    recipe: Recipe
    examples: tuple[Tensor, Tensor] | None = None


def load_target(
    target: str,
    checkpoints: Sequence[str | Path] = (),
    *,
    folder: str | Path | None = None,
    **options: Any,
) -> Target:
    """Load a TARGET, and put it at a checkpoint.

    Args:
        target: "package.module:name" or "path/to/file.py:name", naming a Landscape, a
            tuple (model, loss, data) or (model, x, y), or a function without arguments
            that returns one. In a tuple the second item decides: a tensor is x, and
            the loss is then cross-entropy.
        checkpoints: Files for `read_checkpoint`.
        folder: Where modules are imported from first; the working directory by default.
        **options: Keywords of `NetworkLandscape`, for tuples.

    Raises:
        TargetError: It does not import, or names something else.
        CheckpointError: A checkpoint cannot be read or does not fit.
    """
    folder = Path.cwd() if not folder else Path(folder)
    place, name = _parsed(target)
    path = _as_file(place, folder)
    notes: list[str] = []
    examples = None
    source = folder if path is None else path.parent
    with _importable(source), preserved_random():
        seed_all(0, "target")  # the same weights in every process that builds it
        module = _module(target, place) if path is None else _file(target, path)
        thing = _made(target, _named(target, module, name))
        if isinstance(thing, tuple):
            thing, examples = _from_tuple(target, thing, options, notes)
        elif options:
            raise TargetError(
                f"TARGET {target!r} names a finished landscape; {sorted(options)} go "
                "with a tuple (model, loss, data)"
            )
    assert isinstance(thing, Landscape)
    states = tuple(read_checkpoint(file) for file in checkpoints)
    if states:
        thing = _at_checkpoints(target, thing, checkpoints, states)
    recipe = Recipe(
        target if path is None else f"{path}:{name}",
        tuple(str(Path(file).resolve()) for file in checkpoints),
        dict(options),
        str(folder.resolve()),
    )
    return Target(thing, states, tuple(notes), recipe, examples)


def _parsed(target: str) -> tuple[str, str]:
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise TargetError(f"TARGET {target!r} must be {FORMS}")
    return place, name


def _as_file(place: str, folder: Path) -> Path | None:
    if not place.endswith(".py") and "/" not in place and "\\" not in place:
        return None
    return (folder / Path(place).expanduser()).resolve()


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let imports find the modules beside the TARGET."""
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before


def _module(target: str, place: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except (Exception, SystemExit) as error:
        raise TargetError(
            f"TARGET {target!r} does not import: module {place!r} (looked for in "
            f"{sys.path[0]} and the installed packages) raised {_said(error)}"
        ) from error


def _file(target: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise TargetError(f"TARGET {target!r}: there is no file {path}")
    # One module a path and process: classes of one file must be one class.
    name = f"{path.stem}_{fingerprint(str(path))[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TargetError(f"TARGET {target!r}: {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise TargetError(
            f"TARGET {target!r} does not import: {path} raised {_said(error)}"
        ) from error
    except BaseException:
        del sys.modules[name]
        raise
    # What it defines travels to other processes whole: they cannot import it by name.
    cloudpickle.register_pickle_by_value(module)
    return module


def _named(target: str, module: ModuleType, name: str) -> object:
    thing: object = module
    for part in name.split("."):
        if not hasattr(thing, part):
            names = [n for n in vars(module) if not n.startswith("_")]
            raise TargetError(
                f"TARGET {target!r}: {getattr(module, '__file__', module)} has no "
                f"{name!r}; it has {names[:12]}"
            )
        thing = getattr(thing, part)
    return thing


def _made(target: str, thing: object) -> "Landscape | tuple[Any, ...]":
    """Return a landscape or tuple: the thing itself, or what the function gives."""
    made = thing
    if not isinstance(thing, Landscape | tuple | nn.Module | type) and callable(thing):
        made = _called(target, thing)
    if isinstance(made, Landscape | tuple):
        return made
    advice = ""
    if isinstance(made, nn.Module):
        advice = ": a model alone has no loss, give the tuple (model, loss, data)"
    elif isinstance(made, type):
        advice = ": a class, give an instance"
    verb = "names" if made is thing else "returns"
    raise TargetError(
        f"TARGET {target!r} {verb} {_article(made)}{advice}. It must be {KINDS}"
    )


def _called(target: str, function: Callable[..., Any]) -> object:
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise TargetError(
            f"TARGET {target!r} is a function that needs arguments ({error}); it must "
            "take none"
        ) from error
    except ValueError:  # a builtin without signature: the call will tell
        pass
    try:
        return function()
    except ThalwegError:
        raise
    except (Exception, SystemExit) as error:
        raise TargetError(
            f"TARGET {target!r}: the function raised {_said(error)}"
        ) from (error)


def _from_tuple(
    target: str, thing: tuple[Any, ...], options: Mapping[str, Any], notes: list[str]
) -> tuple[NetworkLandscape, tuple[Tensor, Tensor] | None]:
    if len(thing) != 3 or not isinstance(thing[0], nn.Module):
        kinds = ", ".join(type(item).__name__ for item in thing)
        raise TargetError(
            f"TARGET {target!r} gives a tuple ({kinds}); a tuple must be "
            "(model, loss, data) or (model, x, y)"
        )
    model, second, third = thing
    if isinstance(second, np.ndarray):
        second, third = torch.from_numpy(second), torch.as_tensor(third)
    if isinstance(second, Tensor):
        notes.append("the TARGET is (model, x, y): the loss is cross-entropy")
        y = torch.as_tensor(third)
        loss = nn.functional.cross_entropy
        return NetworkLandscape(model, loss, (second, y), **options), (second, y)
    if not callable(second) and second != "auto":
        raise TargetError(
            f"TARGET {target!r}: the second item of the tuple is {_article(second)}; "
            'it must be a loss (a callable or "auto") or a tensor x'
        )
    return NetworkLandscape(model, second, third, **options), None


def _at_checkpoints(
    target: str,
    land: Landscape,
    files: Sequence[str | Path],
    states: Sequence[dict[str, Tensor]],
) -> Landscape:
    if not isinstance(land, NetworkLandscape):
        raise TargetError(
            f"TARGET {target!r} is a {type(land).__name__}: checkpoints go with a "
            "network's landscape"
        )
    placed = []
    for file, state in zip(files, states, strict=True):
        try:
            placed.append(land.with_state(state))
        except StructureError as error:
            raise CheckpointError(f"checkpoint {file}: {error}") from error
    return placed[0]


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _article(thing: object) -> str:
    kind = type(thing).__name__
    return f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"
