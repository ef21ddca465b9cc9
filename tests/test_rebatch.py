"""Exit by sample: the same samples in other company, and fewer loops."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elt_jax.mesh import build_mesh
from elt_jax.samplers.draw import Draw
from elt_jax.samplers.plan import Plan
from elt_jax.samplers.rebatch import Rebatched
from elt_jax.samplers.sampler import Sampler
from tests.conftest import tiny_config
from tests.helpers import init, init_masked, masked_config, noisy


@dataclasses.dataclass(frozen=True)
class Countdown(Sampler):
  """Sample i's output moves until loop 1 + labels[i], at every step."""

  def start(self, keys, given):
    return {'x': jnp.zeros((len(keys), 1)), 'given': given}

  def schedule(self):
    return {'k': jnp.arange(self.num_steps)}

  def bind(self, params, state, labels, at):
    last = labels.reshape(-1, 1, 1)
    block = lambda h, i: jnp.where(i <= last, h + 1, h)
    return jnp.zeros((len(labels), 1, 1)), block, lambda h: h[:, 0]

  def advance(self, keys, state, output, at):
    return state | {'x': state['x'] + output}

  def change(self, state, new, old):
    return jnp.abs(new - old)[:, 0]

  def finish(self, state):
    return state['x'][:, 0] + 100 * state['given']


def plan(num_steps, tolerance):
  whole = lambda value: np.full(num_steps, value, np.int32)
  real = lambda value: np.full(num_steps, value, np.float32)
  return Plan(
    whole(6), whole(0), whole(0), real(1), real(1), whole(1), real(tolerance)
  )


def test_easy_batches_end_early():
  mesh = build_mesh({'data': 1, 'fsdp': 1, 'tensor': 1}, jax.devices()[:1])
  sampler = Countdown(None, 3, None, 'output')
  draw = Rebatched(sampler, mesh, batch_size=4)
  # Two easy and two hard samples in each batch of the given order, and a last
  # batch that is not full.
  labels = np.array([0, 4, 0, 4] * 2 + [0, 4], np.int32)
  given = {'given': np.arange(10)}
  out, loops = draw({}, jax.random.key(0), labels, plan(3, 0.5), given)
  # An easy sample moves once a step and is found still at its second loop.
  np.testing.assert_array_equal(out, 3 * (labels + 1) + 100 * np.arange(10))
  # Rows are 5 easy and 7 hard, for the last one fills up its batch. First
  # every batch waits for its hard ones, found still at loop 6; then the seven
  # fill one batch and most of another, whose easy sample waits with them.
  np.testing.assert_allclose(loops[:, 0], [6, 4.4, 4.4])
  np.testing.assert_array_equal(loops[:, 1], 0)


def test_batches_of_two():
  mesh = build_mesh({'data': 1, 'fsdp': 1, 'tensor': 1}, jax.devices()[:1])
  draw = Rebatched(Countdown(None, 3, None, 'output'), mesh, batch_size=2)
  labels = np.array([0, 4, 1, 3], np.int32)
  given = {'given': np.zeros(4)}
  out, loops = draw({}, jax.random.key(0), labels, plan(3, 0.5), given)
  np.testing.assert_array_equal(out, 3 * (labels + 1))
  # (0, 4) and (1, 3) first; then by what they moved from loop 1 to 2, which
  # of those at hand is 1 of all but the first: it goes to the last batch.
  np.testing.assert_allclose(loops[0], [(6 + 5) / 2, 0])
  np.testing.assert_allclose(loops[1:, 0], [(6 + 5) / 2] * 2)


@pytest.mark.parametrize('family', ['diffusion', 'masked'])
def test_without_an_early_exit_nothing_changes(family):
  """A tolerance that is never met: the samples of plain batches, in order."""
  config = tiny_config()
  if family == 'masked':
    config = masked_config(config)
    model, params = init_masked(config)
  else:
    model, params, _ = init(config)
    params = noisy(params, 0.3)
  mesh = build_mesh({'data': 1, 'fsdp': 1, 'tensor': 1}, jax.devices()[:1])
  draw = Draw(config, model, mesh, batch_size=4)
  labels = np.arange(10) % 4
  plain = draw(params, labels, 3, seed=0)
  again = draw.sample(params, labels, 'rebatch:tol=1e-30:min=3', seed=0)
  np.testing.assert_allclose(again.samples, plain, atol=1e-5)
  np.testing.assert_array_equal(again.spent[0].loops, np.full((4, 2), 3))
