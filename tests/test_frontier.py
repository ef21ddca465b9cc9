"""The frontier: what is on it, what is measured, what is not measured again."""

import json
import types

import jax
import numpy as np
import pytest

from elt_jax.evals import elastic, frontier, frontier_report
from elt_jax.evals.frontier import Point, Sweep
from elt_jax.mesh import build_mesh
from elt_jax.models import build_model
from elt_jax.samplers.draw import Draw, Drawn
from elt_jax.samplers.plan import parse_guidance

COST = 'gflops_per_sample'


def row(point, cost, quality, seed=0, **more):
  return {
    'point': point,
    'seed': seed,
    COST: cost,
    'seconds_per_sample': cost / 100,
    'fd_lenet': quality,
    'class_accuracy': 0.9,
    'mean_loops': 2.0,
  } | more


def test_the_frontier_by_hand():
  rows = [
    row(*r)
    for r in (
      ('a', 1, 9.0),
      ('b', 1, 8.0),
      ('c', 2, 8.5),
      ('d', 3, 5.0),
      ('e', 4, 5.0),
    )
  ]
  rows = frontier.summarize(rows, 1, 'fd_lenet')
  assert [r['point'] for r in frontier.pareto(rows, COST)] == ['b', 'd']
  best = lambda budget: frontier.best_within(rows, COST, budget)
  assert best(2.5)['point'] == 'b' and best(9)['point'] == 'd'
  assert best(0.5) is None


def test_seeds_are_means_with_half_their_range():
  rows = [row('a', 1, 9.0), row('a', 1.2, 10.0, 1), row('b', 2, 5.0)]
  rows += [row('a', 1.0, 11.0, 2)]
  a, b = frontier.summarize(rows, 0, 'fd_lenet')
  # The seed that chose is left out, where there are others.
  assert (a['quality'], a['spread'], a['seeds']) == (10.5, 0.5, 2)
  assert (b['quality'], b['spread'], b['seeds']) == (5.0, None, 1)
  assert a['chosen'] and not b['chosen']
  np.testing.assert_allclose(a[COST], 1.1)


@pytest.mark.parametrize(
  'text,want',
  [
    ('none', {'guidance': 1.0}),
    ('cfg:2', {'guidance_mode': 'cfg', 'guidance': 2.0}),
    (
      'exit:1.5:weak=2',
      {'guidance_mode': 'exit', 'guidance': 1.5, 'weak_loops': 2},
    ),
    (
      'cfg+exit:2:exit=3:weak=1',
      {
        'guidance_mode': 'cfg+exit',
        'guidance': 2.0,
        'exit_guidance': 3.0,
        'weak_loops': 1,
      },
    ),
  ],
)
def test_words_of_guidance(text, want):
  assert parse_guidance(text) == want


@pytest.mark.parametrize(
  'text',
  [
    'cfg',
    'cfg:',
    'cgf:2',
    'cfg:x',
    'cfg:2:weak=1',
    'exit:2:exit=1',
    'exit:2:weak=1.5',
    'exit:2:weak=inf',
    'exit:2:weak=0',
    '',
  ],
)
def test_wrong_words_of_guidance(text):
  with pytest.raises(ValueError, match='no guidance|expected|weak must be'):
    parse_guidance(text)


@pytest.fixture
def measured(monkeypatch, config):
  """(how to make a Sweep, what was measured), with nothing really drawn."""
  config.sample.guidance = 2.0
  seen = []

  def measure(draw, params, reference, loops, num, seed, refined, **changes):
    seen.append((loops.label, changes['guidance'], seed))
    cost = sum(loops.steps) * (1 + (changes['guidance'] != 1))
    found = row('', cost, 10 / cost + seed, loops=loops.label)
    return {k: v for k, v in found.items() if k not in ('point', 'seed')}, None

  recipe = {
    'quality': 'fd_lenet',
    'floor': 1.0,
    'max_loops_in_training': 3,
  }
  monkeypatch.setattr(elastic, 'measure', measure)
  reference = types.SimpleNamespace(quality='fd_lenet')
  monkeypatch.setattr(elastic, 'load_reference', lambda *_: reference)
  monkeypatch.setattr(elastic, 'make_recipe', lambda *_: dict(recipe))

  model = build_model(config)
  mesh = build_mesh({'data': 1, 'fsdp': 1, 'tensor': 1}, jax.devices()[:1])

  def make(workdir, num=8):
    draw = Draw(config, model, mesh, 4, workdir=workdir)
    draw.sample = lambda *args, **kwargs: Drawn(None, [])
    return Sweep(workdir, draw, {}, 5, num)

  return make, seen


