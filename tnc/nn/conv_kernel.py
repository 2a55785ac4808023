"""How the convolution of one layer is run, with weights that are kept while they do not change."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from tnc.kernels.kept import Shelf
from tnc.net import Structure
from tnc.nn.conv import Options
from tnc.nn.conv_choice import Asked, Choice, ConvTerm
from tnc.nn.conv_source import function
from tnc.nn.conv_stage import is_last
from tnc.nn.conv_tuning import ConvTask, choices

MOST = 16
"""How many choices and how many sets of weights one layer holds, of different inputs."""


class ConvKernel:
    """Run the convolution of one layer.

    Where a graph is recorded, the plain lines run: they do not depend on the input. Elsewhere the
    way of every term is chosen for the size of the input. Where no gradient of the cores is asked
    for, merged cores and laid-out weights are kept until a core changes. Nothing that is kept is
    saved or copied with the layer.
    """

    def __init__(self, structure: Structure, options: Options, terms: tuple[ConvTerm, ...]) -> None:
        self.structure, self.options, self.terms = structure, options, terms
        self._choices: dict[Asked, Choice] = {}
        self._plain = Choice.plain(terms)
        # made now: compilers do not follow the making of functions
        self._calls = tuple(function(self._plain.source(bias)) for bias in (False, True))
        self._kept: Shelf[tuple[Tensor, ...]] = Shelf(MOST)

    def sized(self, options: Options) -> ConvKernel:
        """Return a kernel for other options, such as another size of the result."""
        return ConvKernel(
            self.structure, options, tuple(term.sized(options) for term in self.terms)
        )

    def task(self, asked: Asked, dtype: torch.dtype) -> ConvTask:
        """Return what is chosen for when inputs come here and now."""
        name, threads = str(dtype).removeprefix("torch."), torch.get_num_threads()
        return ConvTask(self.structure, self.options, self.terms, asked, name, threads)

    def prepare(self, asked: Asked, dtype: torch.dtype) -> None:
        """Choose the way for such inputs now, by the tuning in force, and use it from now on."""
        self._choices.pop(asked, None)
        self._choice(asked, dtype)

    def forget(self) -> None:
        """Drop what is kept."""
        self._kept.forget()

    def run(self, cores: Mapping[str, Tensor], bias: Tensor | None, x: Tensor) -> Tensor:
        """Convolve `x[b, i, ..]`, or one image `x[i, ..]`."""
        single = x.dim() == self.options.n + 1
        x = self.options.prepared(x.unsqueeze(0) if single else x)
        if _may_choose(x):
            found = self._chosen(cores, bias, x)
        else:
            given = (*self._plain.weights(cores), *(() if bias is None else (bias,)))
            found = self._calls[bias is not None](x, *given)
        return found.squeeze(0) if single else found

    def _chosen(self, cores: Mapping[str, Tensor], bias: Tensor | None, x: Tensor) -> Tensor:
        values = tuple(cores.values())
        recorded = torch.is_grad_enabled()
        keeps = packs = True
        for core in values:
            if type(core) is not nn.Parameter or (recorded and core.requires_grad):
                keeps = packs = False
                break
        if packs:
            packs = x.dtype is values[0].dtype is torch.float32
            packs &= not (recorded and x.requires_grad) and not torch.is_autocast_enabled("cpu")
        asked = Asked(x.shape, is_last(x), keeps, packs)
        choice = self._choices.get(asked) or self._choice(asked, values[0].dtype)
        if not keeps:
            return choice.run(choice.weights(cores), bias, x)
        # several lines may read one core, and what is packed is a copy: all memory is watched
        weights = self._kept.take(
            id(choice), values, partial(_made, choice, cores, x.shape), lambda made: values
        )
        return choice.run(weights, bias, x)

    def _choice(self, asked: Asked, dtype: torch.dtype) -> Choice:
        if len(self._choices) >= MOST:
            self._choices.clear()
            self._kept.forget()
        choice = choices(self.task(asked, dtype))[0]
        for other in self._choices.values():  # inputs of several sizes share weights
            if other == choice:
                choice = other
        self._choices[asked] = choice
        return choice


def _made(
    choice: Choice, cores: Mapping[str, Tensor], shape: tuple[int, ...]
) -> tuple[Tensor, ...]:
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        return choice.laid_out(cores, shape)


def _may_choose(x: Tensor) -> bool:
    """Whether a way may be chosen for the input at hand: it is a real one on the processor."""
    return (
        not torch.compiler.is_compiling()
        and type(x) in (Tensor, nn.Parameter)
        and x.device.type == "cpu"
        and x.numel() > 0
        and not torch._C._len_torch_dispatch_stack()
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
    )
