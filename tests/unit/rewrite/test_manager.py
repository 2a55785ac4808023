"""The pass manager: what is broken is named, and the last good model handed back."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from tests.compiled import halved
from tests.zoo import case
from tnc.api import trace
from tnc.errors import PassError
from tnc.net import Structure, parse_network
from tnc.rewrite import Analysis, Approximate, Exact, Pass, Reparam, Subject, ZeroDelta, run_passes
from tnc.rewrite.contract import outputs_of
from tnc.rewrite.manager import BrokenContract
from tnc.rewrite.subject import ties_of


def subject_of(model: nn.Module, *args: object, **kwargs: object) -> Subject:
    return Subject(
        model, trace(model, *args, **kwargs), (args, kwargs), ties=ties_of(model)
    )  # fmt: skip


@pytest.fixture
def subject() -> Subject:
    args, kwargs = case("prime").inputs()
    return subject_of(case("prime").build(), *args, **kwargs)


@dataclass(frozen=True)
class Scale(Pass):
    """Multiply the first weight, and say so where it is asked for."""

    by: float = 1.0
    residual: float | None = None

    def apply(self, subject: Subject) -> Subject:
        with torch.no_grad():
            subject.model[0].weight.mul_(self.by)
        if self.residual is None:
            return subject.edited("scaled 0")
        line = "B[o r] A[r i] : i -> o | i=17 o=31 r=1"
        told = Reparam(("0.weight",), Structure.of(parse_network(line)), (("A", "0.weight"),),
                       False, self.residual, 0.1, 0.1, "svd")  # fmt: skip
        return subject.edited("scaled 0", reparams=(*subject.reparams, told))


def promising(contract: object, **options: float) -> Pass:
    kind = dataclass(frozen=True)(type("Promising", (Scale,), {"contract": contract}))
    return kind(**options)


HONEST = promising(Exact(), by=1.0)
BROKEN = [
    ("exact", promising(Exact(1e-4), by=1.01), r"output 0 changed by 0\.\d+ .*allowed is 0\.0001"),
    ("zero-delta", promising(ZeroDelta(), by=1.001), "output 0 changed by"),
    ("analysis", promising(Analysis(), by=1.001), "the outputs changed"),
    ("approximate", promising(Approximate(), residual=0.2), "0.weight: relative error 0.2, the "
     "plan promised 0.1"),
    ("finite", promising(Approximate(), by=float("inf"), residual=0.1), "output 0 is no longer"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "step", "reason"), BROKEN, ids=[row[0] for row in BROKEN])
def test_a_broken_promise_names_the_pass_and_the_clause(name, step, reason, subject) -> None:
    before = outputs_of(subject.model, subject.probe)
    state = {key: value.clone() for key, value in subject.model.state_dict().items()}
    with pytest.raises(BrokenContract, match=reason) as caught:
        run_passes(subject, [("honest", HONEST), (name, step), ("never", HONEST)])
    error = caught.value
    assert f"pass {name} broke its contract {type(step.contract).__name__}" in error.message
    assert f"pass {name}" in error.where and "drop it" in error.hint
    assert all(torch.equal(state[key], v) for key, v in subject.model.state_dict().items())
    assert error.last_good is not None and error.last_good.edits == ("scaled 0",)
    assert torch.equal(outputs_of(error.last_good.model, subject.probe)[0], before[0])


@pytest.mark.parametrize("step", [
    promising(Exact(), by=1.0), promising(Exact(0.5), by=1.01), promising(ZeroDelta(), by=1.0),
    promising(Analysis(), by=1.0), promising(Approximate(), by=1.5, residual=0.105),
])  # fmt: skip
def test_a_kept_promise_passes_and_is_recorded(step: Pass, subject: Subject) -> None:
    outcome = run_passes(subject, [("kept", step)])
    (record,) = outcome.records
    count = sum(p.numel() for p in subject.model.parameters())
    assert (record.name, record.edits) == ("kept", ("scaled 0",))
    assert record.params_before == record.params_after == count and record.seconds > 0
    assert outcome.subject.model is not subject.model


def test_an_error_inside_of_a_pass_says_which(subject: Subject) -> None:
    class Fails(Pass):
        contract = Exact()

        def apply(self, subject: Subject) -> Subject:
            raise PassError("no luck", where="site a")

    with pytest.raises(PassError, match="no luck") as caught:
        run_passes(subject, [("fails", Fails())])
    assert caught.value.where == "site a, pass fails"


def test_rounding_of_half_precision_is_no_breach() -> None:
    args, kwargs = case("half").inputs()
    subject = subject_of(case("half").build(), *args, **kwargs)
    run_passes(subject, [("tiny", promising(Exact(0.0), by=1.004))])
    with pytest.raises(BrokenContract, match="allowed is 0"):
        run_passes(subject, [("large", promising(Exact(0.0), by=2.0))])


def test_every_reparam_is_a_true_account() -> None:
    for name in ("bert", "gpt2", "resnet20", "attention", "functional", "shared"):
        made, state = halved(name), halved(name).model.state_dict()
        originals = dict(case(name).build().named_parameters(remove_duplicate=False))
        assert made.reparams
        for reparam in made.reparams:
            assert all(old in originals and old not in state for old in reparam.old)
            assert {core: tuple(state[at].shape) for core, at in reparam.new} == (
                reparam.structure.shapes
            )
            assert reparam.residual <= reparam.promised * 1.01 + 1e-5
        assert sorted(r.old[0] for r in made.reparams) == sorted(
            member for e in made.plan.entries if e.structure for member in e.members
        )


def test_a_reparam_s_residual_is_what_a_naive_rebuild_finds() -> None:
    made, original = halved("prime"), dict(case("prime").build().named_parameters())
    state = made.model.state_dict()
    for reparam in made.reparams:
        cores = {core: state[at] for core, at in reparam.new}
        dense, weight = cores["B"] @ cores["A"], original[reparam.old[0]].detach()
        gap = float((dense - weight).norm() / weight.norm())
        assert reparam.residual == pytest.approx(gap, rel=1e-4)
        assert reparam.plain == pytest.approx(gap, rel=1e-4)
    doubled = replace(made.reparams[0], residual=2 * made.reparams[0].residual)
    assert doubled.residual > 1.01 * doubled.promised, "the account of the test above can be false"
