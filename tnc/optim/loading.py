"""What comes of an optimizer's state on its way through files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def mended(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict whose numbers are where its tensors are.

    `torch.distributed.checkpoint.load` into an optimizer's own `state_dict()` puts tensors in
    place, but what is no tensor below the place of a parameter as a text: under '0' instead of 0.

    >>> mended({"state": {0: {"left": 0}, "0": {"left": 4}}, "param_groups": []})["state"]
    {0: {'left': 4}}
    """
    state = dict(state_dict["state"])
    for key in [key for key in state if isinstance(key, str) and key.isdigit()]:
        if int(key) in state:
            state[int(key)] = {**state[int(key)], **state.pop(key)}
    return {**state_dict, "state": state}
