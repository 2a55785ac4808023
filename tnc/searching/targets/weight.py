"""A matrix of a model, folded into the modes of a tensor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches
from math import prod
from typing import TYPE_CHECKING, Any, Self

from tnc.decide.specfile import find_spec_file
from tnc.errors import SearchError, SourceError
from tnc.explore.evaluator import Array
from tnc.explore.topology import Topology
from tnc.net import Axis, Core, Equation, Network, Structure, print_equation
from tnc.searching.target import Target, checked, targets

if TYPE_CHECKING:
    from tnc.decide.spec import Spec


@targets.register("weight")
@dataclass(frozen=True)
class Weight(Target):
    """The matrix `weight` of the model of `spec`: mode k is the pair of output and input mode k.

    `weight` is a parameter's path, `spec` a spec or a recipe. `output_modes` and `input_modes` fold
    the two dimensions exactly; where they are not given, `factors` modes each as even as they can
    be. What is found is put into the model by `tnc search export DIR --out NAME.yaml`, a spec, or
    `NAME.plan.json`, a plan for `tnc compile --plan`.
    """

    weight: str
    spec: str = "minilm"
    output_modes: tuple[int, ...] = ()
    input_modes: tuple[int, ...] = ()
    factors: int = 3

    def load(self) -> Array:
        matrix = self._matrix()
        outputs, inputs = self.modes(*matrix.shape)
        count = len(outputs)
        folded = matrix.reshape(*outputs, *inputs)
        pairs = [axis for k in range(count) for axis in (k, count + k)]
        joined = [o * i for o, i in zip(outputs, inputs)]
        return checked(folded.transpose(pairs).reshape(joined), self.weight)

    def modes(self, rows: int, columns: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the modes of outputs and inputs. Raises SearchError where they do not fit."""
        from tnc.structures.factorise import factorise

        outputs = self.output_modes or factorise(rows, self.factors)
        inputs = self.input_modes or factorise(columns, self.factors)
        if len(outputs) != len(inputs) or (prod(outputs), prod(inputs)) != (rows, columns):
            raise SearchError(
                f"modes {outputs} and {inputs} do not fold {self.weight} ({rows} x {columns})",
                hint="give output_modes and input_modes, as many, whose products are its sides",
            )
        return outputs, inputs

    def resolved(self) -> Self:
        return replace(self, spec=str(find_spec_file(self.spec).resolve()))

    def placed(self, topology: Topology) -> dict[str, Any]:
        from tnc.fit import choose

        network = self._network(topology)
        legs = {n for axis in (*network.equation.outputs, *network.equation.inputs) for n in axis}
        sizes = {name: size for name, size in network.sizes if name in legs}
        form = {"equation": print_equation(network.equation), "sizes": sizes}
        return self._data() | {
            "rules": [
                {
                    "match": self.weight,
                    "structure": {"free-form": form},
                    "ranks": {name: size for name, size in network.sizes if name not in legs},
                    "fit": choose(Structure.of(network)).name,
                }
            ]
        }

    def _network(self, topology: Topology) -> Network:
        """Return the network as a map, with the two legs that every mode was folded from."""
        outputs, inputs = self.modes(*self._matrix().shape)
        plain = topology.network()
        count, cores = len(outputs), []
        for k, core in enumerate(plain.equation.cores):
            own = (f"o{k + 1}", f"i{k + 1}") if k < count else ()
            cores.append(Core(core.name, (*own, *core.indices[int(k < count) :])))
        rows, columns = (Axis(tuple(f"{side}{k + 1}" for k in range(count))) for side in ("o", "i"))
        sizes = {name: size for name, size in plain.sizes if not name.startswith("m")}
        sizes |= {f"o{k}": size for k, size in enumerate(outputs, 1)}
        sizes |= {f"i{k}": size for k, size in enumerate(inputs, 1)}
        return Network.of(Equation(tuple(cores), (columns,), (rows,)), sizes)

    def _spec(self) -> Spec:
        from tnc.decide.spec import read_spec

        found = read_spec(self.spec).spec
        if found.model is None:
            raise SourceError(f"the spec {self.spec} names no model", hint="name another in `spec`")
        return found

    def _data(self) -> dict[str, Any]:
        """Return the parts of the spec that say of what model it is, and on what data it is run."""
        plain = self._spec().model_dump(mode="json", exclude_none=True, exclude_defaults=True)
        kept = ("model", "calibration", "evaluation")
        return {"version": 1} | {name: plain[name] for name in kept if name in plain}

    def _matrix(self) -> Array:
        """Return the weight, outputs first."""
        model: Any = self._spec().model
        module = model.load().model
        parameters = dict(module.named_parameters())
        found = parameters.get(self.weight)
        if found is None or found.ndim != 2:
            told = "is no parameter" if found is None else f"has shape {tuple(found.shape)}"
            near = get_close_matches(self.weight, [n for n, p in parameters.items() if p.ndim == 2])
            raise SourceError(
                f"{self.weight} {told} of the model: a matrix is needed",
                where=f"spec {self.spec}",
                hint=f"did you mean {near[0]}?" if near else "`tnc plan SPEC` lists the weights",
            )
        owner = module.get_submodule(self.weight.rpartition(".")[0])
        matrix: Array = found.detach().cpu().double().numpy()
        return matrix.T if type(owner).__name__ == "Conv1D" else matrix
