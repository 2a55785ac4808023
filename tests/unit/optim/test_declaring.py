"""Options that a class declares: inheritance, signatures, what is refused and how."""

from __future__ import annotations

import inspect
import re
from typing import Annotated, Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn

from tnc.errors import BindError, SpecError
from tnc.optim import build
from tnc.optim.declaring import Declared, argument, option
from tnc.optim.options import Betas, Count, NonNegative, Positive, Range, Share, misfit
from tnc.optim.rule import Rule, rules


class Walker(Declared):
    here: ClassVar[int] = 1
    model: Any = argument(kw_only=False)
    lr: NonNegative = 1e-3
    beta: Share = 0.9


class Runner(Walker):
    loss: Literal["a", "b"] = option(kw_only=False)
    lr = 1e-2
    rank: Count | None = None


class Both(Runner, Walker):
    beta = 0.5


def test_a_subclass_has_the_options_of_its_bases_and_changes_defaults() -> None:
    assert [*Runner.options()] == ["lr", "beta", "loss", "rank"]
    assert (Runner.options()["lr"].default, Walker.options()["lr"].default) == (1e-2, 1e-3)
    assert (Both.options()["lr"].default, Both.options()["beta"].default) == (1e-2, 0.5)
    assert not hasattr(Runner, "lr"), "values are of groups, not of the class"
    assert Runner.here == 1


def test_what_a_call_gives() -> None:
    arguments, options = Runner.taken((3, "a"), {"rank": 2})
    assert arguments == {"model": 3}
    assert options == {"lr": 1e-2, "beta": 0.9, "loss": "a", "rank": 2}
    assert "loss" not in Runner.taken((3,), {})[1], "groups may have it"
    for places, given, told in (
        ((), {}, "missing the argument 'model'"),
        ((1, "a", 2), {}, "takes model, loss by place, not 3"),
        ((1,), {"model": 2}, "given 'model' twice"),
        ((1,), {"rnk": 2}, "no option 'rnk'; did you mean 'rank'"),
    ):
        with pytest.raises(TypeError, match=re.escape(told)):
            Runner.taken(places, given)


@pytest.mark.parametrize(
    ("value", "hint", "told"),
    [
        (0.5, Share, ""),
        (torch.tensor(0.5), Share, ""),
        (float("nan"), Share, "give 0 or more, 1 at most"),
        ("0.5", Share, "give 0 or more, 1 at most"),
        ((0.9, 0.99), Betas, ""),
        ([0.9, 0.99], Betas, ""),
        ((0.9,), Betas, "give 2 values"),
        (0, Positive, "give more than 0"),
        (0, Count, "give a whole number from 1"),
        (True, Count, "give a whole number from 1"),
        (2.0, Count, "give a whole number from 1"),
        (9, Annotated[int, Range(1, 8)], "give a whole number from 1 to 8"),
        (None, Count | None, ""),
        ("c", Literal["a", "b"], "give 'a' or 'b'"),
        (["a"], Literal["a", "b"], "give 'a' or 'b'"),
        (1, bool, ""),
        ("yes", bool, "give True or False"),
        (2, str, "give a str"),
    ],
)
def test_what_fits_a_type(value: object, hint: object, told: str) -> None:
    assert misfit(value, hint) == told


def test_a_wrong_declaration_is_refused_where_it_is_written() -> None:
    with pytest.raises(TypeError, match="the type of size, Nowhere, cannot be read"):

        class Lost(Declared):
            size: Nowhere = 1  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(TypeError, match="lr = -1: give 0 or more"):

        class Backwards(Walker):
            lr = -1

    with pytest.raises(TypeError, match="beta = <function"):

        class Method(Walker):
            def beta(self) -> None: ...  # type: ignore[override,assignment]

    with pytest.raises(TypeError, match="'step', which every optimizer has"):

        class Taken(Rule):
            step: Count = 1  # type: ignore[assignment]


def test_a_rule_of_another_package_needs_no_more_than_its_class() -> None:
    class Signed(Rule):
        kinds: ClassVar[Any] = {}
        lr = 0.1
        power: Share = 1.0
        sign: Literal["plus", "minus"] = option()

        def start(self, weight: Tensor, group: Any) -> dict[str, Any]:
            return {}

        def update(self, weight: Tensor, gradient: Tensor, state: Any, group: Any) -> None:
            weight.add_(gradient.sign(), alpha=-group["lr"] * group["power"])

        def state_bytes(self, shape: tuple[int, ...], group: Any) -> int:
            return 0

    told = str(inspect.signature(Signed))
    assert "lr: float = 0.1, weight_decay: float = 0.0, power: float = 1.0" in told
    known = dict(rules._things)
    try:
        rules.register("signed-here")(Signed)
        made = build(nn.Linear(2, 2), "signed-here{power=0.5, sign=plus}")
        assert made.param_groups[0]["sign"] == "plus"
        for text, told in (
            ("signed-here{power=2.0, sign=plus}", "power is 2.0; give 0 or more, 1 at most"),
            ("signed-here", "missing key 'sign'|sign is not given"),
            ("signed-here{sign=both}", "expected 'plus' or 'minus'"),
            ("signed-here{pwer=1, sign=plus}", "did you mean 'power'"),
        ):
            with pytest.raises((SpecError, BindError)) as caught:
                build(nn.Linear(2, 2), text)
            assert re.search(told, str(caught.value)), str(caught.value)
    finally:
        rules._things.clear()
        rules._things.update(known)
    weight = nn.Parameter(torch.zeros(2))
    with pytest.raises(BindError, match="sign is not given"):
        Signed([weight])
    with pytest.raises(BindError, match="power is 3"):
        Signed([{"params": [weight], "power": 3}], sign="plus")
