"""Fourier neural operators: complex weights captured, planned, fitted, saved, trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tnc
from tests.compiled import spec
from tnc.capture import capture
from tnc.decide.group import Group
from tnc.decide.target import Target
from tnc.errors import ArtifactError, PlanError, TncError
from tnc.planner.timing import layer_seconds
from tnc.structures import families

WIDTH, MODES = 6, 4


class Fourier(nn.Module):
    """One corner of the spectrum; `letters` are the stored axes of its weight."""

    def __init__(self, letters: str = "ioxy", dtype: torch.dtype = torch.complex64) -> None:
        super().__init__()
        self.letters = letters
        sizes = {"i": WIDTH, "o": WIDTH, "x": MODES, "y": MODES - 1}
        shape = [sizes[letter] for letter in letters]
        self.weights = nn.Parameter(torch.randn(shape, dtype=dtype) / WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x)
        kept = spectrum[:, :, :MODES, : MODES - 1]
        out = torch.zeros_like(spectrum)
        out[:, :, :MODES, : MODES - 1] = torch.einsum(
            f"bixy,{self.letters}->boxy", kept, self.weights
        )
        return torch.fft.irfft2(out, s=x.shape[2:])


class Corners(nn.Module):
    """The layer of Li et al. (2021): two corners of the spectrum."""

    def __init__(self) -> None:
        super().__init__()
        shape = (WIDTH, WIDTH, MODES, MODES)
        self.weights1 = nn.Parameter(torch.randn(shape, dtype=torch.complex64) / WIDTH)
        self.weights2 = nn.Parameter(torch.randn(shape, dtype=torch.complex64) / WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        spectrum, m = torch.fft.rfft2(x), MODES
        out = torch.zeros_like(spectrum)
        rule = "bixy,ioxy->boxy"
        out[:, :, :m, :m] = torch.einsum(rule, spectrum[:, :, :m, :m], self.weights1)
        out[:, :, -m:, :m] = torch.einsum(rule, spectrum[:, :, -m:, :m], self.weights2)
        return torch.fft.irfft2(out, s=x.shape[2:])


class RealPairs(nn.Module):
    """Complex numbers kept as pairs of real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(WIDTH, WIDTH, MODES, MODES, 2))

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.fft.rfft2(x)[:, :, :MODES, :MODES]
        found = torch.einsum("bixy,ioxy->boxy", kept, torch.view_as_complex(self.weights))
        return torch.fft.irfft2(found, s=x.shape[2:])


