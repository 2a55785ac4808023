"""What goes around an optimizer or in its place: one file each.

`SAM` and `GAM` take steps of another optimizer with gradients from nearby; `MeZO` and `FedKSeed`
train without gradients; `NormTest` chooses batch sizes; `power_sgd` compresses gradients.
"""
