"""The commands as a user runs them: real processes, killed ones included."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from elt_jax import config as config_lib
from elt_jax import flops
from tests.commands import (
  IN_TURN,
  ROOT,
  TINY,
  metrics,
  picture_size,
  run,
  start,
  state_files,
  timeless,
  wait_for_step,
)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """The flag of a file of so few images that a classifier learns at once."""
  path = tmp_path_factory.mktemp('data') / 'few.npz'
  rng = np.random.default_rng(0)
  np.savez(
    path,
    image=rng.integers(0, 256, (50, 8, 8, 1), np.uint8),
    label=np.arange(50) % 10,
    test_image=rng.integers(0, 256, (30, 8, 8, 1), np.uint8),
    test_label=np.arange(30) % 10,
  )
  return f'--config.data.source=npz:{path}'


@pytest.fixture(scope='module')
def trained(tmp_path_factory, data):
  """A workdir trained straight to step 24."""
  workdir = tmp_path_factory.mktemp('trained') / 'run'
  run(
    'train',
    *TINY,
    data,
    f'--workdir={workdir}',
    '--config.train.num_steps=24',
    '--config.train.sample_every_steps=12',
    '--config.train.telemetry_every_steps=12',
    '--config.profile.steps=4,6',
  )
  return workdir


def test_training_writes_what_it_says(trained):
  records = metrics(trained)
  assert [r['step'] for r in records] == [4, 8, 12, 16, 20, 24]
  for name in (
    'loss',
    'gt_final',
    'gt_exit',
    'distill',
    'gt_weight',
    'grad_norm',
  ):
    assert all(np.isfinite(r[f'train/{name}']) for r in records)
  looked = [r['step'] for r in records if 'loop_6/loss' in r]
  assert looked == [12, 24]
  assert sorted(p.name for p in (trained / 'checkpoints').iterdir()) == [
    '20',
    '24',
  ]
  assert list((trained / 'logs').glob('events.out.tfevents.*'))
  size = picture_size(trained / 'samples' / '00000024.png')
  assert size == (2 * (10 * 10 + 2), 2 * (3 * 10 + 2))


def test_the_trace_has_the_steps_asked_for_and_no_others(trained):
  import jax

  # Where TensorBoard looks for it.
  (path,) = trained.glob('logs/plugins/profile/*/*.xplane.pb')
  steps = {
    dict(event.stats)['step_num']
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes
    for line in plane.lines
    for event in line.events
    if event.name == 'train'
  }
  assert steps == {4, 5, 6}


def test_the_log_has_the_flops_of_a_device(trained):
  config = config_lib.load(trained)
  for record in metrics(trained)[1:]:
    rate = record['train/steps_per_second']
    np.testing.assert_allclose(
      record['train/tflops_per_device'],
      flops.flops_per_step(config) * rate / 1e12,
    )
    assert 'train/mfu' not in record  # Of this CPU no peak is known.


def test_killed_run_resumes_bit_for_bit(trained, data, tmp_path):
  import jax

  workdir = tmp_path / 'run'
  args = (*TINY, data, f'--workdir={workdir}', '--config.train.num_steps=24')
  args += ('--config.train.telemetry_every_steps=12',)
  process = start('train', *args)
  # Killed at a moment of the second half that differs from run to run.
  wait_for_step(process, workdir, 8)
  time.sleep(np.random.default_rng().uniform(0, 0.05))
  process.kill()
  process.communicate()
  assert not (workdir / 'checkpoints' / '24').exists()
  _, err = run('train', *args)
  assert 'Resumed' in err
  want, want_data = state_files(trained, 24)
  got, got_data = state_files(workdir, 24)
  jax.tree.map(np.testing.assert_array_equal, want, got)
  assert want_data == got_data == {'next_step': 24}
  assert timeless(metrics(workdir)) == timeless(metrics(trained))


@pytest.mark.parametrize(
  'number',
  [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)],
)
def test_signal_saves_and_exits_with_143(tmp_path, number):
  workdir = tmp_path / 'run'
  process = start(
    'train', *TINY, f'--workdir={workdir}', '--config.train.num_steps=100000'
  )
  wait_for_step(process, workdir, 4)
  process.send_signal(number)
  began = time.monotonic()
  _, err = process.communicate(timeout=60)
  assert process.returncode == 143, err[-3000:]
  assert time.monotonic() - began < 10
  assert 'Stopping at step' in err
  step = int(err.split('Stopping at step ')[1].split()[0])
  assert (workdir / 'checkpoints' / str(step)).exists()
  assert metrics(workdir)[-1]['step'] == step


def test_sample_draws_a_row_per_loop_count(trained, tmp_path):
  out = tmp_path / 'grid.png'
  args = (f'--workdir={trained}', f'--out={out}', '--num=10', '--scale=1')
  text, _ = run('sample', *args, '--loops=1,2,6', '--labels=3,1')
  assert 'step 24' in text
  assert picture_size(out) == (10 * 10 + 2, 3 * 10 + 2)


def test_evaluate_writes_the_elastic_report(trained, tmp_path):
  out, _ = run(
    'evaluate',
    f'--workdir={trained}',
    '--loops=1,3,6',
    '--num=40',
    env={'ELT_JAX_CACHE': str(tmp_path)},
  )
  assert 'floor' in out
  report = json.loads((trained / 'elastic.json').read_text())
  assert [row['loops'] for row in report['rows']] == [1, 3, 6]
  for row in report['rows']:
    assert row['fd_lenet'] > 0 and 0 <= row['class_accuracy'] <= 1
    assert row['seconds_per_sample'] > 0
  gflops = [row['gflops_per_sample'] for row in report['rows']]
  np.testing.assert_allclose(
    gflops[2] - gflops[1], 1.5 * (gflops[1] - gflops[0]), rtol=1e-6
  )
  recipe = report['recipe']
  assert recipe['num_samples'] == 40 and recipe['checkpoint_step'] == 24
  assert picture_size(trained / 'elastic.png')[0] > 800
  # A number per sampling step and loop, to 2 L_max.
  for name in ('norm', 'update', 'relative_update', 'distance'):
    assert np.shape(report['telemetry']['sampling'][name]) == (3, 6)
  looks = report['telemetry']['training']
  assert [look['step'] for look in looks] == [12, 24]
  assert np.shape(looks[1]['loss']) == (6,)
  assert picture_size(trained / 'telemetry.png')[0] > 800


@pytest.mark.slow
def test_a_budget_is_calibrated_and_the_frontier_found(trained, tmp_path):
  out, _ = run(
    'calibrate', f'--workdir={trained}', '--budget=0.5,1', '--num=12'
  )
  assert 'calibrated:1   3.00 loops a step, 100% of the way' in out
  report = json.loads((trained / 'calibration.json').read_text())
  assert np.shape(report['effect']) == (3, 3)
  assert report['schedules']['1'] == 'explicit:3x3'
  assert report['recipe']['num_samples'] == 12
  _, err = run(
    'sample',
    f'--workdir={trained}',
    f'--out={tmp_path}/grid.png',
    '--num=2',
    '--loops=calibrated:0.5,decreasing,converge,explicit:2x1+1x6',
    '--guidance_mode=cfg_shallow',
  )
  assert 'loops calibrated:0.5 (1.33 a step over 3 steps)' in err
  assert 'loops explicit:2x1+1x6 (2.67 a step over 3 steps)' in err
  assert 'Loops run at each step: ' in err  # Of converge.
  assert picture_size(tmp_path / 'grid.png') == (2 * 22, 2 * 42)
  args = [f'--workdir={trained}', '--loops=1,decreasing,calibrated:0.5']
  args += ['--guidances=cfg:1.5,exit:2', '--num=20', '--seeds=0,1']
  env = {'ELT_JAX_CACHE': str(tmp_path)}
  out, err = run('frontier', *args, env=env)
  assert '6/6  calibrated:0.5, exit:2, seed 0' in err
  assert '| L=1, cfg:1.5 |' in (trained / 'frontier.md').read_text()
  assert picture_size(trained / 'frontier.png')[0] > 800
  rows = json.loads((trained / 'frontier.json').read_text())['rows']
  assert len({(r['point'], r['seed']) for r in rows}) == len(rows) >= 8
  # Nothing is left to do.
  _, err = run('frontier', *args, env=env)
  assert 'seed' not in err


def test_show_prints_without_training(tmp_path):
  out, _ = run('show', *TINY)
  for text in (
    '"max_loops": 3',
    'layers/mlp/in/kernel',
    'GMACs per pass',
    'beyond L_max',
    'in the transformer layers',
  ):
    assert text in out, text


USER_ERRORS = [
  (
    ['train', *TINY, '--config.model.wdith=8', '--workdir=x'],
    'Did you mean "width"',
  ),
  (['train', *TINY], '--workdir is required'),
  (
    ['train', *TINY, '--workdir=x', '--config.objective.min_loops=3'],
    'got 3 and 3',
  ),
  (
    ['train', *TINY, '--workdir=x', '--config.mesh.fsdp=2'],
    'does not fit 1 devices',
  ),
  (
    ['train', *TINY, '--workdir=s3://bucket/run'],
    'must be a directory or gs://bucket/directory, got s3://bucket/run',
  ),
  (['show', '--config=configs/none.py'], 'configs/none.py'),
  (['show', '--config=configs/mnist_diffusion.py:what'], "no variant 'what'"),
  (['sample', '--workdir={trained}', '--loops=0'], 'integer of at least 1'),
  (['sample', '--workdir={trained}', '--loops=two'], "'two' is no loop"),
  (
    ['sample', '--workdir={trained}', '--loops=decreasing:avg=4'],
    'within L_min..L_max = 1..3',
  ),
  (
    ['sample', '--workdir={trained}', '--loops=explicit:2x1'],
    'is of 2 steps, the sampler makes 3',
  ),
  (
    ['sample', '--workdir={trained}', '--guidance_mode=best'],
    "must be one of ('cfg', 'cfg_shallow', 'exit', 'cfg+exit'), got 'best'",
  ),
  (
    [
      'evaluate',
      '--workdir={trained}',
      '--guidance_mode=exit',
      '--weak_loops=3',
      '--loops=2',
    ],
    'weak_loops = 3 is more than the 2 loops',
  ),
  (
    ['sample', '--workdir={trained}', '--refine=share=0.5'],
    'Refinement is for masked models',
  ),
  (
    ['calibrate', '--workdir={trained}', '--budget=0.2'],
    "A budget of '0.2' cannot be met: 1..3 loops a step are 0.333..1",
  ),
  (
    ['frontier', '--workdir={trained}', '--num=20', '--guidances=cgf:2'],
    "'cgf:2' is no guidance",
  ),
  (['sample', '--workdir={trained}', '--labels=10'], 'in 0..9'),
  (['sample', '--workdir={trained}', '--out=grid.txt'], 'must end in .png'),
  (['sample', '--workdir={empty}'], 'has no config.json'),
  (['sample', '--workdir={untrained}'], 'has no checkpoint yet'),
  (['evaluate', '--workdir={empty}/none'], 'has no config.json'),
  (['evaluate', '--workdir={trained}', '--num=1'], '--num must be at least 2'),
]


@pytest.fixture(scope='module')
def answers(trained, tmp_path_factory):
  """(exit code, stdout, stderr) of every command line of USER_ERRORS."""
  names = {'trained': trained}
  for name in ('empty', 'untrained'):
    names[name] = tmp_path_factory.mktemp(name)
  config = (trained / 'config.json').read_text()
  (names['untrained'] / 'config.json').write_text(config)
  lines = [
    [arg.format(**names) if '{' in arg else arg for arg in line]
    for line, _ in USER_ERRORS
  ]
  # A module that another command imports is run again, and runpy says so.
  done = subprocess.run(
    [sys.executable, '-W', 'ignore::RuntimeWarning:runpy', '-c', IN_TURN],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    input=json.dumps(lines),
    capture_output=True,
    text=True,
    timeout=180,
  )
  assert done.returncode == 0 and not done.stderr, done.stderr[-3000:]
  return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
  'number,message',
  [(i, message) for i, (_, message) in enumerate(USER_ERRORS)],
)
def test_user_errors_are_one_line_and_exit_2(answers, number, message):
  code, out, err = answers[number]
  assert code == 2
  assert message in err and 'Traceback' not in err
  assert len(err.strip().splitlines()) == 1 and err.startswith('Error: ')
  assert not out
  assert not (ROOT / 'x').exists() and not (ROOT / 'gs:').exists()


def test_workdir_of_another_config_is_refused_and_untouched(trained, data):
  before = sorted(str(p) for p in trained.rglob('*'))
  _, err = run(
    'train',
    *TINY,
    data,
    f'--workdir={trained}',
    '--config.train.num_steps=24',
    '--config.model.width=32',
    code=2,
  )
  assert 'model.width: 16 there, 32 here' in err
  assert sorted(str(p) for p in trained.rglob('*')) == before


def test_loss_that_is_not_finite_stops_the_run_and_saves_nothing(tmp_path):
  workdir = tmp_path / 'run'
  _, err = run(
    'train',
    *TINY,
    f'--workdir={workdir}',
    '--config.train.num_steps=40',
    '--config.optim.learning_rate=1e30',
    '--config.optim.warmup_steps=0',
    '--config.optim.clip_norm=0',
    '--config.objective.exits=none',
    code=1,
  )
  assert 'gt_final is ' in err or 'param_norm is ' in err
  assert 'Traceback' not in err
  steps = [int(p.name) for p in (workdir / 'checkpoints').iterdir()]
  failed = int(err.split('Not finite at step ')[1].split(':')[0])
  assert all(step < failed for step in steps)


@pytest.mark.slow
def test_commands_run_on_eight_devices(tmp_path):
  eight = '--xla_force_host_platform_device_count=8'
  env = {'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} {eight}'}
  workdir = tmp_path / 'run'
  _, err = run(
    'train',
    *TINY,
    f'--workdir={workdir}',
    '--config.train.num_steps=4',
    '--config.mesh.data=4',
    '--config.mesh.fsdp=2',
    env=env,
  )
  assert "'data': 4, 'fsdp': 2" in err
  out = tmp_path / 'grid.png'
  run('sample', f'--workdir={workdir}', f'--out={out}', '--num=5', env=env)
  assert picture_size(out)[0] > 10
