"""A checkpoint of three times the memory limit, compiled under it; kill -9 and resume.

The limit is RLIMIT_DATA: the kernel then refuses memory that a process can write to (heap,
anonymous and private mappings) beyond it. It needs no rights, is the same on every Linux, and does
not count libraries and address space that torch only reserves, as RLIMIT_AS would. It is set after
the imports, to what they took plus LIMIT.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.outcome import Arguments, Goal, Outcome, table

NAME = "streaming"

MIB = 1 << 20
ROOT = Path(__file__).parents[1]
SPEC = """version: 1
model: {{kind: hf, path: {path}, auto: AutoModelForCausalLM}}
calibration: {{kind: random, shapes: [[16]], below: 100, samples: 2, held_out: 2, batch: 2}}
metric: none
rules: [{{match: "*[05].self_attn.q_proj*", structure: low-rank, keep: 0.5}}]
passes: [find-sites, factorize, keep-ties]
"""
CALIBRATED = """version: 1
model: {{kind: hf, path: {path}, auto: AutoModelForCausalLM}}
calibration: {{kind: random, shapes: [[32]], below: 100, samples: 8, held_out: 2, batch: 2}}
metric: inputs
rules: [{{match: "*self_attn*", structure: low-rank, keep: 0.5}}]
passes: [find-sites, factorize, keep-ties]
"""


@dataclass(frozen=True)
class Size:
    """Hold the size of a Llama with float32 weights, and the limit above the imports."""

    layers: int
    vocabulary: int
    limit: int
    hidden: int = 512
    inner: int = 4096


MEASURED = Size(24, 1_000, 560 * MIB, 512, 2048)
"""Calibrated: what is kept of a block is weights, moments of inputs in float64 and their roots."""

FULL, QUICK = Size(108, 32_000, 1024 * MIB), Size(37, 1_000, 340 * MIB)


def run(arguments: Arguments) -> Outcome:
    """Build, compile whole under the limit, fail the ordinary way, kill and resume."""
    size = QUICK if arguments.quick else FULL
    with tempfile.TemporaryDirectory(dir=arguments.data) as name:
        folder = Path(name)
        nbytes = build(folder / "model", size)
        (folder / "spec.yaml").write_text(SPEC.format(path=folder / "model"))
        whole = _finished(_start("stream", folder, "whole", size.limit))
        digests = {p.name: _digest(p) for p in sorted((folder / "whole").iterdir())}
        for path in (folder / "whole").iterdir():
            path.unlink()
        ordinary = _finished(_start("ordinary", folder, "ordinary", size.limit), quiet=True)
        done = _killed(folder, size.limit, len([n for n in digests if n.startswith("tnc-")]))
        resumed = _finished(_start("stream", folder, "resumed", size.limit))
        again = {p.name: _digest(p) for p in sorted((folder / "resumed").iterdir())}
    different = sum(digests.get(key) != again.get(key) for key in {*digests, *again})
    figures = {
        "checkpoint_mib": nbytes / MIB,
        "limit_mib": size.limit / MIB,
        "checkpoint_over_limit": nbytes / size.limit,
        "whole": whole,
        "ordinary": ordinary,
        "killed_after_files": done,
        "files": len(digests),
        "resumed": resumed,
        "different_files": different,
    }
    figures["calibrated"] = measured = calibrated(arguments)
    goals = (
        Goal("checkpoint-over-limit", nbytes / size.limit, 3.0, "at least"),
        Goal("streamed-under-the-limit", float(whole["rc"] == 0), 1.0, "at least"),
        Goal("ordinary-fails-under-the-limit", float(ordinary["rc"] != 0), 1.0, "at least"),
        Goal("files-that-differ-after-kill-and-resume", float(different), 0.0),
        Goal("calibrated-peak-over-largest-block", measured["peak_over_block"], 16.0),
        Goal("calibrated-files-that-differ", float(measured["different_files"]), 0.0),
    )
    return Outcome((_table(figures),), goals, figures)


def calibrated(arguments: Arguments) -> dict:  # type: ignore[type-arg]
    """Compile with calibration, block by block, whole and killed; compare the bytes."""
    size = MEASURED
    with tempfile.TemporaryDirectory(dir=arguments.data) as name:
        folder = Path(name)
        nbytes = build(folder / "model", size)
        (folder / "spec.yaml").write_text(CALIBRATED.format(path=folder / "model"))
        whole = _finished(_start("stream", folder, "whole", size.limit))
        digests = {p.name: _digest(p) for p in sorted((folder / "whole").iterdir())}
        done = _killed(folder, size.limit, len([n for n in digests if n.startswith("tnc-")]))
        resumed = _finished(_start("stream", folder, "resumed", size.limit))
        again = {p.name: _digest(p) for p in sorted((folder / "resumed").iterdir())}
    block = 4 * (4 * size.hidden**2 + 3 * size.hidden * size.inner + 2 * size.hidden) / MIB
    return {
        "checkpoint_mib": nbytes / MIB,
        "block_mib": block,
        "whole": whole,
        "killed_after_files": done,
        "resumed": resumed,
        "peak_over_block": (whole["peak_mib"] - whole["baseline_mib"]) / block,
        "different_files": sum(digests.get(k) != again.get(k) for k in {*digests, *again}),
    }


def _table(figures: dict) -> object:  # type: ignore[type-arg]
    rows = []
    for name in ("whole", "ordinary", "resumed"):
        found = figures[name]
        peak, largest = found.get("peak_mib"), found.get("largest_weight_mib")
        rows.append((name, found["rc"], found["seconds"], found.get("baseline_mib", "-"),
                     peak or "-", largest or "-", found.get("error", "")[:60]))  # fmt: skip
    columns = ("run", "exit", "seconds", "rss imports MiB", "peak rss MiB", "largest MiB", "error")
    return table(columns, rows)


def build(folder: Path, size: Size) -> int:
    """Write a checkpoint with random weights, two layers a file; return its bytes."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=8,
        tie_word_embeddings=False,
        dtype="float32",
    )
    config.save_pretrained(folder)
    places, total = {}, 0
    generator = torch.Generator().manual_seed(0)
    groups = list(_shapes(size))
    for number, shapes in enumerate(groups):
        file = f"model-{number + 1:05d}-of-{len(groups):05d}.safetensors"
        tensors = {
            name: torch.randn(shape, generator=generator).mul_(0.02)
            if len(shape) > 1
            else torch.ones(shape)
            for name, shape in shapes.items()
        }
        save_file(tensors, folder / file, {"format": "pt"})
        places.update(dict.fromkeys(tensors, file))
        total += sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def _shapes(size: Size) -> Iterator[dict[str, tuple[int, ...]]]:
    h, i = size.hidden, size.inner
    yield {"model.embed_tokens.weight": (size.vocabulary, h)}
    layers = range(size.layers)
    for start in layers[::2]:
        found: dict[str, tuple[int, ...]] = {}
        for layer in layers[start : start + 2]:
            path = f"model.layers.{layer}."
            found |= {f"{path}self_attn.{n}_proj.weight": (h, h) for n in "qkvo"}
            found |= {f"{path}mlp.{n}_proj.weight": (i, h) for n in ("gate", "up")}
            found[f"{path}mlp.down_proj.weight"] = (h, i)
            found |= {f"{path}{n}_layernorm.weight": (h,) for n in ("input", "post_attention")}
        yield found
    yield {"model.norm.weight": (h,), "lm_head.weight": (size.vocabulary, h)}


