"""The optimizer step: schedules, decay, clipping, averages, accumulation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from elt_jax import optim
from elt_jax.keys import random_stream
from elt_jax.sharding import batch_sharding
from elt_jax.train_step import build_telemetry, ema_decay
from tests.conftest import tiny_config
from tests.helpers import Stack, abstract_params, make_batch, objective_of


def run(stack, step, steps):
  """(state, metrics of every step) from the start."""
  state, metrics = stack.create(), []
  for i in range(steps):
    batch = make_batch(stack.config, seed=i)
    batch = jax.device_put(batch, batch_sharding(stack.mesh))
    state, found = step(state, batch)
    metrics.append(found)
  return jax.device_get((state, metrics))


def run_new(config, steps, shape=None):
  """As `run`, with everything built anew."""
  stack = Stack(config, shape)
  return run(stack, stack.step(), steps)


@functools.cache
def tiny():
  """(stack, step) of the tiny config on one device: no test changes them."""
  stack = Stack(tiny_config())
  return stack, stack.step()


def test_training_lowers_the_loss_on_one_batch(config):
  config.optim.learning_rate = 3e-3
  config.objective.exits = 'none'
  stack = Stack(config)
  state, step, losses = stack.create(), stack.step(), []
  batch = make_batch(config)
  # A picture per class, with nothing in it that cannot be learned.
  batch['image'][:] = 80 * batch['label'].reshape(-1, 1, 1, 1)
  batch = jax.device_put(batch, batch_sharding(stack.mesh))
  for _ in range(150):
    state, metrics = step(state, batch)
    losses.append(float(metrics['loss']))
  assert np.mean(losses[-20:]) < 0.7 * np.mean(losses[:20])


def test_one_compilation_for_all_steps():
  stack, step = tiny()
  _, metrics = run(stack, step, 6)
  assert step._cache_size() == 1
  assert len({float(m['exit_loop']) for m in metrics}) > 1


def test_the_same_seed_gives_the_same_numbers_and_another_does_not(config):
  stack, step = tiny()
  first, _ = run(stack, step, 2)
  again, _ = run_new(config, 2)
  jax.tree.map(np.testing.assert_array_equal, first, again)
  config.train.seed = 1
  other, same = Stack(config).create(), stack.create()
  kernel = lambda s: np.asarray(s.params['layers']['mlp']['in']['kernel'])
  assert np.abs(kernel(same) - kernel(other)).max() > 0


def test_accumulation_equals_the_whole_batch(config):
  """Parts of a batch over eight devices, the whole of it on one."""
  whole, whole_metrics = run(*tiny(), 2)
  config.train.accumulate_steps = 2
  shape = {'data': 4, 'fsdp': 2, 'tensor': 1}
  parts, parts_metrics = run_new(config, 2, shape)
  np.testing.assert_allclose(
    whole_metrics[-1]['loss'], parts_metrics[-1]['loss'], rtol=1e-5
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5),
    whole.params,
    parts.params,
  )


def test_telemetry_looks_at_one_part_on_all_devices(config):
  config.train.accumulate_steps = 2
  stack = Stack(config, {'data': 2, 'fsdp': 2, 'tensor': 2})
  objective = objective_of(config)
  look = build_telemetry(config, objective, stack.mesh, stack.shardings)
  batch, state = make_batch(config), stack.create()
  placed = jax.device_put(batch, batch_sharding(stack.mesh))
  found = jax.device_get(look(state, placed))
  part = {name: values[::2] for name, values in batch.items()}
  key = random_stream(config.train.seed, 'train')
  params = jax.device_get(state.params)
  want = jax.jit(objective.telemetry)(params, part, key, 0)
  for name, values in found.items():
    assert values.shape == (2 * config.model.max_loops,)
    np.testing.assert_allclose(values, want[name], rtol=1e-4, atol=1e-6)


def test_ema_warms_up_and_follows_the_parameters(config):
  decays = [float(ema_decay(jnp.int32(s), 0.99)) for s in (0, 90, 10**6)]
  np.testing.assert_allclose(decays, [0.1, 0.91, 0.99], rtol=1e-6)
  config.optim.ema_decay = 0.0
  state, _ = run_new(config, 2)
  jax.tree.map(np.testing.assert_array_equal, state.params, state.ema)


def test_weight_decay_touches_kernels_alone(config):
  params = abstract_params(config)
  mask = optim.decay_mask(params)
  for (path, decays), leaf in zip(
    jax.tree_util.tree_flatten_with_path(mask)[0],
    jax.tree.leaves(params),
    strict=True,
  ):
    assert decays == (path[-1].key == 'kernel'), path
    assert leaf.ndim >= 2 or not decays
  assert not mask['embed']['classes'] and mask['embed']['patch']['kernel']

  config.optim.weight_decay, config.optim.learning_rate = 0.5, 0.1
  optimizer = optim.build_optimizer(config)
  fill = lambda value: jax.tree.map(
    lambda x: np.full(x.shape, value, x.dtype), params
  )
  update = lambda ones: optimizer.update(fill(0), optimizer.init(ones), ones)
  updates, _ = jax.jit(update)(fill(1))
  np.testing.assert_allclose(updates['head']['out']['kernel'], -0.05, rtol=1e-6)
  np.testing.assert_array_equal(updates['head']['out']['bias'], 0)


def test_clipping_bounds_the_update_direction(config):
  config.optim.clip_norm = 0.5
  optimizer = optim.build_optimizer(config)
  clip = optimizer.update
  params = {'w': {'kernel': jnp.zeros(4)}}
  big = {'w': {'kernel': jnp.array([3.0, 4.0, 0.0, 0.0])}}
  _, state = clip(big, optimizer.init(params), params)
  # Adam's first moment is (1 - b1) times the clipped gradient.
  moment = optax.tree_utils.tree_get(state, 'mu')['w']['kernel']
  np.testing.assert_allclose(np.linalg.norm(moment), 0.1 * 0.5, rtol=1e-5)


@pytest.mark.parametrize(
  'schedule,at_half,at_end',
  [
    ('constant', 1.0, 1.0),
    ('linear', 0.5, 0.0),
    ('cosine', 0.5, 0.0),
    ('rsqrt', (1 + 50 / 10) ** -0.5, (1 + 100 / 10) ** -0.5),
  ],
)
def test_schedules(config, schedule, at_half, at_end):
  config.train.num_steps = 110
  config.optim.update(
    {'schedule': schedule, 'warmup_steps': 10, 'learning_rate': 2.0}
  )
  rate = optim.learning_rate(config)
  np.testing.assert_allclose(rate(0), 0.0)
  np.testing.assert_allclose(rate(5), 1.0)
  np.testing.assert_allclose(rate(10), 2.0)
  np.testing.assert_allclose(rate(60), 2 * at_half, rtol=1e-5)
  np.testing.assert_allclose(rate(110), 2 * at_end, atol=1e-6)
