"""References in specs to code and folders: `pkg.mod:function`, `package:pkg/folder`."""

from __future__ import annotations

import importlib
import importlib.util
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tnc.errors import SourceError, TncError

_OWN = Path(__file__).parents[1]


def find_function(reference: str) -> Callable[..., Any]:
    """Return the function `pkg.mod:name`. Importing it runs its module's code.

    Raises SourceError.
    """
    module, colon, name = reference.partition(":")
    if not (module and colon and name):
        raise SourceError(
            f"{reference!r} names no function", hint="write 'package.module:function'"
        )
    with user_code(reference):
        loaded = importlib.import_module(module)
    try:
        found = getattr(loaded, name)
    except AttributeError as error:
        near = get_close_matches(name, [n for n in vars(loaded) if n[0] != "_"], n=1)
        raise SourceError(
            f"module {module!r} has no {name!r}",
            where=reference,
            hint=f"did you mean {near[0]!r}?" if near else f"it is the file {loaded.__file__}",
        ) from error
    if not callable(found):
        raise SourceError(
            f"{reference} is no function but {type(found).__name__}",
            where=reference,
            hint="name something that can be called",
        )
    return found  # type: ignore[no-any-return]


@contextmanager
def user_code(reference: str) -> Iterator[None]:
    """Turn what a user's code raises in this block into SourceError, with its file and line."""
    try:
        yield
    except TncError:
        raise
    except ModuleNotFoundError as error:
        raise SourceError(
            f"cannot import {error.name!r}",
            where=reference,
            hint="install it, or put its folder into PYTHONPATH",
        ) from error
    except Exception as error:
        place = _place(error)
        raise SourceError(
            f"{reference} fails: {type(error).__name__}: {error}",
            where=place or reference,
            hint="mend the function, or its `kwargs` in the spec; --traceback shows all of it",
        ) from error


def _place(error: Exception) -> str:
    """Return the file and line in the first file that is neither ours nor the import system's."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<")
        and Path(frame.filename).parent.name != "importlib"
        and not Path(frame.filename).is_relative_to(_OWN)
    ]
    lines = [frame.lineno for frame in frames if frame.filename == frames[0].filename]
    return f"{frames[0].filename}:{lines[-1]}" if lines else ""


def find_path(reference: str) -> Path:
    """Return a file or folder: a path, or `package:pkg/inside`, found without importing `pkg`.

    Raises SourceError when there is none.
    """
    if not reference.startswith("package:"):
        path = Path(reference).expanduser()
        if path.exists():
            return path
        raise SourceError(
            f"no file or folder {reference!r}",
            where=f"relative to {Path.cwd()}",
            hint="paths in a spec start from the folder where tnc runs",
        )
    package, _, inside = reference.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None:
        raise SourceError(
            f"no Python package {package!r} is installed",
            where=reference,
            hint=f"pip install {package.replace('_', '-')}",
        )
    for folder in spec.submodule_search_locations or []:
        if (Path(folder) / inside).exists():
            return Path(folder) / inside
    raise SourceError(f"package {package!r} holds no {inside!r}", where=reference)
