"""The probe against single runs, and budgets filled from what it measures."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elt_jax.samplers import build_sampler, calibration
from elt_jax.samplers.draw import Draw
from elt_jax.samplers.loops import parse
from elt_jax.samplers.plan import build_plan
from elt_jax.samplers.probe import probe
from tests.conftest import tiny_config
from tests.helpers import init, init_masked, masked_config, noisy


def made(family):
  """(config, model, parameters)."""
  config = tiny_config()
  if family == 'masked':
    config = masked_config(config)
    return config, *init_masked(config)
  model, params, _ = init(config)
  return config, model, noisy(params, 0.3)


@pytest.mark.parametrize('family', ['diffusion', 'masked'])
@pytest.mark.parametrize('mode', ['cfg', 'cfg_shallow', 'cfg+exit'])
def test_the_probe_reads_what_other_loops_would_give(family, mode):
  """Its distances, against single steps with so many loops."""
  config, model, params = made(family)
  sampler = build_sampler(config, model)
  changes = {'guidance_mode': mode, 'guidance': 2.0, 'exit_guidance': 1.5}
  key, labels = jax.random.key(3), jnp.arange(4)
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(4))
  look = functools.partial(probe, sampler, 3, 5)
  found = jax.jit(look)(
    params, key, labels, build_plan(config, 5, **changes), jnp.arange(4)
  )
  assert found.distance.shape == (4, 5, 4)

  outputs = []

  class Capture(type(sampler)):
    def advance(self, keys, state, output, at):
      outputs.append(output)
      return super().advance(keys, state, output, at)

  capture = Capture(**vars(sampler))

  @jax.jit
  def output(loops, plan, state, at):
    del loops
    capture.step(params, keys, labels, state, plan, at)
    return outputs.pop()

  plans = [build_plan(config, n, **changes) for n in range(1, 6)]
  schedule = jax.device_get(sampler.schedule())
  states = jax.jit(sampler.trajectory)(params, key, labels, plans[2])
  first = sampler.start(keys)
  for k in (0, 2):
    row = functools.partial(jax.tree.map, lambda x, k=k: x[k])
    state = first if k == 0 else jax.tree.map(lambda x: x[1], states)
    out = [output(n, row(p), state, row(schedule)) for n, p in enumerate(plans)]
    want = np.stack([sampler.change(state, out[2], x) for x in out])
    np.testing.assert_allclose(found.distance[k], want, atol=2e-5)
    assert (found.distance[k, 2] == 0).all() and (want[0] > 1e-4).all()


def test_the_probe_measures_the_state():
  config, model, params = made('diffusion')
  sampler = build_sampler(config, model)
  key, labels = jax.random.key(3), jnp.arange(4)
  found = jax.jit(functools.partial(probe, sampler, 3, 4))(
    params, key, labels, build_plan(config, 4), jnp.arange(4)
  )
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(4))
  z = sampler.start(keys).z
  h, block, _ = model.bind(params, z, jnp.ones(4), labels)
  norm = lambda x: np.linalg.norm(np.asarray(x).reshape(4, -1), axis=1)
  for i in range(4):
    after = block(h, i)
    np.testing.assert_allclose(found.norm[0, i], norm(after), rtol=1e-4)
    np.testing.assert_allclose(found.update[0, i], norm(after - h), rtol=1e-4)
    np.testing.assert_allclose(
      found.relative_update[0, i],
      norm(after - h) / norm(h),
      rtol=1e-4,
    )
    h = after


def test_a_draw_probes_in_batches():
  """A mean over samples, also where the last batch is not full."""
  config, model, params = made('diffusion')
  mesh = jax.make_mesh(
    (1, 1, 1),
    ('data', 'fsdp', 'tensor'),
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
    devices=jax.devices()[:1],
  )
  whole, halves = (
    Draw(config, model, mesh, size).probe(params, 6, 4, seed=0)
    for size in (6, 4)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    whole,
    halves,
  )


def test_a_budget_goes_where_loops_count():
  # Step 1 gains most from its second loop, then step 0; step 2 gains nothing.
  effect = np.array([[0.4, 0.2, 0.0], [0.9, 0.1, 0.0], [0.0, 0.0, 0.0]])
  one = np.ones(3)
  fill = lambda budget: calibration.fill(effect, one, 1, budget)
  assert fill(3 / 9) == [1, 1, 1]
  assert fill(4 / 9) == [1, 2, 1]
  assert fill(6 / 9) == [3, 2, 1]
  assert fill(1) == [3, 3, 3]


def test_a_loop_that_gains_only_with_the_next_is_seen():
  effect = np.array([[0.5, 0.6, 0.0], [0.3, 0.2, 0.15]])
  # The first step: nothing for one loop, 0.25 each for two.
  assert calibration.fill(effect, np.ones(2), 1, 4 / 6) == [3, 1]


def test_a_loop_of_two_passes_costs_twice():
  effect = np.array([[0.3, 0.0], [0.2, 0.0]])
  assert calibration.fill(effect, np.array([1, 1]), 1, 0.75) == [2, 1]
  assert calibration.fill(effect, np.array([2, 1]), 1, 4 / 6) == [1, 2]
  # Either could be paid for: the second gains more for its price.
  assert calibration.fill(effect, np.array([2, 1]), 1, 5 / 6) == [1, 2]


def test_budgets_are_respected_within_one_loop():
  rng = np.random.default_rng(0)
  for _ in range(200):
    num_steps, high = rng.integers(1, 9), rng.integers(1, 6)
    low = rng.integers(1, high + 1)
    effect = rng.random((num_steps, high))
    effect[:, -1] = 0
    cost = rng.integers(1, 3, num_steps)
    budget = rng.uniform(low / high, 1)
    got = np.array(calibration.fill(effect, cost, low, budget))
    spent, allowed = (got * cost).sum(), budget * high * cost.sum()
    assert got.min() >= low and got.max() <= high
    # What is left would not pay for a loop of any step that may have more.
    more = cost[got < high]
    assert spent <= allowed + 1e-6
    assert not len(more) or spent + more.min() > allowed + 1e-6


def test_greedy_is_best_where_gains_fall():
  """Against every schedule, on effects that are convex in the loops."""
  rng = np.random.default_rng(1)
  for _ in range(20):
    gains = -np.sort(-rng.random((4, 3)), axis=1)
    effect = gains[:, ::-1].cumsum(1)[:, ::-1]
    effect = np.concatenate([effect, np.zeros((4, 1))], 1)
    total = rng.integers(4, 17)
    left = lambda loops, e=effect: sum(e[k, n - 1] for k, n in enumerate(loops))
    got = calibration.fill(effect, np.ones(4), 1, total / 16)
    best = min(
      left(s)
      for s in itertools.product(range(1, 5), repeat=4)
      if sum(s) <= total
    )
    np.testing.assert_allclose(left(got), best, atol=1e-9)


@pytest.fixture
def workdir(tmp_path, config):
  """With a calibration of the tiny config: 4 steps, L_max 3."""
  report = {
    'recipe': {'num_steps': 4, 'method': 'ddim'},
    'effect': [[0.1, 0.0, 0.0], [0.3, 0.2, 0.0], [0.2, 0.1, 0.0], [0, 0, 0]],
    'cost': [2, 2, 2, 2],
    'low': 1,
    'schedules': {},
  }
  calibration.write(str(tmp_path), report)
  return tmp_path


def test_calibrated_schedules_are_read_from_the_workdir(config, workdir):
  loops = parse('calibrated:0.5', config, str(workdir))
  assert loops.label == 'calibrated:0.5' and sum(loops.steps) == 6
  assert parse('calibrated:1', config, str(workdir)).steps == (3,) * 4


@pytest.mark.parametrize(
  'budget', ['0.3', '1.1', '-1', 'nan', 'half', '', 'inf']
)
def test_budgets_that_cannot_be_met(config, workdir, budget):
  with pytest.raises(ValueError, match=r'1..3 loops a step are 0.333..1'):
    parse(f'calibrated:{budget}', config, str(workdir))


def test_calibrations_of_another_sampler_are_refused(config, workdir):
  config.sample.num_steps = 5
  with pytest.raises(ValueError, match='num_steps = 4, and this sampler has 5'):
    parse('calibrated:0.5', config, str(workdir))


def test_missing_and_damaged_calibrations(config, workdir, tmp_path):
  with pytest.raises(ValueError, match='make it with python -m elt_jax.cal'):
    parse('calibrated:0.5', config, str(tmp_path / 'none'))
  with pytest.raises(ValueError, match='elt_jax.calibrate --workdir=DIR'):
    parse('calibrated:0.5', config)
  (workdir / 'calibration.json').write_text(json.dumps({'recipe': {}}))
  with pytest.raises(ValueError, match='is no calibration'):
    parse('calibrated:0.5', config, str(workdir))
