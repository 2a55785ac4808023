"""Each pass does what it says, where it may, and says so where it may not."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import tnc
from tests.compiled import halved, spec
from tests.unit.rewrite.test_manager import subject_of
from tests.zoo import case
from tnc.decide.pipeline import pipeline
from tnc.errors import PassError
from tnc.rewrite import Subject, run_passes
from tnc.rewrite.contract import outputs_of
from tnc.rewrite.subject import ties_of
from tnc.sources import evaluations


def run(subject: Subject, *texts: str) -> tuple[nn.Module, tuple[str, ...]]:
    """Run passes; the model, and the lines of the records."""
    outcome = run_passes(subject, pipeline(texts))
    return outcome.subject.model, tuple(e for r in outcome.records for e in r.edits)


def gap(a: nn.Module, b: nn.Module, x: torch.Tensor) -> float:
    first, second = outputs_of(a, ((x,), {}))[0], outputs_of(b, ((x,), {}))[0]
    return float((first - second).norm() / first.norm())


class Normalised(nn.Module):
    """A convolution and a linear layer, each followed by a batch norm with a history."""

    def __init__(self, affine: bool = True) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, affine=affine)
        self.fc, self.norm = nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4, affine=affine)
        for norm in (self.bn, self.norm):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            if affine:
                nn.init.normal_(norm.weight)
                nn.init.normal_(norm.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn(self.conv(x))).mean((2, 3))
        return self.norm(self.fc(x))


IMAGE = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norms_fold_into_convolutions_and_linear_layers(affine: bool) -> None:
    torch.manual_seed(0)
    model = Normalised(affine).eval()
    folded, told = run(subject_of(model, IMAGE), "fold-batch-norm")
    assert set(told) == {"folded bn into conv", "folded norm into fc"}
    assert type(folded.bn) is type(folded.norm) is nn.Identity
    assert folded.fc.bias is not None and model.fc.bias is None
    assert gap(model, folded, IMAGE) < 1e-6
    plain = copy.deepcopy(folded)
    plain.conv.bias.data += 0.1
    assert gap(model, plain, IMAGE) > 1e-3


def test_a_batch_norm_that_learns_is_left() -> None:
    model = Normalised().eval()
    model.bn.train()
    kept, told = run(subject_of(model, IMAGE), "fold-batch-norm")
    assert "left bn: it is in training mode and still updates its statistics" in told[0]
    assert type(kept.bn) is nn.BatchNorm2d and type(kept.norm) is nn.Identity


def test_a_batch_norm_after_a_tied_weight_is_left() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.bn, self.b = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.relu(self.bn(self.a(x))))

    kept, told = run(subject_of(Twice().eval(), torch.ones(3, 6)), "fold-batch-norm")
    assert told == ("left bn: the weight before it is tied (a.weight, b.weight)",)
    assert type(kept.bn) is nn.BatchNorm1d and kept.a.weight is kept.b.weight


def test_a_layer_that_a_hook_watches_is_neither_folded_nor_merged() -> None:
    model = Normalised().eval()
    model.conv.register_forward_hook(lambda *_: None)
    kept, told = run(subject_of(model, IMAGE), "fold-batch-norm")
    assert "left bn: a hook watches it or the layer before it" in told
    assert type(kept.bn) is nn.BatchNorm2d and type(kept.norm) is nn.Identity
    pair = nn.Sequential(nn.Linear(9, 2), nn.Linear(2, 3))
    pair[0].register_forward_pre_hook(lambda *_: None)
    kept, told = run(subject_of(pair, torch.ones(2, 9)), "merge-linear")
    assert told == ("left 0 and 1: a hook watches one",) and type(kept[1]) is nn.Linear


@pytest.mark.parametrize("biases", [(True, True), (True, False), (False, True), (False, False)])
def test_adjacent_linear_layers_merge_where_that_is_smaller(biases: tuple[bool, bool]) -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(9, 8, bias=biases[0]), nn.Linear(8, 3, bias=biases[1])
    model = nn.Sequential(first, second, nn.ReLU(), nn.Linear(3, 2), nn.Linear(2, 9))
    x = torch.randn(5, 9)
    merged, told = run(subject_of(model, x), "merge-linear")
    assert told[0] == "merged 1 into 0" and type(merged[1]) is nn.Identity
    assert merged[0].weight.shape == (3, 9) and (merged[0].bias is not None) == any(biases)
    assert told[1] == "left 3 and 4: the product has more parameters (27)"
    assert gap(model, merged, x) < 1e-6


def test_a_frozen_layer_is_not_merged_into_one_that_learns() -> None:
    model = nn.Sequential(nn.Linear(9, 8), nn.Linear(8, 3).requires_grad_(False))
    _, told = run(subject_of(model, torch.ones(2, 9)), "merge-linear")
    assert told == ("left 0 and 1: one is frozen and the other is not",)


def test_dead_modules_go_and_live_ones_stay() -> None:
    (ids,), _ = case("shared").inputs()
    model = case("shared").build()
    kept, told = run(subject_of(model, ids), "remove-dead")
    assert told == ("removed unused",) and not hasattr(kept, "unused")
    assert torch.equal(kept(ids), model(ids)) and hasattr(model, "unused")


def test_a_model_with_a_removed_module_is_saved_and_loaded(tmp_path) -> None:
    made = tnc.compile(case("shared").build(), spec(passes=("remove-dead", "factorize")),
                       example=case("shared").inputs())  # fmt: skip
    loaded = tnc.load(tnc.save(made, tmp_path / "a"), model=case("shared").build(1))
    (ids,), _ = case("shared").inputs()
    torch.testing.assert_close(loaded(ids), made.model(ids), rtol=1e-5, atol=1e-6)
    assert not hasattr(loaded, "unused")


def tied_subject() -> Subject:
    (ids,), _ = case("shared").inputs()
    return subject_of(case("shared").build(), ids)


def test_a_tie_that_was_cut_is_mended() -> None:
    subject = tied_subject()
    subject.model.head.weight = nn.Parameter(subject.model.table.weight.detach().clone())
    kept, told = run(subject, "keep-ties")
    assert kept.head.weight is kept.table.weight
    assert told == ("tied table.weight to head.weight again",) or told == (
        "tied head.weight to table.weight again",
    )
    assert ties_of(kept) == subject.ties and run(tied_subject(), "keep-ties")[1] == ("2 ties hold",)


def test_a_tie_whose_values_went_apart_is_refused() -> None:
    subject = tied_subject()
    subject.model.head.weight = nn.Parameter(subject.model.table.weight.detach() * 2)
    with pytest.raises(PassError, match="were tied and no longer hold the same values"):
        run(subject, "keep-ties")


def test_a_tie_that_was_half_rewritten_is_refused() -> None:
    subject = tied_subject()
    subject = replace(subject, ties=(("head.weight", "gone.weight"),))
    with pytest.raises(PassError, match=r"only some of the tied parameters .* were rewritten"):
        run(subject, "keep-ties")


@pytest.fixture(scope="module")
def shared() -> tnc.api.Compiled:
    rule = {"match": "*layer*", "op": "linear", "structure": "low-rank", "keep": 0.4}
    batches = [case("bert").inputs(seed)[1] for seed in range(6)]
    return tnc.compile(case("bert").build(), spec(rule, shares=True, metric="inputs"),
                       calibration=batches)  # fmt: skip


def test_queries_keys_and_values_share_one_factor(shared) -> None:
    for layer in shared.model.encoder.layer:
        inner = layer.attention.self
        assert inner.query.cores["A"] is inner.key.cores["A"] is inner.value.cores["A"]
        assert inner.query.cores["B"] is not inner.key.cores["B"]
        assert inner.query.cores["B"].shape[0] == 16
    groups = [entry for entry in shared.plan.entries if len(entry.members) > 1]
    assert len(groups) == 2 and all(len(entry.members) == 3 for entry in groups)
    counted = sum(p.numel() for p in shared.model.parameters())
    assert counted == shared.plan.total.params


def test_shared_factors_reach_the_promised_error(shared) -> None:
    rows: list[torch.Tensor] = []
    model = case("bert").build()
    inner = model.encoder.layer[0].attention.self.requires_grad_(False)
    inner.query.register_forward_pre_hook(lambda _, args: rows.append(args[0].flatten(0, -2)))
    for seed in range(6):
        outputs_of(model, case("bert").inputs(seed))
    entry = next(e for e in shared.plan.entries if "layer.0.attention.self.query" in e.site)
    first = copy.deepcopy(shared.model.encoder.layer[0].attention.self).requires_grad_(False)
    x, change, whole = torch.cat(rows), 0.0, 0.0
    x = x[torch.isfinite(x).all(1)]
    for name in ("query", "key", "value"):
        weight = getattr(inner, name).weight
        centred = x - x.mean(0)
        change += float((centred @ (weight - getattr(first, name).weight).T).square().sum())
        whole += float((centred @ weight.T).square().sum())
    found = (change / whole) ** 0.5
    assert found == pytest.approx(entry.relative, rel=0.25) and 0.05 < entry.relative < 0.9


def test_shared_factors_stay_shared_in_an_artifact(shared, tmp_path) -> None:
    loaded = tnc.load(tnc.save(shared, tmp_path / "a"), model=case("bert").build(1))
    inner = loaded.encoder.layer[1].attention.self
    assert inner.query.cores["A"] is inner.key.cores["A"] is inner.value.cores["A"]
    assert ties_of(loaded) == ties_of(shared.model)
    pair = [outputs_of(m, case("bert").inputs(9))[0] for m in (loaded, shared.model)]
    assert torch.equal(*pair)


def test_densify_as_a_pass_leaves_no_structure() -> None:
    made = halved("gpt2")
    subject = Subject(made.model, made.trace, made.probe, ties=ties_of(case("gpt2").build()))
    dense, told = run(subject, "densify")
    assert not [m for m in dense.modules() if isinstance(m, tnc.StructuredLayer)]
    assert len(told) >= len(made.reparams) and dense.lm_head.weight is dense.transformer.wte.weight
    assert [n for n, _ in dense.named_parameters()] == [
        n for n, _ in case("gpt2").build().named_parameters()
    ]


def distance(model: nn.Module, original: nn.Module, seeds: range) -> float:
    total = 0.0
    for seed in seeds:
        a, b = (outputs_of(m, case("bert").inputs(seed))[0] for m in (model, original))
        total += float((a - b).square().sum())
    return total


@pytest.mark.parametrize("metric", ["auto", "inputs"])
def test_a_sequential_refit_lowers_the_output_error(metric: str) -> None:
    rule = {"match": "*layer*", "op": "linear", "structure": "low-rank", "keep": 0.25}
    original, found = case("bert").build(), {}
    batches = [case("bert").inputs(seed)[1] for seed in range(8)]
    for text in ("factorize{refit=0.0}", "factorize{refit=0.3}"):
        made = tnc.compile(original, spec(rule, metric=metric, passes=("find-sites", text)),
                           calibration=batches, evaluation=evaluations.get("output")())  # fmt: skip
        found[text] = distance(made.model, original, range(8))
    assert found["factorize{refit=0.3}"] <= found["factorize{refit=0.0}"]
    assert found["factorize{refit=0.3}"] > 0


CONVOLUTIONS = {
    "1d": (nn.Conv1d, (40,), ({}, {"stride": 2}, {})),
    "2d": (nn.Conv2d, (10, 10), ({}, {"stride": 2}, {})),
    "transposed": (nn.ConvTranspose2d, (6, 6), ({}, {"stride": 2, "output_padding": 1}, {})),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions_are_refitted_on_their_patches(kind: str) -> None:
    torch.manual_seed(0)
    layer, size, options = CONVOLUTIONS[kind]
    layers = [layer(3, 12, 3, padding=1), nn.ReLU()]
    for more in options:
        layers += [layer(12, 12, 3, padding=1, **more), nn.ReLU()]
    original = nn.Sequential(*layers).eval()
    mixing = torch.randn(3, 3)  # colours of a picture are correlated
    batches = [torch.einsum("oi,bi...->bo...", mixing, torch.randn(8, 3, *size)) for _ in range(6)]
    rule, found = {"match": "*", "structure": "tucker", "keep": 0.3}, []
    for text in ("factorize{refit=0.0}", "factorize{refit=0.3}"):
        made = tnc.compile(original, spec(rule, metric="inputs", passes=("find-sites", text)),
                           calibration=batches[:4])  # fmt: skip
        found.append(sum(gap(original, made.model, x) for x in batches[4:]))
        told = [line for record in made.records for line in record.edits]
        assert not [line for line in told if "no sequential refit" in line]
        unmoved = [line for line in told if "no refit" in line]
        assert len(unmoved) <= 1  # before the first layer nothing has changed
    assert found[1] < 0.98 * found[0]


def test_layers_that_get_their_input_by_name_are_refitted() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(12, 12), nn.Linear(12, 12)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(input=torch.relu(self.a(input=x)))

    rule = {"match": "*", "structure": "low-rank", "keep": 0.5}
    made = tnc.compile(Named().eval(), spec(rule, metric="inputs"),
                       calibration=[torch.randn(32, 12) for _ in range(4)])  # fmt: skip
    assert len([m for m in made.model.modules() if isinstance(m, tnc.StructuredLayer)]) == 2


def test_a_refit_leaves_the_mode_and_inputs_written_in_place() -> None:
    class Residual(nn.Module):
        def __init__(self, in_place: bool) -> None:
            super().__init__()
            self.a, self.b, self.in_place = nn.Linear(12, 12), nn.Linear(12, 12), in_place

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x * 1.0
            y = self.b(torch.relu(self.a(x)))
            return x.add_(y) if self.in_place else x + y

    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(16, 12, generator=generator),) for _ in range(3)]
    found = []
    for in_place in (False, True):
        torch.manual_seed(0)
        model = Residual(in_place).train()
        rule = {"match": "*", "structure": "low-rank", "keep": 0.4}
        made = tnc.compile(model, spec(rule, metric="inputs"), calibration=batches)
        assert made.model.training and made.model.a.training
        found.append(outputs_of(made.model, (batches[0], {}))[0])
    assert torch.equal(*found)


def test_a_bias_of_two_layers_is_nobody_s_to_shift() -> None:
    class TwoReaders(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(12, 12), nn.Linear(12, 12)
            self.b.bias = self.a.bias

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.relu(self.a(x)))

    torch.manual_seed(0)
    model, batches = TwoReaders(), [(torch.randn(16, 12) + 2,) for _ in range(3)]
    rule = {"match": "*", "structure": "low-rank", "keep": 0.5}
    for text in ("factorize{refit=0.0}", "factorize{refit=0.3}"):
        wish = spec(rule, metric="inputs", passes=("find-sites", text, "keep-ties"))
        made = tnc.compile(model, wish, calibration=batches).model
        assert made.a.bias is made.b.bias and torch.equal(made.a.bias, model.a.bias)
        assert gap(model, made, batches[0][0]) < 0.5


class Odd(nn.Module):
    """A layer that runs twice, and a transposed convolution: no plain layer's moments."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.mix = nn.ConvTranspose2d(4, 6, 3, padding=1), nn.Linear(6, 6)
        self.into = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(torch.relu(self.into(x))).mean((2, 3))
        return self.mix(torch.tanh(self.mix(x)))


def test_layers_that_run_twice_and_transposed_convolutions_are_compiled_with_data() -> None:
    torch.manual_seed(0)
    model = Odd().eval()
    batches = [torch.randn(5, 3, 6, 6) for _ in range(4)]
    rules = [{"match": "*", "structure": "low-rank", "keep": 0.8}]
    made = tnc.compile(model, tnc.Spec(version=1, round_to=1, rules=rules), calibration=batches)
    assert len(made.plan.entries) == 3
    told = [line for record in made.records for line in record.edits]
    assert "mix.weight: no sequential refit, it is not one plain layer" in told
    assert not any("into.weight: no sequential refit" in line for line in told)
