"""The flow of calibration batches through a model of which one block at a time has weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from tnc.capture.batches import arguments, call
from tnc.capture.undisturbed import evaluating
from tnc.stream.blocks import Blocks, Undivided
from tnc.stream.values import Shelf, Tree, decode, encode, names_in

OPEN = "open"
"""Names a tensor that code between the blocks computes, from results that are not there yet."""


class Flow:
    """What every block reads in one run of a model ('was': the original, 'now': compressed).

    `calls[batch][block]` are its arguments, `results[batch][block]` the form of what it returns,
    both encoded. Tensors are named by the file and the place in it: '3/0' is the first result of
    block 3, 'given0/2' came from code around the blocks.
    """

    def __init__(self, side: str, blocks: Blocks, batches: Sequence[Any], shelf: Shelf) -> None:
        self.side, self.blocks, self.batches, self.shelf = side, blocks, batches, shelf
        self.calls: list[dict[int, Tree]] = [{} for _ in batches]
        self.results: list[dict[int, Tree]] = [{} for _ in batches]

    def file(self, number: int, part: str | int) -> str:
        """Return the file that holds some tensors of a batch."""
        return f"{self.side}-{number}-{part}"

    def is_open(self, block: int) -> bool:
        """Whether the code around the blocks must run again before a block can."""
        return any(OPEN in names_in(calls[block]) for calls in self.calls)

    def arguments(self, block: int, number: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return (args, kwargs) of a block for a batch."""

        def get(name: str) -> Tensor:
            part, _, place = name.partition("/")
            found = self.shelf.get(self.file(number, part), place)
            if found is None:
                raise Undivided(f"{self.blocks.paths[block]} reads {name}, which is gone")
            return found

        args, kwargs = decode(self.calls[number][block], get)
        return args, kwargs

    def record(self, model: nn.Module, start: int) -> None:
        """Run a model without its blocks, and note what those from `start` on are given.

        Results of earlier blocks are put in their places where they are on the shelf. Raises
        Undivided where block `start` still reads what is not there.
        """
        for number, batch in enumerate(self.batches):
            with outside(model, self, start) as run:
                with suppress(_Done), torch.no_grad(), evaluating(model):
                    call(model, fed(batch, {}, 0, number))
                run.keep(start)
        if self.is_open(start):
            raise Undivided(f"{self.blocks.paths[start]} reads what code before it makes of blocks")

    def advance(self, block: int, model: nn.Module, feeds: Sequence[Any]) -> None:
        """Run a block over all batches and put its results on the shelf."""
        for number, batch in enumerate(feeds):
            with torch.no_grad(), evaluating(model):
                found, _ = leaves(call(model, batch))
            tensors = {str(place): tensor for place, tensor in enumerate(found)}
            self.shelf.put(self.file(number, block), tensors)

    def live(self, done: int) -> list[str]:
        """Return the files that are needed once blocks up to `done` have run."""
        files = []
        for number, calls in enumerate(self.calls):
            ahead = {n.partition("/")[0] for b, c in calls.items() if b > done for n in names_in(c)}
            past = {n.partition("/")[0] for b, c in calls.items() if b <= done for n in names_in(c)}
            for part in sorted({n for n in ahead | past if n != OPEN} | {*map(str, calls)}):
                made = not part.isdigit() or int(part) <= done
                unread = part.isdigit() and part not in past
                if made and (part in ahead or unread or OPEN in ahead):
                    files.append(self.file(number, part))
        return files

    def drop(self, done: int) -> None:
        """Remove what is needed no longer."""
        kept = set(self.live(done))
        for path in self.shelf.folder.glob(f"{self.side}-*.safetensors"):
            if path.name.removesuffix(".safetensors") not in kept:
                path.unlink()

    def state(self) -> Tree:
        """Return what is noted, as JSON."""
        return {"calls": _texts(self.calls), "results": _texts(self.results)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what another process noted."""
        self.calls, self.results = _numbers(state["calls"]), _numbers(state["results"])


class Given:
    """Stands in a batch for what a block reads; the tensors are read when it runs."""

    def __init__(self, flows: Mapping[str, Flow], block: int, number: int, batch: Any) -> None:
        self._flows, self._block, self.number, self.batch = flows, block, number, batch

    def read(self, side: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return (args, kwargs) for the original's block or the compressed one."""
        return self._flows[side].arguments(self._block, self.number)


def fed(batch: Any, flows: Mapping[str, Flow], block: int, number: int) -> dict[str, Any]:
    """Return a batch for a block alone: the model's own (its mask and size count) and `given`."""
    args, kwargs = arguments(batch)
    named = {f"argument_{place}": value for place, value in enumerate(args)}
    return {**named, **kwargs, "given": Given(flows, block, number, batch)}


class Alone(nn.Module):
    """A block at its path, with nothing around; it is called with batches of `fed`."""

    def __init__(self, path: str, block: nn.Module, side: str) -> None:
        super().__init__()
        self._place, self._side = path, side
        here: nn.Module = self
        *parents, last = path.split(".")
        for name in parents:
            here.add_module(name, nn.Module())
            here = here.get_submodule(name)
        here.add_module(last, block)
        self.eval()

    def forward(self, given: Given, **batch: Any) -> Any:
        args, kwargs = given.read(self._side)
        return self.get_submodule(self._place)(*args, **kwargs)


class _Done(Exception):
    """The last block is reached: what comes after is not asked for."""


class _Run:
    """One forward of a model whose blocks answer with what is on the shelf, or with NaN."""

    def __init__(self, flow: Flow, start: int | None) -> None:
        self._flow, self._start, self._number = flow, start, 0
        self._known: dict[int, tuple[str, int, Tensor]] = {}
        self._given: dict[str, Tensor] = {}

    def begin(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Start a batch: a hook of the model, which turns ours back into the model's own."""
        given: Given = kwargs["given"]
        self._number = given.number
        self._known.clear()
        self._given.clear()
        return arguments(given.batch)

    def answer(self, place: int, block: nn.Module, args: Any, kwargs: Any) -> Any:
        """Return what stands for a block's results, and note its arguments where asked."""
        flow, number = self._flow, self._number
        if self._start is not None and place >= self._start:
            flow.calls[number][place] = encode((args, kwargs), self._name)
            flow.results[number][place] = _form(block, args, kwargs)
            if place == len(flow.blocks.paths) - 1:
                raise _Done
        form = flow.results[number][place]
        return decode(form["tree"], lambda leaf: self._result(place, leaf, form["leaves"]))

    def keep(self, start: int) -> None:
        """Put what the blocks of the batch are given from outside on the shelf."""
        if self._given:
            self._flow.shelf.put(self._flow.file(self._number, f"given{start}"), self._given)

    def _result(self, place: int, leaf: str, leaves: Sequence[Any]) -> Tensor:
        found = self._flow.shelf.get(self._flow.file(self._number, place), leaf)
        if found is None:
            shape, name = leaves[int(leaf)]
            dtype = getattr(torch, name)
            if not dtype.is_floating_point:
                raise Undivided(f"{self._flow.blocks.paths[place]} returns tensors of {dtype}")
            found = torch.full(shape, torch.nan, dtype=dtype)
        self._known[id(found)] = (f"{place}/{leaf}", found._version, found)
        return found

    def _name(self, tensor: Tensor) -> str:
        known = self._known.get(id(tensor))
        if known is not None and known[1] == tensor._version:
            return known[0]
        if tensor.is_meta:
            raise Undivided("code around the blocks reads weights of a block")
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            return OPEN
        name = f"given{self._start}/{len(self._given)}"
        self._given[str(len(self._given))] = tensor.detach().clone()
        self._known[id(tensor)] = (name, tensor._version, tensor)
        return name


@contextmanager
def outside(model: nn.Module, flow: Flow, start: int | None = None) -> Iterator[_Run]:
    """Let a model run without its blocks, on batches of `fed`; `start` notes arguments."""
    run = _Run(flow, start)

    def standing(place: int, block: nn.Module) -> Callable[..., Any]:
        return lambda *args, **kwargs: run.answer(place, block, args, kwargs)

    with ExitStack() as stack:
        hook = model.register_forward_pre_hook(run.begin, with_kwargs=True)
        stack.callback(hook.remove)
        for place, path in enumerate(flow.blocks.paths):
            block = model.get_submodule(path)
            block.forward = standing(place, block)
            stack.callback(delattr, block, "forward")
        for module in model.modules():
            config = getattr(module, "config", None)
            if getattr(config, "use_cache", False):
                config.use_cache = False  # type: ignore[union-attr]
                stack.callback(setattr, config, "use_cache", True)
        yield run


def leaves(value: Any) -> tuple[list[Tensor], Tree]:
    """Return the tensors in a block's results in order, and the form around their places."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> str:
        found.append(tensor)
        return str(len(found) - 1)

    tree = encode(value, keep)
    return found, tree


def _form(block: nn.Module, args: Any, kwargs: Any) -> Tree:
    """Run a block on shapes and return the form of its results."""
    buffers = [(m, dict(m._buffers)) for m in block.modules()]
    try:
        for module, held in buffers:
            module._buffers.update({n: b if b is None else b.to("meta") for n, b in held.items()})
        shapes = decode(encode((args, kwargs), _Shapes()), _Shapes.made)
        result = type(block).forward(block, *shapes[0], **shapes[1])
    except (RuntimeError, NotImplementedError) as error:
        raise Undivided(f"a {type(block).__name__} looks at values: {error}") from error
    finally:
        for module, held in buffers:
            module._buffers.update(held)
    found, tree = leaves(result)
    told = [[list(t.shape), str(t.dtype).removeprefix("torch.")] for t in found]
    return {"tree": tree, "leaves": told}


class _Shapes:
    """Names tensors by their shape and dtype, and makes tensors without memory of such names."""

    def __call__(self, tensor: Tensor) -> str:
        return f"{str(tensor.dtype).removeprefix('torch.')} {' '.join(map(str, tensor.shape))}"

    @staticmethod
    def made(name: str) -> Tensor:
        dtype, *shape = name.split()
        return torch.empty([int(n) for n in shape], dtype=getattr(torch, dtype), device="meta")


def _texts(found: Sequence[Mapping[int, Tree]]) -> Tree:
    return [{str(block): tree for block, tree in row.items()} for row in found]


def _numbers(found: Sequence[Mapping[str, Tree]]) -> list[dict[int, Tree]]:
    return [{int(block): tree for block, tree in row.items()} for row in found]
