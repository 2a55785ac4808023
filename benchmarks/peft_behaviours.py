"""What PEFT's tests ask of an adapted model, each as a difference between PEFT and tnc.

A difference is that of outputs, gradients or weights, the largest entry over the largest of what it
is compared with; 0 where the two do the same without numbers. `inf` is what must not happen.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

import tnc
from benchmarks.peft_training import checkpointing, gradients, training
from benchmarks.peft_trial import TIMES, Trial, gap, quiet, stir
from tnc.adapters import export_peft, import_peft
from tnc.adapters.bank import bank_of
from tnc.errors import TncError


def forward(t: Trial) -> float:
    """Read PEFT's file: equal outputs, which the base does not have."""
    ours = t.ours()
    y = t.run(t.theirs)
    if gap(t.run(t.base), y) < 1e-3:
        return math.inf
    return gap(t.run(ours.model), y)


def written(t: Trial) -> float:
    """Write ours: PEFT loads it with equal outputs, and reads what it is told again."""
    ours = t.ours()
    export_peft(ours, t.folder / "ours", out_proj_times=TIMES)
    again = t.loaded(t.folder / "ours")
    third = import_peft(t.base, t.folder / "ours", out_proj_times=TIMES)
    third.model.eval()
    y = t.run(t.theirs)
    return max(gap(t.run(again), y), gap(t.run(third.model), y))


def merge(t: Trial) -> float:
    """Merge, unmerge, merge and unload: equal outputs and weights; unmerging is exact."""
    ours, theirs = t.ours(), t.wrapped()
    y = t.run(ours.model)
    ours.merge()
    theirs.merge_adapter()
    merged = gap(t.run(ours.model), t.run(theirs))
    with suppress(TncError):  # PEFT warns that all is merged; here it is refused
        ours.merge()
        return math.inf
    ours.unmerge()
    theirs.unmerge_adapter()
    if not torch.equal(t.run(ours.model), y):
        return math.inf
    plain, others = ours.unload(), theirs.merge_and_unload(safe_merge=True)
    weights = dict(others.named_parameters())
    worst = max(gap(p, weights[name]) for name, p in plain.named_parameters())
    if set(plain.state_dict()) != set(t.base.state_dict()):
        return math.inf
    return max(merged, worst, gap(t.run(plain), t.run(others)))


def half(t: Trial) -> float:
    """Merge in float16 and bfloat16, which simply works."""
    for dtype in (torch.float16, torch.bfloat16):
        model = copy.deepcopy(t.base).to(dtype)
        plain = import_peft(model, t.path, out_proj_times=TIMES).unload()
        if any(not bool(p.isfinite().all()) or p.dtype != dtype for p in plain.parameters()):
            return math.inf
    return 0.0


def broken(t: Trial) -> float:
    """Refuse to merge what is not finite, and leave the model as it was."""
    ours = t.ours()
    before = {name: p.detach().clone() for name, p in ours.model.named_parameters()}
    first = next(iter(ours.deltas().values()))
    with torch.no_grad():
        next(iter(first.trained.values())).fill_(math.nan)
    for action in (ours.merge, ours.unload):
        with suppress(TncError):
            action()
            return math.inf
    kept = dict(ours.model.named_parameters())
    same = all(torch.equal(kept[n], p) for n, p in before.items() if "adapters_" not in n)
    return 0.0 if same else math.inf


def disable(t: Trial) -> float:
    """Compute as the base within a block, and as before after it."""
    ours = t.ours()
    y = t.run(ours.model)
    with ours.disabled(), t.theirs.disable_adapter():
        off = gap(t.run(ours.model), t.run(t.theirs))
        base = gap(t.run(ours.model), t.run(t.base))
    return max(off, base, gap(t.run(ours.model), y))


def several(t: Trial) -> float:
    """Two adapters: switched, both at once, one merged, one deleted, an unknown one refused."""
    ours, theirs = t.ours(), t.wrapped()
    with quiet():
        config = theirs.peft_config["default"]
        theirs.add_adapter("other", type(config)(**vars_of(config)))
    theirs.set_adapter("other")
    stir(theirs, 5)
    t.model.prepare(theirs)
    folder = t.written(theirs, "both", "other")
    t.read(ours, folder, "other")
    worst = 0.0
    for name in ("other", "default"):
        ours.use(name)
        theirs.set_adapter(name)
        worst = max(worst, gap(t.run(ours.model), t.run(theirs)))
    one = copy.deepcopy(ours)
    if not t.options.get("use_dora"):
        ours.use("default", "other")
        theirs.base_model.set_adapter(["default", "other"])
        worst = max(worst, gap(t.run(ours.model), t.run(theirs)))
    if "merge" not in t.model.hard:
        one.use("other")
        merged = copy.deepcopy(theirs).merge_and_unload(adapter_names=["other"])
        worst = max(worst, gap(t.run(one.unload()), t.run(merged)))
    theirs.set_adapter("default")
    theirs.delete_adapter("other")
    ours.use("default")
    ours.remove("other")
    with suppress(TncError):
        ours.remove("unknown")
        return math.inf
    worst = max(worst, gap(t.run(ours.model), t.run(theirs)))
    ours.remove("default")
    gone = not any(bank_of(module) for module in ours.model.modules())
    return max(worst, gap(t.run(ours.model), t.run(t.base))) if gone else math.inf