def _start(kind: str, folder: Path, out: str, limit: int) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "benchmarks.streaming", kind]
    words += [str(folder / "spec.yaml"), str(folder / out), str(limit)]
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(words, cwd=ROOT, text=True, env={**os.environ, **quiet}, **pipes)


def _finished(process: subprocess.Popen[str], quiet: bool = False) -> dict:  # type: ignore[type-arg]
    started = time.perf_counter()
    out, error = process.communicate()
    found = {"rc": process.returncode, "seconds": time.perf_counter() - started}
    lines = [line for line in out.splitlines() if line.startswith("{")]
    if lines:
        found |= json.loads(lines[-1])
    if process.returncode and not quiet:
        raise SystemExit(error)
    if process.returncode:
        told = [line for line in error.splitlines() if "rror" in line]
        found["error"] = told[-1] if told else f"signal or exit {process.returncode}"
    return found


def _killed(folder: Path, limit: int, files: int) -> int:
    """Start, kill -9 when half of the files are written; return how many there were."""
    process = _start("stream", folder, "resumed", limit)
    partial = folder / ".resumed.partial"
    while process.poll() is None and len(list(partial.glob("tnc-*"))) < files // 2:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return len(list(partial.glob("tnc-*")))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def _limited(kind: str, spec: str, out: str, limit: str) -> None:
    """Run in a process of its own: import, set the limit, compile, print what it took."""
    import transformers
    from transformers.models.llama import modeling_llama  # noqa: F401

    import tnc.recipe
    from tnc.decide.spec import read_spec
    from tnc.stream import running
    from tnc.stream.memory import peak_resident

    resolved = read_spec(spec)
    transformers.logging.set_verbosity_error()
    baseline, data = _status("VmRSS"), _status("VmData")
    resource.setrlimit(resource.RLIMIT_DATA, (data + int(limit),) * 2)
    run = running.run if kind == "stream" else tnc.recipe.run
    report = run(resolved, Path(out))
    told = dict(report.environment)
    figures = {
        "baseline_mib": baseline / MIB,
        "peak_mib": peak_resident() / MIB,
        "largest_weight_mib": int(told.get("largest weight bytes", 0)) / MIB,
        "compiled_params": report.after.params,
        "fitted": sum(entry.structure is not None for entry in report.plan.entries),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    _limited(*sys.argv[1:])
