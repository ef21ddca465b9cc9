"""One guided evaluation of a looped model, in every mode; see `plan`.

A mode is a matter of values: how many loops the conditional and the
unconditional pass run, at which loop the weak output is read, and the two
scales. Each pass may also end early, when its output has converged.
"""

from collections.abc import Callable

from flax import struct
import jax
import jax.numpy as jnp

from elt_jax.models.elt import Head
from elt_jax.models.looped import Block, run_loops_until
from elt_jax.samplers.plan import Plan

Array = jax.Array


@struct.dataclass
class Report:
  """What an evaluation cost, and how hard its examples were.

  Attributes:
    loops: int32 [2], loops run by the conditional and unconditional pass.
    change: float32 [b], the first relative change that was measured in the
      conditional pass; infinity where the tolerance is 0.
  """

  loops: Array
  change: Array


def guided(
  bind: Callable[[Array], tuple[Array, Block, Head]],
  labels: Array,
  null_label: int | None,
  plan: Plan,
  watch: str,
  change: Callable[[Array, Array], Array],
) -> tuple[Array, Report]:
  """The output of one sampling step.

  Args:
    bind: labels -> (h, block, head), as `ELT.bind`.
    labels: int32 [b].
    null_label: the class that stands for no condition; None if the model has
      none and is never guided by it.
    plan: of this step, traced scalars.
    watch: what convergence compares from loop to loop, 'output' or 'state'.
    change: (new, old) -> [b], how far two outputs are from each other.

  Returns:
    ([b, ...] output, report).
  """

  def run(labels: Array, loops: Array, exit_loop: Array):
    h, block, head = bind(labels)
    watch_output = watch == 'output'
    run = run_loops_until(
      block,
      h,
      head if watch_output else lambda h: h,
      change if watch_output else relative_change,
      max_loops=loops,
      min_loops=plan.min_loops,
      tolerance=plan.tolerance,
      exit_loop=exit_loop,
    )
    last = lambda: head(run.h)
    if watch_output:  # The last look was at it.
      out = jax.lax.cond(plan.tolerance > 0, lambda: run.seen, last)
    else:
      out = last()
    weak = jax.lax.cond(exit_loop > 0, lambda: head(run.h_exit), lambda: out)
    return out, weak, run.loops, run.change

  # The passes take turns in one loop of the program, where one batch of twice
  # the size could run both: so each runs as many loops as it is given, and
  # the body is compiled once.
  passes = (labels[None], plan.loops[None], plan.exit_loop[None])
  if null_label is not None:
    null = (jnp.full_like(labels, null_label), plan.null_loops, jnp.int32(0))
    passes = jax.tree.map(
      lambda x, y: jnp.concatenate([x, y[None]]), passes, null
    )
  shapes = jax.eval_shape(run, labels, plan.loops, plan.exit_loop)
  nothing = lambda *_: jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), shapes
  )
  out, weak, loops, changes = jax.lax.map(
    lambda x: jax.lax.cond(x[1] > 0, run, nothing, *x), passes
  )
  if null_label is None:
    loops = jnp.pad(loops, (0, 1))
  # A pass that was left out gave zeros, and its scale is 1.
  result = combine(plan, out[0], weak[0], out[-1])
  return result, Report(loops, changes[0])


def combine(plan: Plan, strong: Array, weak: Array, null: Array) -> Array:
  """The guided output: see `plan` for the formula of every mode.

  Args:
    plan: of one step.
    strong: conditional output after all loops.
    weak: conditional output of the exit, of any value where it does not guide.
    null: unconditional output, likewise.
  """
  return (
    strong
    + (plan.exit_scale - 1) * (strong - weak)
    + (plan.scale - 1) * (strong - null)
  )


def relative_change(new: Array, old: Array) -> Array:
  """|new - old| / |new| of every example, [b]: Euclidean norms, in float32."""
  new, old = new.astype(jnp.float32), old.astype(jnp.float32)
  return norms(new - old) / jnp.maximum(norms(new), 1e-12)


def norms(x: Array) -> Array:
  """Euclidean norm of every example, [b]."""
  return jnp.sqrt(jnp.sum(jnp.square(x), tuple(range(1, x.ndim))))