def test_a_sweep_goes_on_where_it_was(measured, tmp_path):
  make, seen = measured
  points = [Point(n, g) for n in ('1', '3') for g in ('cfg:2', 'none')]
  make(str(tmp_path)).measure(points[:3], [0])
  assert seen == [(1, 2.0, 0), (1, 1.0, 0), (3, 2.0, 0)]
  # As if killed there: nothing is measured twice.
  sweep = make(str(tmp_path))
  sweep.measure(points, [0, 1])
  second = [(1, 2.0, 1), (1, 1.0, 1), (3, 2.0, 1), (3, 1.0, 1)]
  assert seen[3:] == [(3, 1.0, 0), *second]
  stored = json.loads((tmp_path / 'frontier.json').read_text())
  assert stored['rows'] == sweep.rows and len(sweep.rows) == 8
  assert stored['recipe']['num_samples'] == 8
  with pytest.raises(ValueError, match='num_samples = 8, not 9'):
    make(str(tmp_path), num=9)


def test_files_of_something_else_are_left_alone(measured, tmp_path):
  path = tmp_path / 'frontier.json'
  for text in ('{"rows": []}', '[]', 'half of {'):
    path.write_text(text)
    with pytest.raises(ValueError, match='is no report of a frontier'):
      measured[0](str(tmp_path))
    assert path.read_text() == text


def test_a_calibration_made_again_is_measured_again(measured, tmp_path):
  make, seen = measured
  point = [Point('calibrated:0.5', 'none')]
  calibrate = lambda effect: (tmp_path / 'calibration.json').write_text(
    json.dumps(
      {
        'recipe': {'num_steps': 4, 'method': 'ddim'},
        'effect': effect,
        'cost': [1] * 4,
        'low': 1,
      }
    )
  )
  calibrate([[0.9, 0.1, 0]] + [[0.1, 0.1, 0]] * 3)
  make(str(tmp_path)).measure(point, [0, 1])
  make(str(tmp_path)).measure(point, [0, 1])
  assert len(seen) == 2
  calibrate([[0.1, 0.1, 0]] * 3 + [[0.9, 0.1, 0]])
  sweep = make(str(tmp_path))
  sweep.measure(point, [0])
  assert len(seen) == 3
  assert [row['seed'] for row in sweep.rows] == [0]  # None of the old ones.


def test_impossible_points_are_left_out_and_nonsense_is_refused(
  measured, tmp_path
):
  sweep = measured[0](str(tmp_path))
  points = [Point('1', 'exit:2:weak=2'), Point('2', 'exit:2:weak=2')]
  assert sweep.possible(points) == points[1:]
  # An exit of the last loop is no guidance; cfg at one loop is not shallow.
  same = [Point('2', g) for g in ('exit:3:weak=2', 'none', 'cfg:1')]
  assert sweep.possible(same) == [Point('2', 'none')]
  shallow = [Point('1', 'cfg:2'), Point('1', 'cfg_shallow:2')]
  assert sweep.possible(shallow) == shallow[:1]
  with pytest.raises(ValueError, match='No point.*weak_loops = 2 is more'):
    sweep.possible(points[:1])
  with pytest.raises(ValueError, match='guidance must be at least 0'):
    sweep.possible([Point('1', 'cfg:-1')])
  with pytest.raises(ValueError, match='is for masked models'):
    sweep.possible([Point('1', 'none', 'rounds=1')])
  with pytest.raises(ValueError, match='is no guidance'):
    sweep.possible([Point('1', 'what')])
  with pytest.raises(ValueError, match='is no loop schedule'):
    sweep.possible([Point('what', 'none')])


def test_the_report_names_the_best_at_each_cost(tmp_path):
  rows = [
    *(row('L=2, cfg:2', 2, q, seed) for seed, q in enumerate((1, 9.0, 9.4))),
    *(row('L=3, cfg:2', 3, q, seed) for seed, q in enumerate((1, 8.0, 8.1))),
    *(
      row('decreasing, exit:2', 1.5, q, seed)
      for seed, q in enumerate((1, 8.0, 8.2))
    ),
    row('converge, none', 1.0, 1.0),  # Of one seed: not settled.
  ]
  recipe = types.MappingProxyType(
    {
      'num_samples': 8,
      'checkpoint_step': 5,
      'num_steps': 4,
      'sampler': 'ddim',
      'max_loops_in_training': 3,
      'quality': 'fd_lenet',
      'floor': 0.5,
    }
  )
  summary = frontier.summarize(rows, 0, 'fd_lenet')
  paths = frontier_report.write(
    str(tmp_path), dict(recipe), summary, ['L=2, cfg:2', 'L=3, cfg:2']
  )
  text = paths[0].read_text()
  assert (
    '| L=2, cfg:2 | 9.20 ± 0.20 | decreasing, exit:2 | 8.10 ± 0.10 | no |'
    in text
  )
  assert '| L=3, cfg:2 | 8.05 ± 0.05 | yes |' in text
  # One point with a name that is longer than the picture is wide.
  long = frontier.summarize(
    [row(f'L=1, cfg:2, refine {"x" * 200}', 1, 2.0)], 0, 'fd_lenet'
  )
  frontier_report.write(str(tmp_path), dict(recipe), long, [])
  assert '| converge, none | 1.00 |' in text.split('## Every point')[1]
  assert 'converge, none' not in text.split('## Every point')[0]
  assert paths[1].stat().length > 10_000
