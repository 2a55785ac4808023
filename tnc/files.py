"""Writing files and folders so that an interruption leaves the old one or none."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FAILED = ("I/O error", "PytorchStreamWriter failed")
"""What safetensors and torch say of a disk that takes no more; theirs is no OSError."""

Refusal = Callable[..., Exception]
"""A kind of TncError: called with the message, `where` and `hint`."""


@contextmanager
def writing(path: Path, kind: Refusal) -> Iterator[None]:
    """Turn what a full disk or a missing right raises in this block into an error of `kind`.

    It names what was to be written, where, and what to do.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError) and not any(sign in str(error) for sign in _FAILED):
            raise
        raise kind(
            f"cannot write {path}: {getattr(error, 'strerror', '') or error}",
            where=str(getattr(error, "filename", "") or ""),
            hint="choose another place, with room and the right to write",
        ) from error


def check_place(path: Path, kind: Refusal) -> None:
    """Raise an error of `kind` where `path` cannot be made, before the work that fills it."""
    with writing(path, kind):
        with suppress(FileNotFoundError, NotADirectoryError):
            path.lstat()
        parent = path.absolute().parent
        while not parent.exists():
            parent = parent.parent
    reason = "no folder" if not parent.is_dir() else "not writable"
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise kind(f"cannot write {path}: {parent} is {reason}", hint="choose another place")


def check_no_home(path: Path, kind: Refusal) -> None:
    """Raise an error of `kind` where a folder would be replaced that holds the one we are in."""
    here = Path.cwd()
    if path.resolve() in (here, *here.parents):
        raise kind(
            f"cannot replace {path}: it is the folder that you are in, or holds it",
            hint="name a folder in it",
        )


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in one step: a temporary file beside it, flushed, then renamed.

    What is no file (a pipe, /dev/stdout) is written to, never replaced; of a link the file is.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


ATTEMPTS = 5


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Yield a fresh folder that takes the place of `path` when the block ends without an error.

    An old folder of that name is moved aside for the moment of the exchange and then removed; a
    kill in that moment leaves it under `.NAME.old`, from where `recover_folder` brings it back.
    What killed writers left behind is removed by the next one.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(path)
    _remove_leftovers(path)
    fresh = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.new-{os.getpid()}-"))
    try:
        yield fresh
        put_in_place(fresh, path)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        recover_folder(path)
        raise


def put_in_place(fresh: Path, path: Path) -> None:
    """Let a complete folder take the place of `path`, everything in it flushed before."""
    for file in sorted(fresh.rglob("*")):
        if file.is_file():
            flush(file)
    flush(fresh)
    old = _old(path)
    _exchange(fresh, path, old)
    flush(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(path: Path) -> bool:
    """Bring back a folder that an exchange left aside; True when there was one to bring back."""
    old = _old(path)
    if old.exists() and not path.exists():
        os.rename(old, path)
        return True
    return False


def _exchange(fresh: Path, path: Path, old: Path) -> None:
    """Put `fresh` in the place of `path`; again if a reader brings the old one back meanwhile."""
    for attempt in range(ATTEMPTS):
        if path.exists():
            os.rename(path, old)
        try:
            os.rename(fresh, path)
            return
        except OSError:
            if attempt == ATTEMPTS - 1 or not path.exists():
                raise


def _remove_leftovers(path: Path) -> None:
    """Remove an old folder that was replaced, and new ones whose writers are no more."""
    if path.exists():
        shutil.rmtree(_old(path), ignore_errors=True)
    for left in path.parent.glob(f".{path.name}.new-*-*"):
        writer = left.name.removeprefix(f".{path.name}.new-").partition("-")[0]
        if writer.isdigit() and not _runs(int(writer)):
            shutil.rmtree(left, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
