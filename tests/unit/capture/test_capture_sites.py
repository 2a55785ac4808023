"""Sites: every weight of every model of the zoo is accounted for, with its uses."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests import zoo
from tnc.capture import Trace, capture
from tnc.errors import CaptureError
from tnc.net import Signature

CASES = {case.name: case for case in zoo.CASES}


def _trace(name: str) -> Trace:
    args, kwargs = CASES[name].inputs()
    return capture(CASES[name].build(), args, kwargs, graph=False)


@pytest.mark.parametrize("case", zoo.CASES, ids=lambda case: case.name)
def test_every_weight_is_a_site_or_has_a_reason(case: zoo.Case) -> None:
    model = case.build()
    args, kwargs = case.inputs()
    trace = capture(model, args, kwargs, graph=False)
    named = {alias for site in trace.sites for alias in site.aliases}
    left = dict(trace.untraced)
    assert not named & set(left) and all(left.values())
    weights = {n for n, p in model.named_parameters() if p.dim() >= 2}
    assert weights <= named | set(left)
    for path, module in model.named_modules():
        if type(module) in (nn.Linear, nn.Conv2d, nn.Embedding):
            reached = left.get(f"{path}.weight", "") != "not reached by the example input"
            assert (f"{path}.weight" in named) == reached
    for site in trace.sites:
        shape = tuple(model.get_parameter(site.name).shape)
        o, i, *kernel = site.signature.shape
        assert shape == ((i, o, *kernel) if site.transposed else (o, i, *kernel))
        assert all(use.rows > 0 for use in site.uses)


@pytest.mark.parametrize("case", zoo.CASES, ids=lambda case: case.name)
def test_the_model_is_as_before(case: zoo.Case) -> None:
    model = case.build().train()
    next(iter(model.modules())).training = False
    modes = [module.training for module in model.modules()]
    held = [dict(vars(module)) for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    random = torch.get_rng_state()
    args, kwargs = case.inputs()
    capture(model, args, kwargs)
    assert modes == [module.training for module in model.modules()]
    assert [list(h) for h in held] == [list(vars(module)) for module in model.modules()]
    assert all(torch.equal(state[name], t) for name, t in model.state_dict().items())
    assert flags == [p.requires_grad for p in model.parameters()]
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())


def test_row_counts_of_a_layer_called_twice_add_up() -> None:
    site = _trace("shared").site("block.weight")
    assert [(use.module, use.rows) for use in site.uses] == [("block", 2 * 10)]
    assert site.uses[0].reads.count("+") == 1


def test_ties_are_one_site_with_all_names_and_uses() -> None:
    trace = _trace("shared")
    assert trace.site("again.weight") is trace.site("tied.weight")
    assert [use.module for use in trace.site("tied.weight").uses] == ["tied", "again"]
    table = trace.site("head.weight")
    assert table.aliases == ("table.weight", "head.weight")
    assert [use.op for use in table.uses] == ["embedding", "linear"]
    assert table.op == "linear" and table.signature.shape == (30, 12)
    assert not trace.site("frozen.weight").trainable
    assert _trace("gpt2").site("lm_head.weight").name == "transformer.wte.weight"


def test_hugging_face_conv1d_is_stored_inputs_first() -> None:
    site = _trace("gpt2").site("transformer.h.0.attn.c_attn.weight")
    assert site.transposed and str(site.signature) == "48 <- 16" and site.biased
    assert site.uses[0].view == "module"


def test_functional_weights() -> None:
    trace = _trace("functional")
    assert [site.name for site in trace.sites] == ["kernel", "right", "summed", "table", "w"]
    assert all(use.view == "parameter" for site in trace.sites for use in site.uses)
    assert trace.site("right").transposed and not trace.site("summed").transposed
    assert dict(trace.site("kernel").options)["padding"] == (1, 1)
    assert dict(trace.untraced) == {
        "heads": "never read by a supported operation: "
        "a weight of 3 dimensions in a matrix product",
        "scale": "never read by a supported operation: read by aten.mul",
    }


def test_attention_reads_its_projections_itself() -> None:
    trace = _trace("attention")
    for name in ("attention.in_proj_weight", "attention.out_proj.weight"):
        assert [use.view for use in trace.site(name).uses] == ["parameter"]
        assert trace.site(name).biased
    packed = _trace("seq2seq").site("decoder.layers.0.multihead_attn.in_proj_weight")
    assert packed.work.rows == 11  # 1/3 of it sees 4 x 2 queries, 2/3 see 6 x 2 keys: 10.67


def test_convolution_options() -> None:
    trace = _trace("convolutions")
    assert trace.site("grouped.weight").groups == 4 and not trace.site("grouped.weight").rebuilt
    options = dict(trace.site("dilated.weight").options)
    assert options == {
        "dilation": (2, 2),
        "padding": (2, 2),
        "padding_mode": "reflect",
        "stride": (1, 1),
    }
    strided = trace.site("strided.weight").uses[0]
    assert (strided.rows, strided.rows_in) == (2 * 4 * 8, 2 * 8 * 8)
    assert not trace.untraced
    up = trace.site("up.weight")
    assert up.transposed and up.signature == Signature((4,), (6, 2, 2))
    assert trace.site("line.weight").signature == Signature((4,), (4, 3))
    assert trace.site("solid.weight").signature == Signature((2,), (1, 2, 3, 3))


def test_recurrent_weights_are_sites_of_stacked_gates() -> None:
    trace = _trace("tagger")
    inputs, hidden = trace.site("lstm.weight_ih_l0"), trace.site("lstm.weight_hh_l0")
    assert inputs.signature == hidden.signature == Signature((32,), (8,))
    assert inputs.rebuilt and hidden.rebuilt and inputs.biased and hidden.biased
    assert inputs.work.rows == hidden.work.rows == 10
    assert not trace.untraced
    assert torch.backends.mkldnn.enabled
    assert {site.name for site in _trace("recurrent").sites} >= {
        "lstm.weight_hr_l1_reverse",
        "gru.weight_ih_l0",
        "rnn.weight_hh_l0",
    }


class Strange(nn.Module):
    """Weights that must be refused, each for a reason of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.normed = nn.Embedding(6, 4, max_norm=0.1)
        self.parametrised = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.both = nn.Parameter(torch.randn(4, 4))
        self.u, self.v = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.randn(2, 4))
        self.part = nn.Parameter(torch.randn(4, 4))
        self.watched = nn.Linear(4, 4)
        self.query, self.key = nn.Parameter(torch.randn(3, 4)), nn.Linear(4, 4)
        self.packed = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
        self.register_buffer("calls", torch.zeros(()))
        self.count = 0

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.count += 1
        x = self.parametrised(self.normed(ids)) @ self.both @ self.both.T
        x = x @ (self.u @ self.v) + functional.linear(x[:, :2], self.part[:, :2])
        return self.watched(x) + self.watched.weight.norm() + self.key(self.query).sum()


