"""The loop: one block of N unique layers applied L times with shared weights.

`block(h, loop_index) -> h` closes over the shared parameters and over whatever
conditions them; `h` is any array whose shape and dtype the block preserves.
Writing g for the block, the network body is F_(N,L)(x) = g^L(x) (ELT, arXiv
2604.09168, section 3). What changes between the functions below is only how
many times g runs, who chooses that number (a constant, an argument, or the
state itself), and which states are kept.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
Block = Callable[[Array, Array], Array]


def run_loops(
  block: Block,
  h: Array,
  num_loops: int,
  exit_loop: int | Array | None = None,
  *,
  unroll: bool = False,
) -> tuple[Array, Array | None]:
  """Applies `block` `num_loops` times; differentiable.

  Args:
    block: one application of the shared layers.
    h: [b, s, d] state after the embedding.
    num_loops: L, a Python int, because reverse-mode needs a static trip count.
    exit_loop: L_int in [1, L], int or traced int32 scalar: the loop whose
      state is returned beside the last one. It is selected, not branched on,
      so one compiled program serves every exit.
    unroll: unrolls the scan. Faster on CPU; compile time then grows with L.

  Returns:
    (h_final, h_exit): states after L and after L_int applications, the second
    None if no exit was asked for.

  Raises:
    ValueError: if `num_loops` or a static `exit_loop` is out of range.
  """
  if num_loops < 1:
    raise ValueError(f'num_loops must be at least 1, got {num_loops}.')
  if isinstance(exit_loop, int) and not 1 <= exit_loop <= num_loops:
    raise ValueError(
      f'exit_loop must be in [1, num_loops] = [1, {num_loops}], '
      f'got {exit_loop}.'
    )

  def body(carry, i):
    h, h_exit = carry
    h = block(h, i)
    if exit_loop is not None:
      h_exit = jnp.where(i == exit_loop - 1, h, h_exit)
    return (h, h_exit), None

  carry = (h, None if exit_loop is None else h)
  carry, _ = jax.lax.scan(
    body, carry, jnp.arange(num_loops), unroll=num_loops if unroll else 1
  )
  return carry


def run_loops_dynamic(
  block: Block,
  h: Array,
  num_loops: int | Array,
  exit_loop: int | Array | None = None,
) -> tuple[Array, Array | None]:
  """As `run_loops`, with a traced `num_loops`: one program for every count.

  A traced bound lowers to a while loop, which has no reverse mode: sampling
  only. With `exit_loop` > `num_loops` the exit is never reached and `h_exit`
  is the input state; callers check the values they pass.
  """

  def body(i, carry):
    h, h_exit = carry
    h = block(h, i)
    if exit_loop is not None:
      h_exit = jnp.where(i == exit_loop - 1, h, h_exit)
    return h, h_exit

  carry = (h, None if exit_loop is None else h)
  return jax.lax.fori_loop(0, jnp.asarray(num_loops, jnp.int32), body, carry)


class Run(NamedTuple):
  """What `run_loops_until` returns.

  Attributes:
    h: [b, s, d] state after the last loop.
    h_exit: state after `exit_loop` loops; the input where that is 0.
    seen: `look(h)` of the last loop, where something was watched.
    loops: int32 scalar, how many were run.
    change: float32 [b], the first change that was measured, or infinity: what
      tells one example from another before they stop.
  """

  h: Array
  h_exit: Array
  seen: Any
  loops: Array
  change: Array


def run_loops_until(
  block: Block,
  h: Array,
  look: Callable[[Array], Any],
  change: Callable[[Any, Any], Array],
  *,
  max_loops: Array,
  min_loops: Array,
  tolerance: Array,
  exit_loop: Array,
) -> Run:
  """As `run_loops_dynamic`, ending when the whole batch has converged.

  A batch in one while loop waits for its slowest member, so the loop ends
  when the largest change of the batch is at most `tolerance`.

  Args:
    block, h: see `run_loops`.
    look: state -> what is watched, of any tree of arrays, such as the output.
    change: (new, old) -> [b], how far two looks are from each other.
    max_loops: int32 scalar, at least 1.
    min_loops: int32 scalar.
    tolerance: float32 scalar. 0 looks at nothing and runs `max_loops`;
      infinity runs `min_loops`. The first loop has nothing to compare with:
      between them, two loops are the least.
    exit_loop: int32 scalar, see `Run`.
  """
  watching = tolerance > 0
  first = jnp.maximum(min_loops - 1, 1)  # The look that the next compares with.
  b = h.shape[0]

  def more(carry):
    i, _, _, _, now, _ = carry
    converged = watching & (i >= min_loops) & (jnp.max(now) <= tolerance)
    return (i < max_loops) & ~converged

  def body(carry):
    i, h, h_exit, seen, now, earliest = carry
    h, i = block(h, i), i + 1
    h_exit = jnp.where(i == exit_loop, h, h_exit)

    def measure():
      new = look(h)
      return new, jnp.where(i > first, change(new, seen), jnp.inf)

    due = watching & ((i >= first) | (i == max_loops))
    seen, now = jax.lax.cond(due, measure, lambda: (seen, now))
    earliest = jnp.where(i == first + 1, now, earliest)
    return i, h, h_exit, seen, now, earliest

  nothing = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(look, h)
  )
  far = jnp.full(b, jnp.inf)
  i, h, h_exit, seen, _, earliest = jax.lax.while_loop(
    more, body, (jnp.int32(0), h, h, nothing, far, far)
  )
  return Run(h, h_exit, seen, i, earliest)


def loop_states(
  block: Block, h: Array, num_loops: int, *, unroll: bool = False
) -> Array:
  """The state after each loop, [L, b, s, d]: every exit of one pass."""

  def body(h, i):
    h = block(h, i)
    return h, h

  _, states = jax.lax.scan(
    body, h, jnp.arange(num_loops), unroll=num_loops if unroll else 1
  )
  return states
