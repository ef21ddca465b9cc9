"""Runs of a sweep: combinations in order, names, and what is refused."""

import numpy as np
import pytest

from elt_jax import hyper
from elt_jax.hyper import chainit, fixed, product, sweep, zipit

LR, LOOPS = 'optim.learning_rate', 'model.max_loops'


def expand(part):
  return hyper.expand(part, 'configs/x.py', '1,2')


def overrides(part):
  return [dict(run.overrides) for run in expand(part)]


def names(part):
  return [run.name for run in expand(part)]


def test_the_last_part_of_a_product_varies_fastest():
  part = product([sweep(LR, [1e-3, 3e-4]), sweep(LOOPS, (2, 3))])
  assert overrides(part) == [
    {LR: 1e-3, LOOPS: 2},
    {LR: 1e-3, LOOPS: 3},
    {LR: 3e-4, LOOPS: 2},
    {LR: 3e-4, LOOPS: 3},
  ]
  assert names(part)[1:3] == [
    'learning_rate=0.001,max_loops=3',
    'learning_rate=0.0003,max_loops=2',
  ]


def test_zips_chains_and_products_nest():
  part = product(
    [
      zipit([sweep('model.num_layers', [4, 8]), sweep(LOOPS, [2, 1])]),
      chainit([sweep(LR, [1e-5]), sweep('optim.clip_norm', [0.0, 1.0])]),
      fixed('train.num_steps', 7),
    ]
  )
  found = overrides(part)
  assert len(found) == 6
  assert found[1] == {
    'model.num_layers': 4,
    LOOPS: 2,
    'optim.clip_norm': 0.0,
    'train.num_steps': 7,
  }
  # What all runs share is not in their names.
  assert names(part) == [
    f'num_layers={n},max_loops={loops},{rest}'
    for n, loops in ((4, 2), (8, 1))
    for rest in ('learning_rate=1e-05', 'clip_norm=0.0', 'clip_norm=1.0')
  ]


def test_a_given_name_stands_for_what_it_was_given_with():
  exits = [
    {'name': 'ilsd', 'overrides': {'objective.exits': 'ilsd', LOOPS: 4}},
    {'name': 'plain', 'overrides': {'objective.exits': 'none'}, 'loops': '1'},
  ]
  assert names(exits) == ['ilsd', 'plain']
  runs = expand(product([exits, sweep('train.seed', range(2))]))
  assert [(run.name, run.loops) for run in runs] == [
    ('ilsd,seed=0', '1,2'),
    ('ilsd,seed=1', '1,2'),
    ('plain,seed=0', '1'),
    ('plain,seed=1', '1'),
  ]
  configs = [{'config': f'configs/x.py:{v}'} for v in ('8Nx4L', '32N')]
  assert names(product([exits[:1], configs])) == ['ilsd,8Nx4L', 'ilsd,32N']


def test_a_run_may_have_a_config_of_its_own():
  variants = [{'config': f'configs/x.py:{v}'} for v in ('8Nx4L', '32N')]
  runs = expand(product([variants, fixed(LR, 0.1)]))
  assert [run.name for run in runs] == ['8Nx4L', '32N']
  assert [run.config for run in runs] == [
    'configs/x.py:8Nx4L',
    'configs/x.py:32N',
  ]
  other = expand([{'config': 'configs/y.py'}, {}])
  assert [run.name for run in other] == ['y.py', 'x.py']
  assert [run.config for run in other] == ['configs/y.py', 'configs/x.py']


@pytest.mark.parametrize(
  'part,wanted',
  [
    (chainit([[{}], sweep(LR, [0.1])]), ['base', 'learning_rate=0.1']),
    (fixed(LR, 0.1), ['learning_rate=0.1']),
    (sweep('a.b', [(1, 1, 2), ()]), ['b=1-1-2', 'b=']),
    (sweep('a.b', ['gs://x y', True]), ['b=gs_x_y', 'b=True']),
    # Keys of the same end are told apart.
    (
      zipit(
        [sweep('train.num_steps', [1, 2]), sweep('sample.num_steps', [3, 4])]
      ),
      [
        'train.num_steps=1,sample.num_steps=3',
        'train.num_steps=2,sample.num_steps=4',
      ],
    ),
  ],
)
def test_names_say_what_varies(part, wanted):
  assert names(part) == wanted


def test_numbers_of_numpy_are_plain_ones():
  (run, _) = sweep(LR, np.geomspace(1e-3, 1e-2, 2))
  assert type(run.overrides[LR]) is float
  (run,) = fixed('a.b', [np.int64(1), 2])
  assert (
    run.overrides['a.b'] == (1, 2) and repr(run.overrides['a.b']) == '(1, 2)'
  )


@pytest.mark.parametrize(
  'make,message',
  [
    (lambda: sweep(LR, []), 'optim.learning_rate has no values'),
    (lambda: sweep('a.b', 'ilsd'), "a.b needs a list of values, got 'ilsd'"),
    (lambda: product([]), 'a list without any'),
    (lambda: product([sweep(LR, [1]), []]), 'a list without any'),
    (lambda: expand([]), 'a list without any'),
    (
      lambda: zipit([sweep(LR, [1, 2]), sweep(LOOPS, [1, 2, 3])]),
      r'as many runs each \(optim.learning_rate: 2; model.max_loops: 3\)',
    ),
    (
      lambda: product([sweep(LR, [1]), sweep(LR, [2])]),
      'optim.learning_rate is given twice, by optim.learning_rate=2 too',
    ),
    (
      lambda: zipit([[{'loops': '1'}], [{'loops': '2'}]]),
      'loops is given twice',
    ),
    (
      lambda: expand(sweep(LR, [0.1, 0.2, 0.1])),
      'learning_rate=0.1 and learning_rate=0.1 are the same: '
      'config=configs/x.py, optim.learning_rate=0.1',
    ),
    (
      lambda: expand(
        [
          {'name': 'a', 'overrides': {LR: 1}},
          {'name': 'b', 'overrides': {LR: 1.0}, 'loops': '3'},
        ]
      ),
      'The runs a and b are the same',
    ),
    (
      lambda: expand(
        [
          {'name': 'a', 'overrides': {LR: 1}},
          {'name': 'a', 'overrides': {LR: 2}},
        ]
      ),
      'Two runs have the name a: .*learning_rate=1 and .*learning_rate=2',
    ),
    (
      lambda: expand(sweep('a.b', ['x y', 'x/y'])),
      'Two runs have the name b=x_y',
    ),
    (lambda: expand([{'name': '../a'}]), "'../a' cannot name a run"),
    (lambda: expand([{'name': 'a' * 101}]), 'cannot name a run'),
    (lambda: expand([{'overides': {}}]), "A run is a dict of .*'overides'"),
    (lambda: expand(['a']), "A run is a dict of .*got 'a'"),
  ],
)
def test_what_makes_no_sense_is_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()
