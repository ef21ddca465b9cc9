"""What every loop would give, at every step of sampling.

The trajectory is that of L_max loops. At each of its steps the guided output
is also read after every other number of loops, and compared with the one that
was taken: how much a loop still changes, where in sampling, and how far from
the end result its output is. The state's own changes are recorded too (ELT,
arXiv 2604.09168, Figure 14).
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

from flax import struct
import jax
import jax.numpy as jnp

from elt_jax.models.looped import loop_states
from elt_jax.samplers.guidance import combine, norms
from elt_jax.samplers.plan import Plan
from elt_jax.samplers.sampler import Sampler, State

Array = jax.Array


@struct.dataclass
class Probe:
  """float32 [K, L, b]: of each step, after each loop, of each sample.

  Attributes:
    norm: Euclidean norm of the state of the conditional pass.
    update: norm of what the loop changed in it.
    relative_update: that over the norm of the state before.
    distance: of the guided output after so many loops from that of the loops
      that were taken, as the family measures a change of output.
    effect: of that difference on the state after the step.
  """

  norm: Array
  update: Array
  relative_update: Array
  distance: Array
  effect: Array


def probe(
  sampler: Sampler, taken: int, num_loops: int, *args: Any, **given: Any
) -> Probe:
  """Looks at loops 1..`num_loops` along the trajectory of `taken` loops.

  Args:
    sampler: of any family.
    taken: loops of the trajectory, at most `num_loops`.
    num_loops: loops to look at.
    *args, **given: as in a call of the sampler; of the plan, guidance alone is
      followed, and its loops are `num_loops`.
  """

  def look(state: State, at: dict[str, Array], step: _Step) -> Probe:
    def compare(loops: Array) -> tuple[Array, Array]:
      out = step.guided(loops)
      return (
        sampler.change(state, step.final, out),
        sampler.effect(state, step.final, out, at),
      )

    distance, effect = jax.lax.map(compare, jnp.arange(1, num_loops + 1))
    states, h = step.states.astype(jnp.float32), step.h.astype(jnp.float32)
    before = jnp.concatenate([h[None], states[:-1]])
    norm, update, old = map(jax.vmap(norms), (states, states - before, before))
    return Probe(norm, update, update / old, distance, effect)

  return _along(sampler, taken, num_loops, look, *args, **given)


def exits(
  sampler: Sampler, taken: int, num_loops: int, *args: Any, **given: Any
) -> Array:
  """[K, L, b, ...]: the sample as every loop's output has it, at every step.

  Along the trajectory of `taken` loops; arguments as for `probe`.
  """

  def look(state: State, at: dict[str, Array], step: _Step) -> Array:
    del at
    estimate = lambda loops: sampler.estimate(state, step.guided(loops))
    return jax.lax.map(estimate, jnp.arange(1, num_loops + 1))

  return _along(sampler, taken, num_loops, look, *args, **given)


class _Step(NamedTuple):
  """What the loops of a step give.

  Attributes:
    h: [b, s, d], the state after the embedding.
    states: [L, b, s, d], after each loop of the conditional pass.
    guided: loops -> guided output after so many.
    final: that after the loops that were taken.
  """

  h: Array
  states: Array
  guided: Callable[[Array], Array]
  final: Array


def _along(
  sampler: Sampler,
  taken: int,
  num_loops: int,
  look: Callable[[State, dict[str, Array], _Step], Any],
  *args: Any,
  **given: Any,
) -> Any:
  """What `look` gives of each step of a trajectory of `taken` loops."""

  def step(
    params: Any,
    keys: Array,
    labels: Array,
    state: State,
    plan: Plan,
    at: dict[str, Array],
  ) -> tuple[State, Any]:
    loops = _loops(sampler, taken, num_loops, params, labels, state, plan, at)
    return sampler.advance(keys, state, loops.final, at), look(state, at, loops)

  return sampler.scan(step, *args, **given)[1]


def _loops(
  sampler: Sampler,
  taken: int,
  num_loops: int,
  params: Any,
  labels: Array,
  state: State,
  plan: Plan,
  at: dict[str, Array],
) -> _Step:
  """Of one step on the way of `taken` loops, in passes of `num_loops`."""
  h, block, head = sampler.bind(params, state, labels, at)
  states = loop_states(block, h, num_loops)
  read = functools.partial(_read, head, states)
  read_null = read
  if sampler.null_label is not None:
    null = jnp.full_like(labels, sampler.null_label)
    h_null, block, null_head = sampler.bind(params, state, null, at)
    null_states = loop_states(block, h_null, num_loops)
    read_null = functools.partial(_read, null_head, null_states)

  def guided(loops: Array) -> Array:
    at_most = lambda limit: jnp.minimum(loops, jnp.maximum(limit, 1))
    weak = read(at_most(plan.exit_loop))
    return combine(plan, read(loops), weak, read_null(at_most(plan.null_loops)))

  return _Step(h, states, guided, guided(jnp.int32(taken)))


def _read(head: Any, states: Array, loops: Array) -> Array:
  return head(states[loops - 1])