def vars_of(config: Any) -> dict[str, Any]:
    """Return the settings of a configuration of PEFT."""
    found = dict(config.to_dict())
    for name in ("peft_type", "auto_mapping", "peft_version"):
        found.pop(name, None)
    return found


def weighted(t: Trial) -> float:
    """Weigh adapters: PEFT's `cat`, `svd` at full rank and single ones, negative weights too."""
    ours, theirs = t.ours(), t.wrapped()
    import peft

    config = vars_of(theirs.peft_config["default"])
    with quiet():
        theirs.add_adapter("other", peft.LoraConfig(**{**config, "r": 3}))
    theirs.set_adapter("other")
    stir(theirs, 6)
    t.read(ours, t.written(theirs, "weighted", "other"), "other")
    worst = 0.0
    for number, shares in enumerate(((0.3, 0.7), (-0.5, 1.5))):
        given = dict(zip(("default", "other"), shares))
        told = f"mix{number}"
        theirs.add_weighted_adapter(list(given), list(shares), told, combination_type="cat")
        theirs.set_adapter(told)
        y = t.run(theirs)
        ours.use(**given)
        worst = max(worst, gap(t.run(ours.model), y))
        ours.mix(told, given)
        ours.use(told)
        worst = max(worst, gap(t.run(ours.model), y))
        single = f"single{number}"
        theirs.add_weighted_adapter(["default"], [shares[0]], single)
        theirs.set_adapter(single)
        ours.use(default=shares[0])
        worst = max(worst, gap(t.run(ours.model), t.run(theirs)))
    return worst


def unload(t: Trial) -> float:
    """Unload without merging: the base model, its names and values."""
    ours = t.ours()
    plain = ours.unload(merge=False)
    kept, base = plain.state_dict(), t.base.state_dict()
    same = kept.keys() == base.keys() and all(torch.equal(kept[k], base[k]) for k in base)
    same |= bool(t.options.get("modules_to_save") or t.options.get("bias", "none") != "none")
    return 0.0 if same else math.inf


def names(t: Trial) -> float:
    """Write one of several adapters whose names are parts of each other."""
    ours = t.ours()
    for name in ("default2", "other_default", "efaul"):
        t.read(ours, t.path, name)
    ours.use("default")
    export_peft(ours, t.folder / "named", "default", out_proj_times=TIMES)
    from safetensors.torch import load_file

    file = "adapter_model.safetensors"
    mine, other = load_file(t.folder / "named" / file), load_file(t.path / file)
    return 0.0 if set(mine) == set(other) else math.inf


def generate(t: Trial) -> float:
    """Generate text: the same tokens, from ids given by position or by name."""
    ours, ids = t.ours(), t.batch["input_ids"]
    told = {"max_new_tokens": 5, "do_sample": False, "output_scores": True}
    told |= {"return_dict_in_generate": True}
    with quiet():
        mine, other = ours.model.generate(ids, **told), t.theirs.generate(input_ids=ids, **told)
    same = torch.equal(mine.sequences, other.sequences)
    return max(map(gap, mine.scores, other.scores)) if same else math.inf


def embedded(t: Trial) -> float:
    """Give embeddings instead of ids."""
    ours, ids = t.ours(), t.batch["input_ids"]
    vectors = t.base.get_input_embeddings()(ids)
    mine, other = ours.model(inputs_embeds=vectors)[0], t.theirs(inputs_embeds=vectors)[0]
    return gap(mine, other)


def layers(t: Trial) -> float:
    """Adapt the first layer alone (`layers_to_transform`): fewer parameters, equal outputs."""
    first = t.wrapped(layers_to_transform=[0])
    ours = import_peft(t.base, t.written(first, "layers"), out_proj_times=TIMES)
    ours.model.eval()
    fewer = len(list(ours.parameters())) < len(list(t.ours().parameters()))
    return gap(t.run(ours.model), t.run(first)) if fewer else math.inf


def converted(t: Trial) -> float:
    """Turn a delta that is no product into LoRA: PEFT computes what the stated error allows."""
    match = [f"*{name}" for name in t.model.targets]
    ours = tnc.adapt(t.base, "randlora{rank=3}", match=match, example=dict(t.batch))
    stir(ours.model, 7)
    ours.model.eval()
    near = export_peft(ours, t.folder / "near", rank=8, out_proj_times=TIMES)
    loss = gap(t.run(t.loaded(t.folder / "near")), t.run(ours.model))
    if (near.error > 1e-3) != (loss > 1e-4):
        return math.inf
    full = export_peft(ours, t.folder / "full", energy=1.0, out_proj_times=TIMES)
    return max(gap(t.run(t.loaded(t.folder / "full")), t.run(ours.model)), full.error)


Behaviour = Callable[[Trial], float]
EVERYWHERE: tuple[Behaviour, ...] = (
    forward,
    written,
    gradients,
    training,
    merge,
    half,
    broken,
    disable,
    several,
    unload,
    names,
)
PLAIN: tuple[Behaviour, ...] = (weighted,)
HF: tuple[Behaviour, ...] = (checkpointing, layers)
TEXT: tuple[Behaviour, ...] = (generate, embedded)
