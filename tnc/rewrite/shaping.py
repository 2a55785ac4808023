"""What a plan makes of a model: names and shapes, without a fit."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import nn

from tnc.decide.plan import Plan
from tnc.rewrite.factorizing import install_fitting, sites_of
from tnc.rewrite.fitting import Fitting
from tnc.rewrite.subject import Subject


def compiled_shapes(subject: Subject, plan: Plan) -> Subject:
    """Carry a plan out on a copy of a model without memory: layers, names and shapes, no fits.

    Passes that join layers afterwards, or leave some out, are not run.
    """
    nowhere = {
        id(held): nn.Parameter(held.detach().to("meta"), held.requires_grad)
        for held in subject.model.parameters()
    }
    made = replace(subject, model=copy.deepcopy(subject.model, nowhere), plan=plan)
    for entry in plan.entries:
        if entry.structure is None:
            continue
        sites = sites_of(made, entry)
        dtype = getattr(torch, sites[0].dtype)
        cores = {
            name: torch.empty(shape, dtype=dtype, device="meta")
            for name, shape in entry.structure.shapes.items()
        }
        nothing = torch.empty(0, device="meta")
        shapes = Fitting(cores, (None,) * len(sites), nothing, 0.0, 0.0, "")
        made = install_fitting(made, entry, shapes)
    return made
