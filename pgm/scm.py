"""The attributes' structural causal model: one mechanism per attribute, chained by the graph, as a Pyro program."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyro
import torch
from torch import Tensor, nn

from datasets import Graph, SchemaError, encode_parents
from datasets.arguments import whole
from datasets.ranges import check_ranges
from mechanisms.base import AttributeMechanism, term_of
from mechanisms.discrete import GumbelMax
from mechanisms.flows import Flow
from mechanisms.runs.files import check_finite, load, rebuilt
from mechanisms.runs.placement import check_single_precision
from mechanisms.training.noise import reproducible
from pgm.interventions import Do, resolve_do
from pgm.options import AttributeConfig

ROWS = "batch of rows"  # the plate's name; with blanks, as no attribute's


def noise_site(name: str) -> str:
    """The Pyro site of an attribute's noise: no identifier, so that no attribute can have this name."""
    return f"{name}.noise"


class AttributeSCM(nn.Module):
    """p(a) = Π_k p(a_k | pa_k), each factor a mechanism a_k = f_k(u_k; pa_k) with exogenous noise u_k ~ p(u_k).

    Built from a graph alone: continuous attributes get a flow, discrete ones a Gumbel-max mechanism. The image is left
    out. Attributes are ``(B,)`` tensors in physical units (class indices, int64, where discrete).

    Two Pyro programs state the same model: :meth:`model` with a site per attribute, for ``poutine.condition`` and
    ``poutine.do``; :meth:`structural` with a site per noise, for counterfactuals by ChiRho's worlds. The direct verbs
    (:meth:`sample`, :meth:`abduct`, :meth:`predict`, :meth:`counterfactual`) take a generator; without one they draw from one
    that is seeded with 0, so that the same call gives the same answer, whatever torch's global seed. All but :meth:`sample` are
    differentiable in weights, continuous attributes and interventions; classes have no gradient.

    Args:
        graph: with statistics of the training split.
        config: sizes of the mechanisms.
        mechanisms: replaces the default mechanism of the attributes it names.

    >>> from datasets import Variable
    >>> graph = Graph([Variable("dose", "real"), Variable("cured", "binary", ("dose",)),
    ...                Variable("image", "image", ("cured",), shape=(1, 8, 8))])
    >>> scm = AttributeSCM(graph)
    >>> patients = scm.sample(3)
    >>> changed = scm.counterfactual(patients, {"cured": 1})
    >>> changed["cured"].tolist(), torch.equal(changed["dose"], patients["dose"])
    ([1, 1, 1], True)

    Raises:
        SchemaError: for a graph without attributes, or mechanisms of unknown attributes.
    """

    def __init__(self, graph: Graph, config: AttributeConfig | None = None,
                 mechanisms: Mapping[str, AttributeMechanism] | None = None) -> None:
        super().__init__()
        self.graph, self.config = graph, config or AttributeConfig()
        check_ranges(self.config)
        self.names = tuple(v.name for v in graph.attributes)
        given = dict(mechanisms or {})
        if not self.names or not given.keys() <= set(self.names):
            raise SchemaError(f"mechanisms of {', '.join(given) or 'nothing'}, but the graph's attributes are "
                              f"{', '.join(self.names) or 'none: an SCM needs at least one'}")
        # ModuleDict refuses keys that are attributes of modules, such as 'type'; the prefix makes any name possible.
        self.mechanisms = nn.ModuleDict({f"p_{name}": given.get(name) or self._default(name) for name in self.names})

    def _default(self, name: str) -> AttributeMechanism:
        variable, width = self.graph[name], sum(p.width for p in self.graph.parents(name))
        if variable.discrete:
            return GumbelMax(variable, width, hidden=self.config.hidden)
        return Flow(variable, width, bins=self.config.bins, hidden=self.config.hidden)

    def mechanism(self, name: str) -> AttributeMechanism:
        """The mechanism of one attribute."""
        if name not in self.names:
            raise SchemaError(f"no mechanism of {name!r}; attributes are {', '.join(self.names)}")
        return self.mechanisms[f"p_{name}"]

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def context(self, name: str, values: Mapping[str, Tensor], size: int) -> Tensor:
        """Encoded parents of one attribute, ``(*B, D)``; the batch shapes of parents broadcast."""
        parents = self.graph.parents(name)
        if parents:  # of different shapes where a handler has split one of them into several worlds
            present = torch.broadcast_tensors(*(values[p.name] for p in parents))
            values = dict(zip((p.name for p in parents), present, strict=True))
        return encode_parents(parents, values, size, self.device)

    # ------------------------------------------------------------------------------------------------ Pyro programs
    def model(self, size: int = 1) -> dict[str, Tensor]:
        """a_k ~ p(a_k | pa_k): a Pyro program with one sample site per attribute, causes first, in the plate :data:`ROWS`.

        Returns:
            ``{name: (size,)}``, with further dimensions on the left under handlers that add them.
        """
        values: dict[str, Tensor] = {}
        with pyro.plate(ROWS, size):
            for name in self.names:
                values[name] = pyro.sample(name, self.mechanism(name).distribution(self.context(name, values, size)))
        return values

    def structural(self, size: int = 1) -> dict[str, Tensor]:
        """u_k ~ p(u_k), a_k = f_k(u_k; pa_k): the same model with its noise explicit.

        Sample sites are those of :func:`noise_site`; deterministic sites carry the attributes' names. Conditioned on the noise of
        :meth:`abduct`, its worlds under ChiRho's ``MultiWorldCounterfactual`` and ``do`` are our counterfactuals.
        """
        values: dict[str, Tensor] = {}
        with pyro.plate(ROWS, size):
            for name in self.names:
                mechanism = self.mechanism(name)
                noise = pyro.sample(noise_site(name), mechanism.noise_distribution())
                effect = mechanism.predict(noise, self.context(name, values, size))
                values[name] = pyro.deterministic(name, effect, event_dim=0)
        return values

    # ------------------------------------------------------------------------------------------------ likelihood
    def forward(self, attributes: Mapping[str, Tensor], noise: object = None, progress: float = 1.0) -> dict[str, Tensor]:
        """−Σ_k log p(a_k | pa_k) in nats, ``(B,)``, as ``loss``, and each attribute's term, see :func:`mechanisms.base.term_of`.

        For training, where a :class:`datasets.Split` has checked the attributes once; other entries are ignored. An
        exact likelihood needs neither the ``noise`` nor the ``progress`` that the training loop offers to any model.
        """
        size = len(attributes[self.names[0]])
        terms = {term_of(name): -self.mechanism(name).log_prob(attributes[name], self.context(name, attributes, size))
                 for name in self.names}
        return {"loss": torch.stack(tuple(terms.values())).sum(0), **terms}

    def log_prob(self, attributes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """log p(a_k | pa_k) in nats, ``{name: (B,)}``; of checked values, with gradients."""
        terms = self(self._checked(attributes))
        return {name: -terms[term_of(name)] for name in self.names}

    # ------------------------------------------------------------------------------------------------ the three steps
    @torch.no_grad()
    def sample(self, size: int, do: Do | None = None, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """a ~ p(a; do(·)), ``{name: (size,)}``: :meth:`predict` of fresh noise."""
        check_single_precision(self)
        size, generator = whole(size, "size"), reproducible(generator)
        noise = {name: self.mechanism(name).draw_noise((size,), generator) for name in self.names}
        return self.predict(noise, do)

    def abduct(self, attributes: Mapping[str, Tensor], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """u ~ p(u | a), ``{name: (B, *E)}``, such that ``predict(abduct(a)) == a`` (flows: to float tolerance)."""
        return self.infer(self._checked(attributes), generator)

    def infer(self, observed: Mapping[str, Tensor], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """:meth:`abduct` of values that have been checked and are on the model's device."""
        size, generator = len(observed[self.names[0]]), reproducible(generator)
        return {name: self.mechanism(name).abduct(observed[name], self.context(name, observed, size), generator)
                for name in self.names}

    def predict(self, noise: Mapping[str, Tensor], do: Do | None = None) -> dict[str, Tensor]:
        """a = f(u) with intervened attributes held, ``{name: (B,)}``; functions see the world without ``do``."""
        natural = self._propagate(noise, {})
        if do is None:
            return natural
        return self.act(natural, noise, resolve_do(self.graph, do, natural, len(natural[self.names[0]]))[0])

    def counterfactual(self, attributes: Mapping[str, Tensor], do: Do, generator: torch.Generator | None = None,
                       noise: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """What ``attributes`` would have been under ``do``: abduct, act, predict (Pearl, 2009, theorem 7.1.7).

        Only the intervened attributes and their descendants change; all others are copies of the observed values, so
        that ``do = {}`` returns the observation. The noise drawn from ``generator`` does not depend on ``do``.

        Args:
            attributes: observed, ``(B,)`` each; other entries are ignored.
            do: see :func:`pgm.interventions.resolve_do`, which also tells what lies beyond the training data.
            generator: of the abducted noise of discrete attributes.
            noise: what :meth:`abduct` said of these attributes; abducted here if not given.

        Raises:
            SchemaError: see :func:`pgm.interventions.resolve_do` and :meth:`datasets.Graph.check`.
        """
        observed = self._checked(attributes)
        values, _ = resolve_do(self.graph, do, observed, len(observed[self.names[0]]))
        return self.act(observed, self.infer(observed, generator) if noise is None else noise, values)

    def act(self, observed: Mapping[str, Tensor], noise: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The world that ``noise`` makes where ``values`` are set and what they do not reach stays as observed.

        Args:
            observed: checked, ``(B,)`` each.
            noise: of :meth:`infer`.
            values: of :func:`pgm.interventions.resolve_do`, ``(B,)`` each.
        """
        changed = self.graph.descendants(values)
        kept = {name: value.clone() for name, value in observed.items() if name not in changed}
        return self._propagate(noise, {**kept, **values})

    def _propagate(self, noise: Mapping[str, Tensor], known: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every attribute in order: the known value, or the effect of its noise and of what came before."""
        values: dict[str, Tensor] = {}
        size = len(noise[self.names[0]])
        for name in self.names:
            if name in known:
                values[name] = known[name]
            else:
                values[name] = self.mechanism(name).predict(noise[name], self.context(name, values, size))
        return values

    def _checked(self, attributes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        check_single_precision(self)
        return {name: value.to(self.device) for name, value in self.graph.check(attributes).items()}


def load_attributes(path: Path) -> AttributeSCM:
    """The SCM that ``pgm.train`` left in a run folder.

    Raises:
        RunError: for a file that cannot be read, or weights that are not finite.
    """
    state = load(path, "attributes")
    scm = rebuilt(path, lambda: AttributeSCM(Graph.from_dict(state["graph"]), AttributeConfig(
        state["config"]["bins"], tuple(state["config"]["hidden"]))), state.get("weights"))
    check_finite(scm, path, "Train it anew with a smaller --learning-rate")
    return scm
