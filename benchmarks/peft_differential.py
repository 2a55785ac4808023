"""Adapters beside PEFT's on small models of every kind: the same factors, every behaviour.

PEFT makes an adapter with random factors and saves it; tnc reads the file, and both do what PEFT's
own tests ask of an adapted model (`benchmarks.peft_behaviours`). Differences are relative to the
largest entry, in float32. Printed are the number of rows compared, the worst difference of every
behaviour, and what of PEFT's test table is left out, with the reason. At the end the start of
LoRA-GA: how far the first step of the factors is from the best low-rank part of the full step.
"""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tnc
from benchmarks import peft_behaviours as asked
from benchmarks.outcome import Arguments, Goal, Outcome, table
from benchmarks.peft_models import MODELS, Model
from benchmarks.peft_trial import Trial, quiet
from tnc.adapters.base import base_weight

NAME = "peft-differential"

TOLERANCE = 1e-4
"""The largest relative difference of outputs or gradients in float32; most are below 1e-5."""

FORMS: Mapping[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "patterns": {},
    "head": {},
    "bias": {"bias": "lora_only"},
    "randlora": {"peft_type": "RANDLORA"},
}
"""Configurations of LoRA by name; patterns and heads depend on the model."""

LEFT_OUT: Mapping[str, str] = {
    "_test_model_attr": "asks for methods of PEFT's wrapper (save_pretrained, push_to_hub)",
    "_test_adapter_name": "asks for names of PEFT's parameters",
    "_test_prepare_for_training": "tests a helper of PEFT for quantised bases",
    "_test_load_model_low_cpu_mem_usage": "tests an argument of PEFT's loader",
    "_test_from_pretrained_config_construction": "tests an argument of PEFT's loader",
    "_test_add_adapter_no_autocast_adapter_dtype": "tests an argument of PEFT's loader; adapters "
    "beside weights of 16 bits are float32 in tnc",
    "_test_peft_model_device_map": "tests an argument of PEFT's loader",
    "_test_mixed_adapter_batches": "tnc has no adapter for each row of a batch",
    "_test_generate_with_mixed_adapter_batches_and_beam_search": "tnc has no adapter for each row",
    "_test_training_prompt_learning_tasks": "prompts are no change of weights",
    "_test_weighted_combination_of_adapters_ia3": "no LoRA-type configuration",
    "_test_adding_multiple_adapters_with_bias_raises": "in tnc biases are trained beside adapters "
    "and belong to none of them, so a second adapter is no conflict",
    "_test_safe_merge_non_finite_bias_leaves_base_layer_unchanged": "merging changes no bias in "
    "tnc: PEFT's lora_bias is refused when it is read",
    "combinations linear, ties, dare, magnitude_prune": "part of _test_weighted_combination: they "
    "mix factors, not what adapters add, so they are no sum of deltas; cat, svd and single are "
    "compared",
    "two DoRA adapters at once": "PEFT scales what the first one made, so their order matters; tnc "
    "adds what each changes",
    "merging Conv3d layers with a kernel of 1": "PEFT 0.21.2 reads them as of two axes and fails",
    "warnings (merged twice, shapes of groups)": "tnc raises errors where PEFT warns",
}
"""What of the table of PEFT's tests (`testing_common.py`) is not compared, and why."""

COVERED: Mapping[str, tuple[str, ...]] = {
    "forward": ("_test_inference_safetensors", "_test_save_pretrained"),
    "written": ("_test_save_pretrained", "_test_inference_safetensors"),
    "gradients": ("_test_training", "_test_get_base_model_state_dict"),
    "training": ("_test_training",),
    "merge": ("_test_merge_layers", "_test_merge_layers_is_idempotent", "_test_safe_merge"),
    "half": ("_test_merge_layers_fp16",),
    "broken": (
        "_test_merge_layers_nan",
        "_test_safe_merge_broken_adapter_leaves_base_layer_unchanged",
    ),
    "disable": ("_test_disable_adapter",),
    "several": (
        "_test_load_multiple_adapters",
        "_test_merge_layers_multi",
        "_test_delete_adapter",
        "_test_delete_inactive_adapter",
        "_test_delete_unknown_adapter_raises",
    ),
    "unload": ("_test_unload_adapter",),
    "names": (
        "_test_save_pretrained_selected_adapters",
        "_test_save_pretrained_adapter_name_substring",
    ),
    "weighted": (
        "_test_weighted_combination_of_adapters",
        "_test_weighted_combination_of_adapters_lora",
    ),
    "checkpointing": ("_test_training_gradient_checkpointing",),
    "layers": ("_test_training_layer_indexing",),
    "generate": ("_test_generate", "_test_generate_pos_args", "_test_generate_half_prec"),
    "embedded": ("_test_passing_input_embeds_works",),
    "converted": ("_test_lora_conversion",),
}
"""The methods of PEFT's table that each behaviour stands for."""


