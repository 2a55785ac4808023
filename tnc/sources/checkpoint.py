"""Checkpoints in safetensors files, read tensor by tensor: never a whole file at once."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tnc.errors import SourceError

if TYPE_CHECKING:
    from torch import Tensor

INDEX = "model.safetensors.index.json"
_LENGTH = struct.Struct("<Q")
_LONGEST_HEADER = 1 << 28


@dataclass(frozen=True)
class Stored:
    """Where one tensor lies: its file, dtype as safetensors names it, shape, bytes."""

    file: Path
    key: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one or several safetensors files, by name; only headers are in memory.

    `identity` is a SHA-256 over every file's name, size, time of change and header: cheap, and
    different as soon as a file is another one.
    """

    tensors: Mapping[str, Stored]
    identity: str

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(stored.nbytes for stored in self.tensors.values())

    def read(self, name: str) -> Tensor:
        """Return one tensor as memory of its own. Raises SourceError."""
        from safetensors import SafetensorError, safe_open

        stored = self.tensors[name]
        try:
            with safe_open(stored.file, framework="pt") as file:
                found: Tensor = file.get_tensor(stored.key).clone()
        except (SafetensorError, OSError) as error:
            raise _unreadable(stored.file, error) from error
        return found


def open_checkpoint(files: Iterable[Path]) -> Checkpoint:
    """Read the headers of safetensors files. Raises SourceError for a file that is damaged."""
    tensors: dict[str, Stored] = {}
    whole = hashlib.sha256()
    for path in files:
        header, told = _header(path)
        whole.update(told)
        for name, entry in header.items():
            if name in tensors:
                raise SourceError(
                    f"{name} is in two files, {tensors[name].file.name} and {path.name}",
                    where=str(path.parent),
                )
            start, end = entry["data_offsets"]
            shape = tuple(entry["shape"])
            tensors[name] = Stored(path, name, entry["dtype"], shape, end - start)
    return Checkpoint(tensors, whole.hexdigest())


def shard_files(folder: Path) -> tuple[Path, ...]:
    """Return the weight files of a folder in the format of transformers. Raises SourceError."""
    index, single = folder / INDEX, folder / "model.safetensors"
    if index.is_file():
        try:
            named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise SourceError(f"the index cannot be read: {error!r}", where=str(index)) from error
        return tuple(folder / name for name in sorted(set(named)))
    if single.is_file():
        return (single,)
    raise SourceError(
        f"{folder} holds no model.safetensors and no {INDEX}",
        where=str(folder),
        hint="streaming reads safetensors only: save the model with save_pretrained",
    )


def _header(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return the entries of a file's header, and what identifies the file."""
    try:
        state = path.stat()
        with path.open("rb") as file:
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            if length > min(_LONGEST_HEADER, state.st_size):
                raise ValueError(f"a header of {length} bytes in a file of {state.st_size}")
            text = file.read(length)
            entries = json.loads(text)
        entries.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(path, error) from error
    if _LENGTH.size + length + end != state.st_size:
        raise SourceError(
            f"{path.name} has {state.st_size:,} bytes, its header promises "
            f"{_LENGTH.size + length + end:,}: it was cut off or changed",
            where=str(path),
            hint="copy the checkpoint again",
        )
    told = f"{path.name} {state.st_size} {state.st_mtime_ns} ".encode()
    return entries, told + text


def _unreadable(path: Path, error: Exception) -> SourceError:
    reason = "it is missing" if isinstance(error, FileNotFoundError) else str(error)
    return SourceError(
        f"{path.name} cannot be read: {reason}", where=str(path), hint="copy the checkpoint again"
    )
