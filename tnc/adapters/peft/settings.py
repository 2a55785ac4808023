"""What the configuration of a PEFT checkpoint may say, and what of it cannot be read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tnc.errors import ArtifactError

KNOWN = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "target_parameters",
    "task_type",
    "use_dora",
    "use_rslora",
}
"""Settings of LoRA that are read here, or that do not change what an adapter computes."""

RANDLORA = {
    "init_weights",
    "projection_prng_key",
    "randlora_alpha",
    "randlora_dropout",
    "save_projection",
    "sparse",
    "very_sparse",
}
"""Settings of RandLoRA beside the common ones."""


def check_known(config: Mapping[str, Any], where: str, known: set[str] = KNOWN) -> None:
    """Raise ArtifactError for a setting that may change what is computed and is not read here."""
    for name, value in sorted(config.items()):
        if name not in known and value not in (None, False, "", 0) and value != [] and value != {}:
            raise ArtifactError(
                f"the checkpoint sets {name} = {value!r}, which this cannot read",
                where=where,
                hint="merge the adapter into its base in PEFT",
            )