class FNO(nn.Module):
    """Two Fourier layers between pointwise maps, residual and with GELU between them."""

    def __init__(self, kind: type[nn.Module] = Corners) -> None:
        super().__init__()
        self.lift = nn.Conv2d(1, WIDTH, 1)
        self.layers = nn.ModuleList(kind() for _ in range(2))
        self.skips = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 1) for _ in range(2))
        self.drop = nn.Conv2d(WIDTH, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        for layer, skip in zip(self.layers, self.skips):
            x = nn.functional.gelu(layer(x) + skip(x))
        return self.drop(x)


@pytest.fixture(scope="module")
def model() -> FNO:
    torch.manual_seed(0)
    return FNO().eval()


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(3, 1, 12, 12, generator=torch.Generator().manual_seed(1))


def compiled(model: nn.Module, x: Tensor, *rules: dict, **more):
    return tnc.compile(model, spec(*rules, **more), example=x)


@pytest.mark.parametrize("letters", ["ioxy", "oixy", "xyio", "xoyi", "iyox"])
def test_capture_reads_a_map_for_every_mode_however_it_is_stored(letters: str) -> None:
    torch.manual_seed(0)
    layer = Fourier(letters)
    data = torch.randn(5, WIDTH, 8, 8)
    (site,) = capture(layer, (data,), graph=False).sites
    assert (site.op, site.dtype, site.work.rows, site.rebuilt) == ("spectral", "complex64", 5, True)
    modes = [axis for axis in letters if axis in "xy"]
    assert [letters[axis] for axis in site.order] == ["o", "i", *modes]
    assert site.signature.shape == layer.weights.permute(site.order).shape
    made = compiled(
        layer, data, {"match": "*", "op": "spectral", "structure": "tucker", "ranks": "full"}
    )
    assert torch.allclose(made.model(data), layer(data), atol=1e-5)
    assert made.model.weights.shape == layer.weights.shape
    assert torch.equal(tnc.densify(made.model).weights.detach(), made.model.weights.detach())


@pytest.mark.parametrize("name", ["low-rank", "tucker", "tucker{spatial=true}", "tensor-train"])
def test_full_rank_is_the_dense_operator(model: FNO, x: Tensor, name: str) -> None:
    rule = {"match": "layers.*", "structure": name, "ranks": "full"}
    made = compiled(model, x, rule)
    assert float((made.model(x) - model(x)).detach().norm() / model(x).detach().norm()) < 1e-5
    entries = [e for e in made.plan.entries if e.structure]
    assert len(entries) == 4 and all("rebuilt at each call" in e.reason for e in entries)


@pytest.mark.parametrize("name", ["low-rank", "tucker{spatial=true}", "cp", "tensor-train"])
def test_planned_saved_reloaded_densified(model: FNO, x: Tensor, name: str, tmp_path: Path) -> None:
    rule = {"match": "layers.*", "structure": name}
    budget = {"params": 0.5, "scope": "layers.*"}
    made = compiled(model, x, rule, budget=budget, allocate="surrogate")
    held = sum(p.numel() for p in made.model.layers.parameters())
    dense = sum(p.numel() for p in model.layers.parameters())
    assert held == made.plan.scope.params <= 0.5 * dense == 0.5 * made.plan.scope.dense_params
    assert all(p.is_complex() for p in made.model.layers.parameters())
    tnc.save(made, tmp_path / "out")
    again = tnc.load(tmp_path / "out", model=FNO())
    assert torch.equal(again(x), made.model(x))
    assert tnc.verify(tmp_path / "out", model=FNO()).ok
    dense_model = tnc.densify(again)
    assert isinstance(dense_model.layers[0].weights1, nn.Parameter)
    assert torch.allclose(dense_model(x), made.model(x), atol=1e-6)


def test_exports(model: FNO, x: Tensor, tmp_path: Path) -> None:
    made = compiled(model, x, {"match": "layers.*", "structure": "tucker", "keep": 0.5})
    tnc.save(made, tmp_path / "out")
    tnc.export(tmp_path / "out", "dense", tmp_path / "dense.safetensors", model=FNO())
    tnc.export(tmp_path / "out", "torch-export", tmp_path / "fno.pt2", model=FNO())
    program = torch.export.load(tmp_path / "fno.pt2")
    assert torch.allclose(program.module()(x), made.model(x), atol=1e-5)


@pytest.mark.parametrize("name", ["low-rank", "tucker{spatial=true}", "cp", "tensor-train"])
def test_gradients_of_every_core_are_those_of_the_dense_einsum(x: Tensor, name: str) -> None:
    torch.manual_seed(0)
    layer = Fourier(dtype=torch.complex128)
    data = torch.randn(2, WIDTH, 8, 8, dtype=torch.float64)
    made = compiled(layer, data, {"match": "*", "structure": name, "keep": 0.6}).model
    made(data).pow(3).sum().backward()
    dense = Fourier(dtype=torch.complex128)
    dense.weights.data = made.weights.detach().clone()
    dense(data).pow(3).sum().backward()
    held = made.weights_structure
    for core_name, core in held.cores.items():
        cores = {n: c.detach() for n, c in held.cores.items()}

        def weight(value: Tensor, core_name: str = core_name, cores: dict = cores) -> Tensor:
            whole = tnc.fit.reconstruct(held.structure, {**cores, core_name: value})
            return held.view.layout(whole)

        _, pulled = torch.autograd.functional.vjp(weight, core.detach(), dense.weights.grad)
        assert torch.allclose(core.grad, pulled, rtol=1e-9, atol=1e-12), core_name
        step = 1e-6  # and by differences, along a real and an imaginary direction
        for direction in (1.0, 1.0j):
            moved = []
            for sign in (1, -1):
                dense.weights.data = weight(core.detach() + sign * step * direction)
                moved.append(float(dense(data).detach().pow(3).sum()))
            slope = (moved[0] - moved[1]) / (2 * step)
            found = float((core.grad.conj() * direction).real.sum())
            assert found == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_the_energy_of_the_inputs_weighs_modes() -> None:
    torch.manual_seed(0)
    layer = Fourier()
    smooth = torch.randn(64, WIDTH, 3, 3)
    smooth = nn.functional.interpolate(smooth, size=(16, 16), mode="bicubic")
    rule = {"match": "*", "structure": "tucker{spatial=true}", "keep": 0.6}
    errors = []
    for metric in ("none", "inputs"):
        chosen = spec(rule, metric=metric)
        made = tnc.compile(layer, chosen, calibration=[smooth[:32], smooth[32:]])
        errors.append(float((made.model(smooth) - layer(smooth)).norm().detach()))
    assert errors[1] < 0.8 * errors[0]
    assert any("E|x|^2" in note for note in made.plan.notes)


def test_a_complex_linear_layer_with_data_is_fitted_in_the_plain_norm() -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(8, 8, dtype=torch.complex64))
    batches = [torch.randn(16, 8, dtype=torch.complex64) for _ in range(2)]
    rule = {"match": "*", "structure": "low-rank", "ranks": {"r": 8}}
    made = tnc.compile(layer, spec(rule, metric="auto"), calibration=batches)
    assert torch.allclose(made.model(batches[0]), layer(batches[0]), atol=1e-5)
    assert any("plain norm" in note for note in made.plan.notes)
    assert {e.metric for e in made.plan.entries} == {"none"}


