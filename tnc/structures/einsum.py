"""The family of all two-core einsums of Potapczynski et al."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tnc.net import Signature, parse_equation
from tnc.structures.factorise import factorise_by
from tnc.structures.family import Family, families
from tnc.structures.legs import kernel_legs, one_map
from tnc.structures.template import Template


@families.register("einsum")
@dataclass(frozen=True)
class Einsum(Family):
    """`W[d e f, a b g] = sum_r A[f d r g a] B[f e r g b]` (Potapczynski et al., 2024).

    `theta` = (alpha, beta, gamma, delta, epsilon, phi): shares of log(inputs) that go to a, b, g
    and of log(outputs) that go to d, e, f; each triple sums to one, and a share of 0 drops its leg.
    A seventh number rho bounds r by min(inputs, outputs)^rho. Sizes are exact divisors near the
    shares, padded where there are none. Low rank is (1, 0, 0, 0, 1, 0), Kronecker sums and two-core
    trains (.5, .5, 0, .5, .5, 0), block tensor trains (.5, 0, .5, 0, .5, .5). Kernel modes of a
    convolution lie on A.
    """

    theta: tuple[float, ...] = (0.5, 0.0, 0.5, 0.0, 0.5, 0.5)
    fit = "auto"

    def refuses(self, signature: Signature) -> str:
        if len(self.theta) not in (6, 7):
            return f"theta has {len(self.theta)} numbers, it needs 6, or 7 with rho"
        if any(not 0 <= share <= 1 for share in self.theta):
            return f"theta {self.theta} has shares outside 0 to 1"
        for side, shares in (("inputs", self.theta[:3]), ("outputs", self.theta[3:6])):
            if abs(sum(shares) - 1) > 0.01:
                return f"theta's shares of the {side}, {shares}, sum to {sum(shares):.3g}, not 1"
        alone = [k for k in "AB" if not any(self.theta[n] for n in _CARRIED[k])]
        if alone:
            return f"theta {self.theta} leaves core {alone[0]} without a leg"
        return one_map(signature)

    def template(self, signature: Signature) -> Template:
        (o,), (i, *_) = signature.outputs, signature.inputs
        taps = {"t" if name == "d" else name: k for name, k in kernel_legs(signature).items()}
        inputs = _sizes("a b g", i, self.theta[:3])
        outputs = _sizes("d e f", o, self.theta[3:6])
        legs = outputs | inputs | taps
        on_a = [n for n in ("f", "d", "r", "g", "a", *taps) if n in legs or n == "r"]
        on_b = [n for n in ("f", "e", "r", "g", "b") if n in legs or n == "r"]
        equation = parse_equation(
            f"A[{' '.join(on_a)}] B[{' '.join(on_b)}] : "
            f"({' '.join(inputs)}) {' '.join(taps)} -> ({' '.join(outputs)})"
        )
        sides = [prod(legs[n] for n in core if n not in ("f", "g", "r")) for core in (on_a, on_b)]
        bound = min(sides)
        if len(self.theta) == 7:
            bound = max(1, min(bound, round(min(o, i) ** self.theta[6])))
        exact = bound == min(sides)
        return Template(signature, equation, tuple(legs.items()), (("r", bound),), exact=exact)


_CARRIED = {"A": (0, 2, 3, 5), "B": (1, 2, 4, 5)}


def _sizes(names: str, size: int, shares: tuple[float, ...]) -> dict[str, int]:
    kept = [(name, share) for name, share in zip(names.split(), shares) if share > 0]
    sizes = factorise_by(size, tuple(share for _, share in kept))
    return {name: found for (name, _), found in zip(kept, sizes)}
