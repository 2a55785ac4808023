"""The batches that a model was trained on since the last step, and Jacobians of its outputs."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.utils import _pytree as pytree

from tnc.errors import BindError
from tnc.optim.capturing import Watch, drop_dead


@dataclass(frozen=True, eq=False)
class Batch:
    """One forward pass whose gradient came back: inputs, outputs and the loss's gradient by them.

    `outputs` and `gradient` are (b, ..., c), with one row of c outputs for every sample and place.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: Tensor
    gradient: Tensor


class Batches:
    """Keeps the batches of a model between steps; a pass without a gradient leaves no trace."""

    def __init__(self, model: nn.Module) -> None:
        drop_dead(model)
        self._found: list[Batch] = []
        self._handle = model.register_forward_hook(Watch(weakref.ref(self)), with_kwargs=True)

    def seen(self, module: nn.Module, args: Any, kwargs: Any, outputs: Any) -> None:
        """Take note of a forward pass of the model."""
        if not torch.is_grad_enabled() or torch._C._functorch.maybe_current_level() is not None:
            return
        if not isinstance(outputs, Tensor) or outputs.dim() < 2:
            raise BindError(
                "the model's outputs are not one tensor (samples, ..., outputs)",
                hint="wrap the model in a module that returns its logits alone",
            )
        if outputs.requires_grad:
            keep = partial(self._backward, args, kwargs, outputs.detach())
            outputs.register_hook(keep)  # type: ignore[no-untyped-call]

    def _backward(self, args: Any, kwargs: Any, outputs: Tensor, gradient: Tensor) -> None:
        self._found.append(Batch(args, kwargs, outputs, gradient.detach()))

    def take(self) -> list[Batch]:
        """Return the batches since the last call, and forget them."""
        found, self._found = self._found, []
        return found

    def release(self) -> None:
        """Take the hook off the model."""
        self._handle.remove()
        self._found = []


def jacobian(model: nn.Module, names: Sequence[str], batch: Batch) -> Tensor:
    """Return the Jacobian of a batch's outputs by named parameters, `(b, ..., c, d)`.

    Sample by sample, so a model must treat the samples of a batch alone. d counts the entries of
    the parameters in the order of `names`. Raises BindError where the model does not.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    chosen = {name: parameters[name].detach() for name in names}
    leaves, tree = pytree.tree_flatten((batch.args, dict(batch.kwargs)))
    count = len(batch.outputs)
    batched = [isinstance(x, Tensor) and x.dim() > 0 and len(x) == count for x in leaves]

    def outputs(given: dict[str, Tensor], *sample: Any) -> Tensor:
        whole = [x.unsqueeze(0) if one else x for x, one in zip(sample, batched)]
        args, kwargs = pytree.tree_unflatten(whole, tree)
        found: Tensor = functional_call(model, given, args, kwargs)
        return found.squeeze(0)

    dims = tuple(0 if one else None for one in batched)
    try:
        found = vmap(jacrev(outputs), in_dims=(None, *dims))(chosen, *leaves)
    except RuntimeError as error:
        raise BindError(
            f"no Jacobian of {type(model).__name__} sample by sample: {str(error).splitlines()[0]}",
            hint="dropout and batch norm in training mode mix or blur samples: use model.eval(), "
            "or layers without them",
        ) from error
    axes = batch.outputs.dim()
    return torch.cat([found[name].flatten(axes) for name in names], dim=-1)