def test_a_spectral_weight_is_timed_as_its_code_runs(model: FNO, x: Tensor) -> None:
    chosen = spec({"match": "layers.*", "structure": "tucker", "keep": 0.5})
    site = next(s for s in capture(model, (x,), graph=False).sites if s.op == "spectral")
    target = Target(Group((site,)), chosen.rules[0], "rules[0]")
    structure = families.get("tucker")().template(site.signature).full()
    assert layer_seconds(target, None) > 0 and layer_seconds(target, structure) > 0
    assert site.cost.flops == 8 * 3 * WIDTH**2 * MODES**2  # 4 multiply-adds a complex one
    assert site.cost.bytes == 8 * site.cost.params == 8 * WIDTH**2 * MODES**2


@pytest.mark.parametrize("family", ["tucker", "free"])
def test_joint_weights_of_all_layers_share_their_cores(
    model: FNO, x: Tensor, family: str, tmp_path: Path
) -> None:
    equation = "P[l a] G[a b r h w] U[o b] V[r i] : i h w -> l o"
    structure = {"kind": "free-form", "equation": equation}
    shared = ("G", "U", "V")
    if family == "tucker":
        structure, shared = (
            {"kind": "stacked", "of": "tucker", "shared": ["U1", "V1"]},
            ("U1", "V1"),
        )
    rule = {"match": "layers.*", "structure": structure, "keep": 0.6, "joint": "all"}
    made = compiled(model, x, rule)
    (entry,) = [e for e in made.plan.entries if e.structure]
    assert len(entry.members) == 4 and "one tensor" in entry.reason
    assert "rebuilt at each call" in entry.reason
    assert sum(p.numel() for p in made.model.layers.parameters()) == entry.params
    tnc.save(made, tmp_path / "out")
    again = tnc.load(tmp_path / "out", model=FNO())
    assert torch.equal(again(x), made.model(x))
    for found in (made.model, again):
        layers = [m for m in found.modules() if isinstance(m, tnc.StructuredLayer)]
        assert len(layers) == 4
        for name in shared:
            assert len({id(layer.cores[name]) for layer in layers}) == 1
    dense = tnc.densify(again)
    assert torch.allclose(dense(x), made.model(x), atol=1e-6)


def test_what_cannot_be_is_told(x: Tensor, tmp_path: Path) -> None:
    data = torch.randn(2, WIDTH, 8, 8)
    trace = capture(RealPairs(), (data,), graph=False)
    assert not trace.sites
    assert "real numbers are read as complex ones" in dict(trace.untraced)["weights"]
    with pytest.raises(PlanError, match="real weights only"):
        rule = {"match": "*", "structure": "cp", "fit": "cp-als", "keep": 0.5}
        compiled(Fourier(), data, rule)
    wide = compiled(
        Fourier(dtype=torch.complex128),
        data.double(),
        {"match": "*", "structure": "low-rank", "keep": 0.5},
    )
    with pytest.raises(ArtifactError, match="complex128"):
        tnc.save(wide, tmp_path / "out")
    with pytest.raises(TncError):
        compiled(RealPairs(), data, {"match": "*", "structure": "cp", "allow_empty": False})
