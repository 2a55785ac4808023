"""Switching the library of products, and probing it."""

from __future__ import annotations

import pytest
import torch

from tnc.errors import KernelError
from tnc.kernels import backend
from tnc.kernels.backend import available_backends, probes, using


def test_what_was_set_comes_back() -> None:
    before = backend._precision()
    with using("onednn"):
        assert backend._precision() == "bf16"
        with using("mkl"):
            assert backend._precision() == "ieee"
        assert backend._precision() == "bf16"
    assert backend._precision() == before
    with pytest.raises(ZeroDivisionError), using("onednn"):
        1 / 0  # noqa: B018
    assert backend._precision() == before
    assert torch.get_float32_matmul_precision() in ("highest", "high", "medium")


def test_what_the_user_set_comes_back() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with using("mkl"):
            pass
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_an_unknown_backend() -> None:
    with pytest.raises(KernelError, match="'openblas'"), using("openblas"):
        pass


@pytest.mark.parametrize("dtype", sorted(backend.ACCURATE))
def test_available_backends_are_accurate(dtype: str) -> None:
    assert available_backends(dtype)
    for probe in probes(dtype):
        accurate = probe.error < backend.ACCURATE[dtype]
        assert accurate == (not probe.refused), probe


def test_a_backend_that_rounds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_error", lambda left, right: 1e-3)
    assert "1.0e-03" in backend._probe("onednn", "float32").refused


def test_an_unknown_dtype() -> None:
    with pytest.raises(KernelError, match="'int8'"):
        probes("int8")