def test_strange_weights_are_refused_with_reasons_and_left_alone() -> None:
    model = Strange()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trace = capture(model, (torch.tensor([0, 1, 5]),), graph=False)
    assert [site.name for site in trace.sites] == ["key.weight"]
    left = dict(trace.untraced)
    assert "max_norm" in left["normed.weight"]
    assert "parametrized" in left["parametrised.parametrizations.weight.original0"]
    assert "both directions" in left["both"]
    assert "read by aten.mm" in left["u"] and "read by aten.mm" in left["v"]
    assert "only some of its inputs" in left["part"]
    assert "besides its linear use" in left["watched.weight"]
    assert "used as data" in left["query"]
    assert "int8" in left["packed"]
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert model.count == 0


def test_mixed_precision_and_inference_mode_show_the_same_sites() -> None:
    model, x = CASES["prime"].build(), torch.randn(5, 17)
    plain = capture(model, (x,), graph=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert capture(model, (x,), graph=False).sites == plain.sites
    with torch.inference_mode():
        assert capture(model, (x,), graph=False).sites == plain.sites
    meta = model.to("meta")
    assert capture(meta, (x.to("meta"),), graph=False).sites == plain.sites


def test_overlapping_memory_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight.data = model[0].weight.data.t()
    trace = capture(model, (torch.ones(2, 4),), graph=False)
    assert not trace.sites
    assert "shares memory with 1.weight" in dict(trace.untraced)["0.weight"]


def test_parameters_on_the_same_memory_are_tied() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight.data = model[0].weight.data
    (site,) = capture(model, (torch.ones(2, 4),), graph=False).sites
    assert site.aliases == ("0.weight", "1.weight")


def test_a_failing_forward_names_the_module() -> None:
    with pytest.raises(CaptureError, match="cannot be multiplied") as caught:
        capture(nn.Sequential(nn.ReLU(), nn.Linear(3, 2)), (torch.ones(1, 4),))
    assert caught.value.where == "module '1'"
    with pytest.raises(CaptureError, match="not initialised"):
        capture(nn.LazyLinear(3), (torch.ones(1, 4),))
    with pytest.raises(CaptureError, match="no site: the model has no such parameter"):
        _trace("prime").site("nonsense")