CHANGED = ("merge", "disable", "several", "unload", "names")
"""What cannot be compared where PEFT's start took something from the base."""


def forms(model: Model) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the configurations that PEFT has for a model."""
    linear = model.name in ("mlp", "mlp without bias", "bert", "llama", "t5", "vit")
    for name, options in FORMS.items():
        told = dict(options)
        if name == "dora" and not model.dora:
            continue
        if name in ("pissa", "olora", "randlora") and not linear:
            continue
        if name == "head":
            if not model.saved:
                continue
            told["modules_to_save"] = [model.saved]
        if name == "patterns":
            first, last = model.targets[0], model.targets[-1]
            told |= {"rank_pattern": {first: 4}, "alpha_pattern": {last: 5.5}}
        if name == "bias" and model.name not in ("mlp", "bert", "conv2d"):
            continue
        if name not in ("lora", "rslora") and model.name == "conv in groups":
            continue
        yield name, told


def behaviours(model: Model, form: str) -> Iterator[asked.Behaviour]:
    """Yield what is compared for a model and a configuration."""
    for behaviour in asked.EVERYWHERE:
        name = behaviour.__name__
        beside = form in ("head", "bias")
        if beside and name in ("disable", "several", "names"):
            continue  # heads and biases belong to no adapter in tnc: see `LEFT_OUT`
        if form in ("pissa", "olora") and name in CHANGED:
            continue  # PEFT changed the base, so its base is another one
        yield behaviour
    if form in ("lora", "rslora", "patterns") and model.name in ("mlp", "llama", "bert", "vit"):
        yield from asked.PLAIN if form == "lora" else ()
    if model.name in ("bert", "llama") and form in ("lora", "dora"):
        yield from asked.HF
    if model.text and form == "lora":
        yield from asked.TEXT
    if form == "lora" and model.name in ("mlp", "llama"):
        yield asked.converted


def run(arguments: Arguments) -> Outcome:
    """Compare all rows; `--quick` takes the first three models, `--only` those named."""
    torch.set_num_threads(arguments.threads)
    chosen = MODELS[:3] if arguments.quick else MODELS
    if arguments.only:
        chosen = tuple(m for m in MODELS if m.name in arguments.only.split(","))
    rows: list[tuple[str, str, str, float, str]] = []
    for model in chosen:
        for form, options in forms(model):
            with tempfile.TemporaryDirectory() as folder:
                rows += compared(model, form, options, Path(folder))
    kinds = sorted({behaviour for _, _, behaviour, _, _ in rows})
    done = [row for row in rows if not row[4]]
    summary = []
    for kind in kinds:
        own = [(row[3], row) for row in done if row[2] == kind]
        worst, at = max(own, key=lambda pair: pair[0]) if own else (0.0, ("", "", "", 0.0, ""))
        summary.append((kind, len(own), worst, f"{at[0]}, {at[1]}"))
    hard = sorted({(row[0], row[2], row[4]) for row in rows if row[4]})
    starts = lora_ga()
    worst = max(row[3] for row in done)
    ours = max(found for who, _, _, found in starts if who == "tnc")
    theirs = min(found for who, _, _, found in starts if who == "PEFT")
    goals = (
        Goal("largest relative difference", worst, TOLERANCE),
        Goal(
            "rows compared", len(done), 20 if arguments.quick or arguments.only else 400, "at least"
        ),
        Goal("LoRA-GA's first step, relative error", ours, 1e-5),
    )
    figures = {
        "rows": [list(row) for row in rows],
        "left out": dict(LEFT_OUT),
        "covered": {name: list(tests) for name, tests in COVERED.items()},
        "lora-ga": [list(row) for row in starts],
        "lora-ga, least error of PEFT": theirs,
    }
    tables = (
        table(("behaviour", "rows", "worst difference", "at"), summary),
        table(("model", "behaviour", "not compared, because"), hard),
        table(("PEFT's test", "left out, because"), sorted(LEFT_OUT.items())),
        table(("LoRA-GA's start", "direction", "scale", "error of the first step"), starts),
    )
    return Outcome(tables, goals, figures)


def compared(
    model: Model, form: str, options: Mapping[str, Any], folder: Path
) -> Iterator[tuple[str, str, str, float, str]]:
    """Yield model, configuration, behaviour, difference, and the reason where there is none."""
    trial = Trial(model, options, folder)
    for behaviour in behaviours(model, form):
        name = behaviour.__name__
        if name in model.hard:
            yield model.name, form, name, 0.0, model.hard[name]
            continue
        try:
            difference = behaviour(trial)
        except Exception:  # a row that fails is a row that differs
            traceback.print_exc()
            difference = float("inf")
        if not difference <= TOLERANCE:
            print(f"differs: {model.name}, {form}, {name}: {difference:.3g}", flush=True)
        yield model.name, form, name, difference, ""


def lora_ga() -> list[tuple[str, str, str, float]]:
    """Return for both starts the error of the linearised first step against the best of its rank.

    The step of `W + s B A` under SGD is `s^2 (B B^T G + G A^T A)`; it is compared with the best
    multiple of the rank-2r part of G, relative to that part. `weight` of PEFT scales one factor.
    """
    rows = []
    for direction in ("ArB2r", "A2rBr", "ArBr"):
        for scale, named in (("stable", "stable"), ("gd", "gd_scale"), ("unit", "unit")):
            rows.append(("tnc", direction, scale, _first_step(direction, scale, None)))
            rows.append(("PEFT", direction, scale, _first_step(direction, scale, named)))
    return rows


def _first_step(direction: str, scale: str, named: str | None) -> float:
    torch.manual_seed(0)
    rank = 3
    base = (
        nn.Sequential(nn.Linear(24, 20)).double()
        if named is None
        else nn.Sequential(nn.Linear(24, 20))
    )
    x = torch.randn(64, 24).to(base[0].weight)
    target = torch.randn(64, 20).to(base[0].weight)

    def loss(output: Tensor, batch: Any) -> Tensor:
        return (output - target).square().mean()

    gradient = torch.autograd.grad(loss(base(x), None), base[0].weight)[0]
    if named is None:
        tuned = tnc.adapt(
            base,
            f"lora-ga{{rank={rank}, direction={direction}, scale={scale}}}",
            calibration=[x],
            loss=loss,
        )
        delta = tuned.deltas()["0.weight"]
        b, a = delta.cores["B"].detach(), delta.cores["A"].detach()
        assert base_weight(base[0], "weight") is base[0].weight
    else:
        b, a = _peft_start(base, x, loss, rank, direction, named)
    step = b @ b.T @ gradient + gradient @ a.T @ a
    left, values, right = torch.linalg.svd(gradient, full_matrices=False)
    best = left[:, : 2 * rank] * values[: 2 * rank] @ right[: 2 * rank]
    share = (step * best).sum() / best.square().sum()
    return float((step - share * best).norm() / (share * best).norm())


def _peft_start(
    base: nn.Module, x: Tensor, loss: Any, rank: int, direction: str, scale: str
) -> tuple[Tensor, Tensor]:
    import peft
    from peft.tuners.lora import preprocess_loraga

    config = peft.LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=["0"],
        init_lora_weights="lora_ga",
        lora_ga_config=peft.LoraGAConfig(direction=direction, scale=scale),
    )

    def step() -> None:
        loss(base(x), None).backward()

    with quiet():
        preprocess_loraga(base, config, step)
        layer = peft.get_peft_model(base, config).base_model.model[0]
    return layer.lora_B["default"].weight.detach(), layer.lora_A["default"].weight.detach()
