"""Modes of guidance, converging loops and their cost, in both families."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elt_jax import flops
from elt_jax.evals import elastic
from elt_jax.mesh import build_mesh
from elt_jax.models import build_model
from elt_jax.models.looped import run_loops_until
from elt_jax.preview import build_preview
from elt_jax.samplers import build_sampler, plan
from elt_jax.samplers.draw import Draw
from elt_jax.samplers.loops import parse
from elt_jax.samplers.plan import build_plan, least_loops
from tests.conftest import tiny_config
from tests.helpers import init, init_masked, masked_config, noisy

FAMILIES = ('diffusion', 'masked')
MODES = ('cfg', 'cfg_shallow', 'exit', 'cfg+exit')


@dataclasses.dataclass(frozen=True)
class Counting:
  """A model that says how many examples each block and each head sees."""

  model: object
  seen: list

  def __hash__(self):
    return id(self)

  def bind(self, *args):
    h, block, head = self.model.bind(*args)

    def count(what, function):
      def counted(x, *rest):
        # Ordered, so that none is dropped or repeated.
        say = lambda what=what, n=x.shape[0]: self.seen.append((what, n))
        jax.debug.callback(say, ordered=True)
        return function(x, *rest)

      return counted

    return h, count('block', block), count('head', head)


class Family:
  """A tiny sampler whose program notes what it applies."""

  def __init__(self, name, **changes):
    config = tiny_config()
    if name == 'masked':
      config = masked_config(config)
      model, self.params = init_masked(config)
    else:
      model, self.params, _ = init(config)
      self.params = noisy(self.params, 0.3)
    config.sample.update(changes)
    self.config, self.seen, self.traces = config, [], []
    self.sampler = dataclasses.replace(
      build_sampler(config, build_model(config)),
      model=Counting(model, self.seen),
    )

  def run(self, loops=3, **changes):
    """(samples, report) of four samples; `seen` holds what was applied."""
    self.seen.clear()
    made = build_plan(self.config, parse(loops, self.config), **changes)
    samples, report = self._sample(
      self.params, jax.random.key(5), jnp.arange(4), made
    )
    out = jax.tree.leaves(jax.device_get(samples))[0]
    jax.effects_barrier()
    return out, jax.device_get(report), made

  @functools.cached_property
  def _sample(self):
    def program(*args):
      self.traces.append(1)
      return self.sampler(*args)

    return jax.jit(program)


@functools.cache
def family(name, **changes):
  return Family(name, **changes)


def outputs(name, loops, scale, mode='cfg', **changes):
  """The guided output of the first step, before anything is drawn."""
  f = family(name)
  made = build_plan(
    f.config, loops, guidance=scale, guidance_mode=mode, **changes
  )
  captured = {}

  class Capture(type(f.sampler)):
    def advance(self, keys, state, output, at):
      captured['output'] = output
      return super().advance(keys, state, output, at)

  fields = {
    x.name: getattr(f.sampler, x.name) for x in dataclasses.fields(f.sampler)
  }
  sampler = Capture(**fields | {'model': f.sampler.model.model})
  keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(5), i))(
    jnp.arange(4)
  )

  @jax.jit
  def first(params, made):
    at = sampler.schedule()
    row = lambda tree: jax.tree.map(lambda x: jnp.asarray(x)[0], tree)
    sampler.step(
      params, keys, jnp.arange(4), sampler.start(keys), row(made), row(at)
    )
    return captured['output']

  return np.asarray(first(f.params, made))


@pytest.mark.parametrize('name', FAMILIES)
def test_every_mode_is_its_formula(name):
  """Against unguided outputs: conditional, unconditional, at L and at l."""
  c3, c1 = (outputs(name, n, 1.0) for n in (3, 1))
  u3 = outputs(name, 3, 0.0)
  u1 = outputs(name, 3, 0.0, 'cfg_shallow', weak_loops=1)
  assert np.abs(c3 - u3).max() > 1e-3 and np.abs(c3 - c1).max() > 1e-3
  np.testing.assert_allclose(outputs(name, 1, 0.0), u1, atol=1e-5)
  check = functools.partial(np.testing.assert_allclose, atol=3e-5)
  check(outputs(name, 3, 2.5), u3 + 2.5 * (c3 - u3))
  check(outputs(name, 3, 2.5, 'cfg_shallow'), u1 + 2.5 * (c3 - u1))
  check(outputs(name, 3, 2.5, 'exit'), c1 + 2.5 * (c3 - c1))
  both = outputs(name, 3, 2.5, 'cfg+exit', exit_guidance=1.5)
  check(both, c3 + 1.5 * (c3 - u3) + 0.5 * (c3 - c1))


@pytest.mark.parametrize('name', FAMILIES)
def test_modes_that_must_agree(name):
  run = lambda *args, **kw: family(name).run(*args, **kw)[0]
  np.testing.assert_array_equal(
    run(3, guidance_mode='cfg_shallow', weak_loops=3, guidance=2.0),
    run(3, guidance_mode='cfg', guidance=2.0),
  )
  unguided = run(3, guidance=1.0)
  np.testing.assert_array_equal(
    run(3, guidance_mode='exit', guidance=1.0), unguided
  )
  np.testing.assert_array_equal(
    run(3, guidance_mode='cfg+exit', guidance=1.0, exit_guidance=1.0), unguided
  )
  # An exit at the last loop is the output itself.
  np.testing.assert_array_equal(
    run(3, guidance_mode='exit', guidance=4.0, weak_loops=3), unguided
  )
  assert (run(3, guidance_mode='exit', guidance=4.0) != unguided).any()


SETTINGS = [
  *({'guidance_mode': mode, 'guidance': s} for mode in MODES for s in (0, 3)),
  {'guidance': 1.0},
  {'guidance_low': 0.3, 'guidance_high': 0.8},
  {'guidance_schedule': 'linear', 'guidance_mode': 'exit'},
  {'guidance_schedule': 'powcos2', 'guidance': 4.0},
  {'weak_loops': 2, 'guidance_mode': 'cfg_shallow', 'loops': 5},
  {'loops': 1},
  {'loops': 6},
  {'loops': [1, 2, 3, 6]},
  {'loops': 'decreasing'},
  {'loops': 'mid-peak:avg=2'},
  {'loops': 'converge:tol=0.3:max=6'},
  {'loops': 'converge:tol=0.01:min=2', 'guidance_mode': 'cfg+exit'},
  {'loops': 'converge:tol=inf:min=2:max=5', 'guidance_mode': 'exit'},
]


@pytest.mark.parametrize('name', FAMILIES)
def test_one_program_serves_every_setting_and_its_flops_are_counted(name):
  """Blocks and heads that were applied, against those that flops.py counts."""
  f = family(name)
  block, head = flops.macs_per_block(f.config), flops.macs_per_head(f.config)
  fixed = flops.macs_per_pass(f.config, 0) - head
  for setting in SETTINGS:
    loops = setting.get('loops', 3)
    changes = {k: v for k, v in setting.items() if k != 'loops'}
    _, report, made = f.run(loops, **changes)
    assert {n for _, n in f.seen} == {4}
    blocks, heads = (
      sum(what == kind for what, _ in f.seen) for kind in ('block', 'head')
    )
    assert blocks == report.loops.sum()
    passes = (report.loops > 0).sum()
    want = 2 * (passes * fixed + blocks * block + heads * head)
    got = flops.flops_per_sample(f.config, made, report.loops)
    np.testing.assert_allclose(got, want, rtol=1e-9, err_msg=str(setting))
    if not made.tolerance.any():  # What is shown before anything is drawn.
      assert flops.flops_per_sample(f.config, made) == got
  assert len(f.traces) == 1


@pytest.mark.parametrize('name', FAMILIES)
@pytest.mark.parametrize('watch', ['output', 'state'])
def test_tolerance_ends_loops_early(name, watch):
  f = family(name, watch=watch)
  run = lambda tol: f.run(f'converge:tol={tol}:min=2:max=6')
  np.testing.assert_array_equal(run(0)[1].loops, np.full((4, 2), 6))
  np.testing.assert_array_equal(run(0)[0], f.run(6)[0])
  np.testing.assert_array_equal(run('inf')[1].loops, np.full((4, 2), 2))
  np.testing.assert_array_equal(run('inf')[0], f.run(2)[0])
  least = f.run('converge:tol=inf:max=6')
  np.testing.assert_array_equal(least[1].loops, np.full((4, 2), 1))
  # Between them, a tighter tolerance runs at least as many loops at first.
  first = [run(tol)[1].loops[0, 0] for tol in (0.5, 0.1, 0.02, 1e-6)]
  assert first == sorted(first) and first[0] < first[-1] == 6


def test_the_batch_waits_for_its_slowest():
  """By hand: the three examples stop changing after 1, 3 and 4 loops."""
  last = jnp.array([1, 3, 4]).reshape(3, 1, 1)

  def run(count, **changes):
    limits = {'max_loops': 9, 'min_loops': 1, 'tolerance': 0.5, 'exit_loop': 0}
    return run_loops_until(
      lambda h, i: jnp.where(i < last[:count], h + 1, h),
      jnp.zeros((count, 1, 1)),
      lambda h: h,
      lambda new, old: jnp.abs(new - old).reshape(-1),
      **limits | changes,
    )

  # Example 1 is found still at loop 2, example 2 at loop 4, example 3 at 5.
  assert int(run(1).loops) == 2
  assert int(run(2).loops) == 4
  got = run(3)
  assert int(got.loops) == 5
  np.testing.assert_array_equal(got.h.reshape(-1), [1, 3, 4])
  np.testing.assert_array_equal(got.change, [0, 1, 1])  # From loop 1 to 2.
  assert int(run(1, min_loops=4).loops) == 4
  assert int(run(3, max_loops=3).loops) == 3
  exit_ = run(3, exit_loop=2).h_exit
  np.testing.assert_array_equal(exit_.reshape(-1), [1, 2, 2])


def test_guidance_ramps():
  ramp = plan.guidance_ramp
  np.testing.assert_array_equal(ramp('constant', 4), [1, 1, 1, 1])
  np.testing.assert_allclose(ramp('linear', 5), [0, 0.25, 0.5, 0.75, 1])
  np.testing.assert_allclose(
    ramp('powcos1', 4), [0, 0.14644661, 0.5, 0.85355339]
  )
  np.testing.assert_allclose(ramp('powcos2', 2), [0, 0.14644661], rtol=1e-6)


def test_a_plan_has_its_interval_and_its_ramp(config):
  config.sample.num_steps, config.sample.guidance = 10, 3.0
  # Edges that are times themselves: 0.6, 0.5, .. 0.2.
  made = build_plan(config, 2, guidance_low=0.2, guidance_high=0.6)
  np.testing.assert_array_equal(made.null_loops, [0, 0, 0, 0, 2, 2, 2, 2, 2, 0])
  np.testing.assert_array_equal(made.scale, [1] * 4 + [3] * 5 + [1])
  # The ramp starts at nothing: the first step needs no second pass.
  made = build_plan(config, 2, guidance_schedule='linear')
  np.testing.assert_allclose(made.scale, 1 + 2 * np.arange(10) / 9, rtol=1e-6)
  np.testing.assert_array_equal(made.null_loops, [0] + [2] * 9)
  assert not build_plan(config, 2, guidance=1.0).null_loops.any()
  made = build_plan(config, 2, guidance_mode='exit', guidance_low=0.6)
  np.testing.assert_array_equal(made.exit_loop, [1] * 5 + [0] * 5)


@pytest.mark.parametrize(
  'loops,changes,message',
  [
    (2, {'guidance_mode': 'none'}, 'guidance_mode must be one of'),
    (2, {'guidance_mode': 'exit', 'weak_loops': 3}, 'weak_loops = 3 .*1..2'),
    ('decreasing', {'guidance_mode': 'cfg_shallow', 'weak_loops': 2}, '1..1'),
    (
      'converge',
      {'guidance_mode': 'exit', 'weak_loops': 2},
      'may stop after 1 loops.*give min=2',
    ),
    (
      'converge',
      {'guidance_mode': 'cfg+exit', 'weak_loops': 2},
      'weak_loops = 2; give min=2',
    ),
    (
      'increasing',
      {'guidance_mode': 'cfg+exit', 'weak_loops': 2},
      'weak_loops = 2 is more than the 1 loops of a step',
    ),
    (2, {'weak_loops': 0}, 'weak_loops must be at least 1'),
    (2, {'guidance': -1.0}, 'guidance must be at least 0'),
    (2, {'guidance': float('nan')}, 'guidance must be at least 0'),
    (2, {'guidance': float('inf')}, 'guidance must be at least 0'),
    (2, {'guidance_schedule': 'cosine'}, "'powcos2.5'; got 'cosine'"),
    (2, {'num_steps': 3}, "'num_steps' is no value of a plan"),
    (2, {'guidance_low': 0.9, 'guidance_high': 0.1}, '0 <= low'),
  ],
)
def test_wrong_plans_say_what_is_allowed(config, loops, changes, message):
  with pytest.raises(ValueError, match=message):
    build_plan(config, loops, **changes)


def test_clips_in_bfloat16(config):
  """Every mode, on [f, h, w, c] samples and states in half precision."""
  config.data.num_frames, config.model.dtype = 2, 'bfloat16'
  model, params, _ = init(config)
  mesh = build_mesh({'data': 1, 'fsdp': 1, 'tensor': 1}, jax.devices()[:1])
  draw, params = Draw(config, model, mesh, 4), noisy(params, 0.3)
  samples = [
    draw(params, [0, 1, 2], loops, 0, guidance_mode=mode, guidance=2.0)
    for mode in MODES
    for loops in (3, 'converge:tol=inf:min=2')
  ]
  assert {x.shape for x in samples} == {(3, 2, 8, 8, 1)}
  assert len({x.tobytes() for x in samples}) == len(samples)
  found = draw.probe(params, 3, 4, seed=0)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))


def test_previews_begin_where_the_guidance_can(config):
  """A weak output at loop 2 leaves L = 1 out of what a run draws of itself."""
  config.sample.update({'guidance_mode': 'exit', 'weak_loops': 2})
  model, params, _ = init(config)
  mesh = build_mesh({'data': 1, 'fsdp': 1, 'tensor': 1}, jax.devices()[:1])
  picture = build_preview(config, model, mesh, None)(params)
  assert picture.shape == (2 * 10 + 2, 10 * 10 + 2, 3)
  assert elastic.loop_counts(config) == [2, 3, 5, 6]


@pytest.mark.parametrize(
  'mode,guidance,exit_guidance,least',
  [
    ('cfg', 2.0, 2.0, 1),
    ('exit', 2.0, 1.0, 2),
    ('exit', 1.0, 2.0, 1),
    ('cfg+exit', 2.0, 1.0, 1),
    ('cfg+exit', 1.0, 2.0, 2),
  ],
)
def test_the_fewest_loops_are_those_a_plan_takes(
  config, mode, guidance, exit_guidance, least
):
  scales = {'guidance': guidance, 'exit_guidance': exit_guidance}
  config.sample.update({'guidance_mode': mode, 'weak_loops': 2} | scales)
  assert least_loops(config) == least
  build_plan(config, least)
  if least > 1:
    with pytest.raises(ValueError, match='is more than the 1 loops'):
      build_plan(config, 1)


def test_previews_that_cannot_be_drawn_are_refused_before_training(config):
  config.sample.update({'guidance_mode': 'exit', 'weak_loops': 4})
  model, _, _ = init(config)
  mesh = build_mesh({'data': 1, 'fsdp': 1, 'tensor': 1}, jax.devices()[:1])
  with pytest.raises(
    ValueError, match=r'weak_loops = 4 is more .*max_loops = 3'
  ):
    build_preview(config, model, mesh, None)


def test_only_guidance_without_a_class_needs_no_dropped_labels(config):
  config.objective.label_dropout, config.sample.guidance = 0.0, 1.0
  with pytest.raises(ValueError, match='label_dropout > 0'):
    build_plan(config, 2, guidance=2.0)
  build_plan(config, 2, guidance=2.0, guidance_mode='exit')
