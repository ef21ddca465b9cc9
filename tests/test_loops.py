"""Loop schedules: their forms, shapes, sums and errors."""

import numpy as np
import pytest

from elt_jax.samplers.loops import TOLERANCE, Loops, parse, ramp


@pytest.fixture
def config(config):
  config.sample.num_steps = 10
  config.model.max_loops = 4
  return config


def steps(form, config):
  return list(parse(form, config).steps)


def test_a_number_is_every_step(config):
  for form in (3, '3', ' 3', np.int32(3)):
    assert parse(form, config) == Loops(3, (3,) * 10)


def test_explicit_schedules(config):
  want = [1] * 4 + [3] * 5 + [7]
  assert steps(want, config) == want
  assert steps('explicit:4x1+5x3+7', config) == want
  label = parse(want, config).label
  assert label == 'explicit:4x1+5x3+1x7'
  assert steps(label, config) == want


@pytest.mark.parametrize(
  'form,want',
  [
    # 2.5 + 1.5 (1 - 2 k / 9) = 4, 3.67, 3.33, 3, 2.67, 2.33, 2, 1.67, 1.33, 1:
    # whole parts sum to 22, and the three largest fractions round up.
    ('decreasing:avg=2.5', [4, 4, 3, 3, 3, 2, 2, 2, 1, 1]),
    ('increasing:avg=2.5', [1, 1, 2, 2, 2, 3, 3, 3, 4, 4]),
    ('decreasing:avg=3.5', [4, 4, 4, 4, 4, 3, 3, 3, 3, 3]),
    ('decreasing:avg=4', [4] * 10),
    # 1, 1.75, 2.5, 3.25, 4 and back: 22 whole, the fractions .75 and one .5.
    ('mid-peak:avg=2.5', [1, 2, 3, 3, 4, 4, 3, 2, 2, 1]),
    ('constant:avg=2.5', [3, 2, 3, 2, 3, 2, 3, 2, 3, 2]),
    ('constant:avg=2', [2] * 10),
    ('decreasing', [4, 4, 3, 3, 3, 2, 2, 2, 1, 1]),
  ],
)
def test_presets(config, form, want):
  got = steps(form, config)
  assert got == want
  assert parse(form, config).label == form


@pytest.mark.parametrize(
  'shape', ['constant', 'increasing', 'decreasing', 'mid-peak']
)
def test_ramps_keep_average_bounds_and_order(shape):
  for num_steps in (1, 2, 3, 12, 25):
    for average in np.linspace(1, 5, 23):
      got = np.array(ramp(shape, average, num_steps, 1, 5))
      assert abs(got.sum() - average * num_steps) <= 0.5 + 1e-6
      assert got.min() >= 1 and got.max() <= 5
      if shape == 'increasing':
        assert (np.diff(got) >= 0).all()
      if shape == 'decreasing':
        assert (np.diff(got) <= 0).all()


def test_a_ramp_is_as_steep_as_its_bounds_allow():
  assert ramp('decreasing', 3, 11, 1, 5)[::10] == (5, 1)
  assert ramp('decreasing', 4, 11, 1, 5)[::10] == (5, 3)


def test_converging_loops(config):
  assert parse('converge', config) == Loops(
    'converge', (4,) * 10, 1, TOLERANCE, False
  )
  got = parse('converge:tol=0.2:min=2:max=8', config)
  assert (got.steps, got.min_loops, got.tolerance) == ((8,) * 10, 2, 0.2)
  assert parse('rebatch:tol=0.1', config).rebatch
  assert parse('converge:tol=inf', config).tolerance == np.inf


@pytest.mark.parametrize(
  'form,message',
  [
    (0, 'integer of at least 1; got 0'),
    ([1, 2], r'one per sampling step \(10\).*got \[1, 2\]'),
    ([], r'one per sampling step \(10\).*got \[\]'),
    ([[1] * 10], 'one per sampling step'),
    (None, 'got None'),
    (2.5, 'integer of at least 1; got 2.5'),
    ('', 'is no loop schedule'),
    ('-1', "'-1' is no loop schedule"),
    ('decresing', 'give a number, constant, increasing'),
    ('decreasing:avg=0.5', r'within L_min..L_max = 1..4 .*; got 0.5'),
    ('decreasing:avg=4.5', 'got 4.5'),
    ('decreasing:avg=x', "expected avg=NUMBER.*got 'avg=x'"),
    ('decreasing:mean=3', "got 'mean=3'"),
    ('explicit:', 'STEPSxLOOPS'),
    ('explicit:3x', 'STEPSxLOOPS'),
    ('explicit:9x1', 'is of 9 steps, the sampler makes 10'),
    ('explicit:10x0', 'at least 1'),
    ('converge:min=3:max=2', 'min 3, max 2'),
    ('converge:tol=-1', 'tol -1'),
    ('converge:min=1.5', 'min 1.5'),
    ('converge:tol=nan', "got 'tol=nan'"),
  ],
)
def test_wrong_forms_say_what_is_allowed(config, form, message):
  with pytest.raises(ValueError, match=message):
    parse(form, config)


def test_presets_stay_within_what_was_trained(config):
  config.objective.min_loops = 2
  with pytest.raises(ValueError, match='2..4'):
    parse('increasing:avg=1.5', config)
  assert min(steps('increasing', config)) == 2


def test_models_of_one_loop(config):
  config.model.max_loops, config.objective.exits = 1, 'none'
  assert steps('decreasing', config) == [1] * 10
