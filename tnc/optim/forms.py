"""The forms of `torch.optim`'s own optimizers, and how the form of any optimizer is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tnc.errors import BindError
from tnc.optim.kinds import OURS, Form, Group, Kind, Starts, State, number, zeros
from tnc.optim.quantised import QuantisedForm, is_quantised


class CenteredForm(Form):
    """RMSprop's: where the mean gradient is taken off the second moment, the variance moves.

    Each alone would not keep the second moment above the squared mean, whose difference has a root.
    """

    def read(self, state: State, parameter: Tensor, group: Group) -> dict[str, Tensor]:
        found = super().read(state, parameter, group)
        if "grad_avg" in found and "square_avg" in found:
            variance = found["square_avg"] - found["grad_avg"].square()
            found["square_avg"] = variance.clamp_min(0)
        return found

    def write(self, moved: State, core: Tensor, group: Group) -> dict[str, Any]:
        found = dict(moved)
        if "grad_avg" in found and "square_avg" in found:
            found["square_avg"] = found["square_avg"] + found["grad_avg"].square()
        return found


class FactoredForm(Form):
    """Adafactor's: rows' and columns' means of the second moment stand for all of it."""

    def read(self, state: State, parameter: Tensor, group: Group) -> dict[str, Tensor]:
        if "variance" in state:
            return {"variance": state["variance"]}
        rows, columns = state["row_var"], state["col_var"]
        mean = rows.mean(-2, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
        return {"variance": rows * columns / mean}

    def write(self, moved: State, core: Tensor, group: Group) -> dict[str, Any]:
        if "variance" not in moved or core.dim() < 2:
            return dict(moved)
        found = {slot: value for slot, value in moved.items() if slot != "variance"}
        variance = moved["variance"]
        means = {"row_var": variance.mean(-1, keepdim=True)}
        means["col_var"] = variance.mean(-2, keepdim=True)
        return found | means

    def start(self, slot: str, parameter: Tensor, group: Group) -> Any:
        found = super().start(slot, parameter, group)
        if slot in ("row_var", "col_var") and parameter.dim() > 1:
            return found.narrow(-1 if slot == "row_var" else -2, 0, 1).contiguous()
        return found


def _one(parameter: Tensor, group: Group) -> Tensor:
    return number(1.0, parameter, group)


def _rate(parameter: Tensor, group: Group) -> Tensor:
    return number(float(group["lr"]), parameter, group)


def _filled(option: str) -> Starts:
    def start(parameter: Tensor, group: Group) -> Tensor:
        return zeros(parameter, group).fill_(float(group.get(option, 0.0)))

    return start


def _always(group: Group) -> bool:
    return True


def _flagged(group: Group) -> bool:
    return bool(group.get("decoupled_weight_decay", False))


def _option(name: str) -> Callable[[Tensor, Group], bool]:
    def asked(parameter: Tensor, group: Group) -> bool:
        return bool(group.get(name, False))

    return asked


def _from_zero(parameter: Tensor, group: Group) -> bool:
    """Whether SGD's buffer may be there before the first step, which it takes undampened."""
    return bool(group.get("momentum", False)) and not group.get("dampening", 0)


def _wide(parameter: Tensor, group: Group) -> bool:
    return parameter.dim() > 1


def _narrow(parameter: Tensor, group: Group) -> bool:
    return parameter.dim() < 2


def _matrices(parameter: Tensor, group: Group) -> str:
    if parameter.dim() == 2:
        return ""
    return f"torch.optim.Muon takes matrices, this has {parameter.dim()} axes"


def _average(option: str, place: int | None = None) -> Callable[[State, Group], float]:
    """Return what an average that starts at zero, with a decay among the options, has gathered."""

    def gathered(state: State, group: Group) -> float:
        found = group[option]
        decay = float(found if place is None else found[place])
        return float(1 - decay ** float(state["step"]))

    return gathered


def _steps(state: State, group: Group) -> float:
    return float(state["step"])


def _whole(state: State, group: Group) -> float:
    return 1.0


_BOTH = {"exp_avg": _average("betas", 0), "exp_avg_sq": _average("betas", 1)}
_MOMENTS = {"step": Kind.SCALAR, "exp_avg": Kind.COVECTOR, "exp_avg_sq": Kind.DIAGONAL}
_ADAM = _MOMENTS | {"max_exp_avg_sq": Kind.DIAGONAL}
_MOMENTUM = {"momentum_buffer": Kind.COVECTOR}
_AMSGRAD = {"max_exp_avg_sq": _option("amsgrad")}
_WITH_MOMENTUM = {"momentum_buffer": _option("momentum")}

FORMS: dict[type[torch.optim.Optimizer], Form] = {
    torch.optim.SGD: Form(_MOMENTUM, present={"momentum_buffer": _from_zero}),
    torch.optim.Adam: Form(_ADAM, present=_AMSGRAD, holds=_BOTH, decoupled=_flagged, forgets=True),
    torch.optim.AdamW: Form(_ADAM, present=_AMSGRAD, holds=_BOTH, decoupled=_always, forgets=True),
    torch.optim.Adamax: Form(
        {"step": Kind.SCALAR, "exp_avg": Kind.COVECTOR, "exp_inf": Kind.MAGNITUDE}
    ),
    torch.optim.NAdam: Form(
        _MOMENTS | {"mu_product": Kind.SCALAR},
        {"mu_product": _one},
        holds=_BOTH,
        decoupled=_flagged,
    ),
    torch.optim.RAdam: Form(_MOMENTS, holds=_BOTH, decoupled=_flagged, forgets=True),
    torch.optim.RMSprop: CenteredForm(
        {
            "step": Kind.SCALAR,
            "square_avg": Kind.DIAGONAL,
            "grad_avg": Kind.COVECTOR,
            "momentum_buffer": Kind.CHANGE,
        },
        present=_WITH_MOMENTUM | {"grad_avg": _option("centered")},
        holds={"square_avg": _average("alpha")},
    ),
    torch.optim.Adagrad: Form(
        {"step": Kind.SCALAR, "sum": Kind.DIAGONAL},
        {"sum": _filled("initial_accumulator_value")},
        holds={"sum": _steps},
        eager=True,
    ),
    torch.optim.Adadelta: Form(
        {"step": Kind.SCALAR, "square_avg": Kind.DIAGONAL, "acc_delta": Kind.SIZE},
        holds={"square_avg": _average("rho")},
    ),
    torch.optim.Rprop: Form(
        {"step": Kind.SCALAR, "prev": Kind.COVECTOR, "step_size": Kind.SIZE},
        {"step_size": _filled("lr")},
    ),
    torch.optim.ASGD: Form(
        {"step": Kind.SCALAR, "eta": Kind.SCALAR, "mu": Kind.SCALAR, "ax": Kind.VECTOR},
        {"eta": _rate, "mu": _one},
    ),
    torch.optim.Muon: Form(_MOMENTUM, decoupled=_always, refuses=_matrices),
    torch.optim.Adafactor: FactoredForm(
        {
            "step": Kind.SCALAR,
            "row_var": Kind.DIAGONAL,
            "col_var": Kind.DIAGONAL,
            "variance": Kind.DIAGONAL,
        },
        present={"row_var": _wide, "col_var": _wide, "variance": _narrow},
        holds={"variance": _whole},
        decoupled=_always,
    ),
}


def form_of(optimizer: torch.optim.Optimizer, group: Group | None = None) -> Form:
    """Return the form of an optimizer's state. Raises BindError for a class without one.

    `group` is one of its `param_groups`: a `Together` has a form for each of them.

    >>> form_of(torch.optim.SGD([torch.zeros(2, requires_grad=True)])).kinds["momentum_buffer"]
    <Kind.COVECTOR: 'covector'>
    """
    optimizer = part_of(optimizer, group)
    own = getattr(optimizer, "form", None)
    if isinstance(own, Form):
        return own
    if is_quantised(optimizer):
        return QuantisedForm(FORMS[torch.optim.Adam], optimizer)
    for kind in type(optimizer).__mro__:
        if kind in FORMS:
            return FORMS[kind]
    known = ", ".join(sorted(kind.__name__ for kind in FORMS))
    raise BindError(
        f"{type(optimizer).__name__} does not say what its state is",
        hint=f"known are {known} and the rules of tnc.optim; another class is made known by "
        "`tnc.optim.FORMS[YourOptimizer] = tnc.optim.Form({'slot': tnc.optim.Kind.COVECTOR})`",
    )


def part_of(optimizer: torch.optim.Optimizer, group: Group | None) -> torch.optim.Optimizer:
    """Return the optimizer that steps a group: one of several in a `Together`, else itself."""
    ask = getattr(optimizer, "part_of", None)
    return ask(group) if callable(ask) else optimizer


def check_slots(
    optimizer: torch.optim.Optimizer, form: Form, parameter: nn.Parameter, name: str
) -> None:
    """Raise BindError for a slot that the form does not name."""
    for slot in optimizer.state.get(parameter, {}):
        if slot not in form.kinds and slot not in OURS:
            raise BindError(
                f"{type(optimizer).__name__} keeps {slot!r}, whose kind is not known",
                where=name,
                hint="name it in `tnc.optim.FORMS`: covector, diagonal, vector, scalar or opaque",
            )
