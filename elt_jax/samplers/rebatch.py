"""Exit by sample: batches made anew between sampling steps, by difficulty.

A batch in one program runs as many loops as its slowest sample needs. Between
two sampling steps the host sorts all samples by how far their outputs moved
between the first loops of the step before, and cuts batches of samples that
are alike: the easy batches then end early. It costs a program call per batch
and step, with the states through the host; whether that pays is a question of
wall time.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from elt_jax import hosts, sharding
from elt_jax.keys import per_example
from elt_jax.samplers.plan import Plan
from elt_jax.samplers.sampler import Sampler


class Rebatched:
  """Draws any number of samples together, a step at a time."""

  def __init__(self, sampler: Sampler, mesh: Mesh, batch_size: int):
    """`batch_size` is a multiple of the devices of `mesh`."""
    self._sampler = sampler
    self._batch_size = batch_size
    self._batched = sharding.batch_sharding(mesh)
    self._start = jax.jit(
      lambda key, index, given: sampler.start(per_example(key, index), **given)
    )

    def step(params, key, index, *rest):
      state, report = sampler.step(params, per_example(key, index), *rest)
      # A row per sample, as everything that comes back.
      loops = jnp.broadcast_to(report.loops, (len(index), 2))
      return state, loops, report.change

    self._step = jax.jit(step)
    self._finish = jax.jit(sampler.finish)

  def __call__(
    self,
    params: Any,
    key: jax.Array,
    labels: np.ndarray,
    plan: Plan,
    given: dict[str, np.ndarray],
  ) -> tuple[Any, np.ndarray]:
    """One sample per label.

    Args:
      params: model parameters.
      key: key of this draw.
      labels: int32 [n].
      plan: of K steps.
      given: what the sampler's `start` takes besides keys, [n, ...] each.

    Returns:
      (what the sampler gives, in numpy; float [K, 2] loops run, on average).
    """
    batches = sharding.padded_batches(len(labels), self._batch_size)
    index = np.concatenate(list(batches))
    rows = {'index': index, 'labels': labels[index]}
    rows['given'] = {name: values[index] for name, values in given.items()}
    start = lambda part: self._start(key, part['index'], part['given'])
    rows['state'] = self._each(start, rows, np.arange(len(index)))

    schedule = jax.device_get(self._sampler.schedule())
    difficulty, spent = np.zeros(len(index)), []
    for k in range(self._sampler.num_steps):
      of_step = [_row(plan, k), _row(schedule, k)]
      step = lambda part, of_step=of_step: self._step(
        params, key, part['index'], part['labels'], part['state'], *of_step
      )
      order = np.argsort(-difficulty, kind='stable')
      rows['state'], loops, difficulty = self._each(step, rows, order)
      spent.append(loops[: len(labels)].mean(0))
    finish = lambda part: self._finish(part['state'])
    out = self._each(finish, rows, np.arange(len(index)))
    return jax.tree.map(lambda x: x[: len(labels)], out), np.stack(spent)

  def _each(self, program: Any, rows: Any, order: np.ndarray) -> Any:
    """`program` over batches of `rows` in `order`; its results in theirs."""
    out = []
    for part in order.reshape(-1, self._batch_size):
      batch = jax.device_put(_row(rows, part), self._batched)
      out.append(program(batch))
    back = np.argsort(order)
    join = lambda *parts: np.concatenate(parts)[back]
    return jax.tree.map(join, *hosts.fetch(out))


def _row(tree: Any, k: int | np.ndarray) -> Any:
  return jax.tree.map(lambda x: x[k], tree)
