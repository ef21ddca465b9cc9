"""The sweep runner: what it runs, what it skips, what it writes."""

import csv
import importlib
import importlib.util
import json
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SWEEP = """
CONFIG = 'configs/mnist_diffusion.py'
LOOPS = '1,2'
def get_sweep():
  return [
      {'name': 'a', 'overrides': {'objective.exits': 'none'}},
      {'name': 'b', 'overrides': {}, 'loops': '1'},
  ]
"""


@pytest.fixture
def runner():
  spec = importlib.util.spec_from_file_location(
    'sweep', ROOT / 'launch' / 'sweep.py'
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def fake_command(calls):
  """Records a command; 'evaluate' leaves the report a real one would."""

  def command(module, *args):
    calls.append((module, *args))
    options = dict(arg.removeprefix('--').split('=', 1) for arg in args)
    if module == 'evaluate':
      loops = map(int, options['loops'].split(','))
      rows = [
        {
          'loops': n,
          'fd_lenet': 1.0 / n,
          'class_accuracy': 0.5,
          'gflops_per_sample': float(n),
          'seconds_per_sample': 0.1,
        }
        for n in loops
      ]
      workdir = pathlib.Path(options['workdir'])
      (workdir / 'checkpoints' / '7').mkdir(parents=True, exist_ok=True)
      recipe = {'num_samples': int(options['num']), 'checkpoint_step': 7}
      recipe['quality'] = 'fd_lenet'
      report = {'recipe': recipe, 'rows': rows}
      (workdir / 'elastic.json').write_text(json.dumps(report))

  return command


def test_runs_once_and_summarizes(runner, tmp_path, monkeypatch):
  (tmp_path / 'sweep.py').write_text(SWEEP)
  argv = ['sweep', f'--sweep={tmp_path}/sweep.py', f'--workdir={tmp_path}/w']
  monkeypatch.setattr(sys, 'argv', argv)
  calls = []
  monkeypatch.setattr(runner, 'command', fake_command(calls))
  runner.main()
  assert [call[0] for call in calls] == ['train', 'evaluate'] * 2
  assert '--config.objective.exits=none' in calls[0]
  assert '--loops=1,2' in calls[1] and '--loops=1' in calls[3]
  with (tmp_path / 'w' / 'summary.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert [(r['run'], r['loops']) for r in rows] == [
    ('a', '1'),
    ('a', '2'),
    ('b', '1'),
  ]
  assert (tmp_path / 'w' / 'summary.png').stat().st_size > 1000

  # Started again, only what is missing or of another recipe is measured;
  # 'train' returns at once by itself.
  evaluated = lambda: [call[1] for call in calls if call[0] == 'evaluate']
  (tmp_path / 'w' / 'b' / 'elastic.json').unlink()
  calls.clear()
  runner.main()
  assert len(evaluated()) == 1 and evaluated()[0].endswith('/w/b')
  calls.clear()
  monkeypatch.setattr(sys, 'argv', [*argv, '--num=9'])
  runner.main()
  assert len(evaluated()) == 2


@pytest.mark.parametrize(
  'text,message', [(None, 'no sweep file'), ('CONFIG = 1', 'defines no LOOPS')]
)
def test_bad_sweep_files_end_with_a_message(
  runner, tmp_path, monkeypatch, text, message
):
  path = tmp_path / 'sweep.py'
  if text:
    path.write_text(text)
  monkeypatch.setattr(sys, 'argv', ['x', f'--sweep={path}', '--workdir=w'])
  with pytest.raises(SystemExit, match=message):
    runner.main()


@pytest.mark.parametrize(
  'file,names',
  [
    (
      'mnist_ablation',
      ['ilsd', 'random_depth', 'vanilla', 'deep_supervision', 'unlooped'],
    ),
    ('mnist_masked_ablation', ['ilsd', 'vanilla']),
    ('moving_mnist_ablation', ['ilsd', 'vanilla']),
  ],
)
def test_the_overrides_of_sweeps_are_valid_configs(runner, file, names):
  from elt_jax.config import validate

  sweep = runner.load(str(ROOT / 'configs' / 'sweeps' / f'{file}.py'))
  name = sweep.CONFIG.removesuffix('.py').replace('/', '.')
  experiment = importlib.import_module(name)
  for entry in sweep.get_sweep():
    config = experiment.get_config()
    config.update_from_flattened_dict(entry['overrides'])
    validate(config)
  assert [entry['name'] for entry in sweep.get_sweep()] == names
