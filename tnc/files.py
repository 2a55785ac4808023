"""Writing files and folders so that an interruption leaves the old one or none."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step: a temporary file beside it, flushed, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Yield a fresh folder that takes the place of `path` when the block ends without an error.

    An old folder of that name is moved aside for the moment of the exchange and then removed; a
    kill in that moment leaves it under `.NAME.old`, from where `recover_folder` brings it back.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(path)
    fresh = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.new-"))
    try:
        yield fresh
        for file in sorted(fresh.rglob("*")):
            if file.is_file():
                _flush(file)
        _flush(fresh)
        old = _old(path)
        if path.exists():
            os.rename(path, old)
        os.rename(fresh, path)
        _flush(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        recover_folder(path)
        raise


def recover_folder(path: Path) -> bool:
    """Bring back a folder that an exchange left aside; True when there was one to bring back."""
    old = _old(path)
    if old.exists() and not path.exists():
        os.rename(old, path)
        return True
    return False


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
