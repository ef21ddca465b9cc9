"""K sampling steps of a looped model as one `lax.scan`: what families share.

A family says how a sample starts, what the network sees of it, and how an
output moves it; loops, guidance and convergence are the same for all.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from elt_jax.keys import per_example
from elt_jax.models.elt import ELT, Head
from elt_jax.models.looped import Block
from elt_jax.samplers.guidance import Report, guided
from elt_jax.samplers.plan import Plan

Array = jax.Array
State = Any  # A dataclass of the family; batch first.


@dataclasses.dataclass(frozen=True)
class Sampler:
  """Settings that shape the compiled program, of every family.

  Attributes:
    model: the looped model.
    num_steps: K.
    null_label: the class of the unconditional pass; None if there is none.
    watch: what convergence compares between loops: 'output' or 'state'.
  """

  model: ELT
  num_steps: int
  null_label: int | None
  watch: str

  # ---- What a family defines -------------------------------------------------

  def start(self, keys: Array, **given: Any) -> State:
    """The state before the first step; keys [b], one per sample."""
    raise NotImplementedError

  def schedule(self) -> dict[str, Array]:
    """What else changes from step to step, [K] each."""
    raise NotImplementedError

  def bind(
    self, params: Any, state: State, labels: Array, at: dict[str, Array]
  ) -> tuple[Array, Block, Head]:
    """As `ELT.bind`, for this state; the head gives what `advance` takes."""
    raise NotImplementedError

  def advance(
    self, keys: Array, state: State, output: Array, at: dict[str, Array]
  ) -> State:
    """The state after a step, given the guided output."""
    raise NotImplementedError

  def estimate(self, state: State, output: Array) -> Array:
    """The samples that an output would have all of them be, [b, ...]."""
    raise NotImplementedError

  def change(self, state: State, new: Array, old: Array) -> Array:
    """[b], how far two outputs are from each other; 0 is equal."""
    raise NotImplementedError

  def effect(
    self, state: State, new: Array, old: Array, at: dict[str, Array]
  ) -> Array:
    """[b], how far the outcomes of a step are that two outputs would give."""
    raise NotImplementedError

  def finish(self, state: State) -> Array:
    """The samples, [b, ...]."""
    raise NotImplementedError

  # ---- What follows ----------------------------------------------------------

  def __call__(
    self,
    params: Any,
    key: Array,
    labels: Array,
    plan: Plan,
    index: Array | None = None,
    **given: Any,
  ) -> tuple[Array, Report]:
    """Draws one sample per label.

    Args:
      params: model parameters, as a rule the moving average.
      key: key of this draw.
      labels: int32 [b].
      plan: of K steps; values, so that every plan runs the same program.
      index: int32 [b], default 0..b-1. A sample's noise depends on the key
        and its index alone, not on the batch it is drawn in; so does the
        sample, where the plan's tolerance is 0.
      **given: what `start` of the family takes besides.

    Returns:
      (samples, report): [b, ...], and what each step cost, [K, ...].
    """
    state, report = self.scan(
      self.step, params, key, labels, plan, index, **given
    )
    return self.finish(state), report

  def trajectory(self, *args: Any, **given: Any) -> State:
    """As a call, but returns the state after every step, [K, b, ...]."""

    def step(*now: Any) -> tuple[State, State]:
      state, _ = self.step(*now)
      return state, state

    return self.scan(step, *args, **given)[1]

  def step(
    self,
    params: Any,
    keys: Array,
    labels: Array,
    state: State,
    plan: Plan,
    at: dict[str, Array],
  ) -> tuple[State, Report]:
    """One step; `plan` and `at` are of this step."""
    output, report = guided(
      lambda labels: self.bind(params, state, labels, at),
      labels,
      self.null_label,
      plan,
      self.watch,
      lambda new, old: self.change(state, new, old),
    )
    return self.advance(keys, state, output, at), report

  def scan(
    self,
    step: Callable[..., tuple[State, Any]],
    params: Any,
    key: Array,
    labels: Array,
    plan: Plan,
    index: Array | None = None,
    **given: Any,
  ) -> tuple[State, Any]:
    """(last state, what each step keeps, [K, ...]) of K calls of `step`.

    `step` takes what `Sampler.step` takes and returns (state, kept); the other
    arguments are those of a call.
    """
    index = jnp.arange(labels.shape[0]) if index is None else index
    keys = per_example(key, index)
    plan = jax.tree.map(jnp.asarray, plan)
    return jax.lax.scan(
      lambda state, now: step(params, keys, labels, state, *now),
      self.start(keys, **given),
      (plan, self.schedule()),
    )
