"""Sweeps in real processes: their devices, what a kill leaves, slices."""

import csv
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

from commands import ROOT, TINY, metrics
from fake_gcloud import Cloud, ended, wait_for
from fake_gcs import FakeGCS
import pytest
from sweep_stubs import write_driver

from elt_jax import config as config_lib
from elt_jax import hyper
from launch import sweep_processes, sweep_runs, sweep_tpu

# Config files are loaded as ml_collections loads them.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module')


def test_shares_of_tpu_chips(monkeypatch):
  monkeypatch.setenv('JAX_PLATFORMS', '')
  chips = [str(i) for i in range(8)]
  monkeypatch.setattr(sweep_processes, 'tpu_chips', lambda: chips)
  assert sweep_processes.shares(1) == [{}]
  first, second = sweep_processes.shares(2)
  assert first == {
    'TPU_VISIBLE_CHIPS': '0,1,2,3',
    'TPU_CHIPS_PER_PROCESS_BOUNDS': '2,2,1',
    'TPU_PROCESS_BOUNDS': '1,1,1',
    'TPU_MESH_CONTROLLER_ADDRESS': 'localhost:8476',
    'TPU_MESH_CONTROLLER_PORT': '8476',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  }
  assert second['TPU_VISIBLE_CHIPS'] == '4,5,6,7'
  assert second['TPU_MESH_CONTROLLER_PORT'] == '8477'
  shares = sweep_processes.shares(8)
  assert [share['TPU_VISIBLE_CHIPS'] for share in shares] == chips
  assert shares[0]['TPU_CHIPS_PER_PROCESS_BOUNDS'] == '1,1,1'
  with pytest.raises(ValueError, match='=3 must divide the 8 TPU chips'):
    sweep_processes.shares(3)
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  assert sweep_processes.shares(3) == [{}, {}, {}]


def test_shares_of_gpus_are_for_a_jax_that_uses_them(monkeypatch):
  monkeypatch.setenv('JAX_PLATFORMS', '')
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,5')
  monkeypatch.setattr(sweep_processes, 'tpu_chips', list)
  monkeypatch.setattr(sweep_processes, '_CUDA', ('no_such_plugin',))
  assert sweep_processes.shares(2) == [{}, {}]
  monkeypatch.setattr(sweep_processes, '_CUDA', ('no_such_plugin', 'jax'))
  assert sweep_processes.shares(2) == [
    {'CUDA_VISIBLE_DEVICES': '4'},
    {'CUDA_VISIBLE_DEVICES': '5'},
  ]


# ---- Real processes ----------------------------------------------------------


def tiny_sweep() -> str:
  flags = [flag.removeprefix('--config.').split('=', 1) for flag in TINY[1:]]
  tiny = {key: value for key, value in flags}
  for key, value in tiny.items():
    if value.isdigit() or value == 'False':
      tiny[key] = json.loads(value.lower())
  tiny['train.telemetry_every_steps'] = 0
  return f"""
from elt_jax.hyper import fixed, product, sweep
CONFIG = 'configs/mnist_diffusion.py'
LOOPS = '1'
def get_sweep():
  return product([
    [{{'overrides': {tiny!r}}}], sweep('train.num_steps', [4, 60, 8])
  ])
"""


def children(pid: int) -> list[int]:
  tasks = pathlib.Path(f'/proc/{pid}/task').glob('*/children')
  return [int(child) for task in tasks for child in task.read_text().split()]


def times(path: pathlib.Path) -> dict[str, int]:
  files = (p for p in path.rglob('*') if p.is_file())
  return {str(p): p.stat().st_mtime_ns for p in files}


@pytest.mark.slow
def test_killed_it_goes_on_and_no_run_is_doubled(tmp_path):
  workdir = tmp_path / 'w'
  command = [*write_driver(tmp_path, tiny_sweep()), f'--workdir={workdir}']
  env = os.environ | {'JAX_PLATFORMS': 'cpu'}
  start = lambda out: subprocess.Popen(
    command, env=env, stdout=out, stderr=subprocess.STDOUT, text=True
  )
  output = tmp_path / 'output'
  with output.open('w') as out:
    first = start(out)
    second_run = workdir / 'num_steps=60' / 'checkpoints'
    deadline = time.monotonic() + 120
    while not any(path.name.isdigit() for path in second_run.glob('*')):
      assert first.poll() is None and time.monotonic() < deadline
      time.sleep(0.02)
    (orphan,) = children(first.pid)
    os.kill(orphan, signal.SIGSTOP)  # It must not end before it is noticed.
    first.kill()
    first.wait()
  finished = times(workdir / 'num_steps=4' / 'checkpoints')
  assert finished and not (workdir / 'num_steps=60' / 'elastic.json').exists()
  with output.open('w') as out:
    again = start(out)
    wait_for(lambda: 'num_steps=60: still alive' in output.read_text())
    os.kill(orphan, signal.SIGCONT)
    again.wait(timeout=120)
  assert again.returncode == 0, output.read_text()
  assert 'num_steps=4: was finished' in output.read_text()
  assert times(workdir / 'num_steps=4' / 'checkpoints') == finished
  for steps in (4, 60, 8):
    log = (workdir / f'num_steps={steps}' / 'sweep.log').read_text()
    assert log.count('-m elt_jax.train') == 1
    assert log.count('stub.py evaluate') == 1 and 'Resumed' not in log
    logged = [line['step'] for line in metrics(workdir / f'num_steps={steps}')]
    assert logged == list(range(4, steps + 1, 4))
  with (workdir / 'summary.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert [row['train.num_steps'] for row in rows] == ['4', '60', '8']


@pytest.mark.slow
def test_the_sweep_as_it_is(tmp_path):
  text = tiny_sweep().replace('[4, 60, 8]', '[4, 8]')
  (tmp_path / 'sweep.py').write_text(text)
  command = [sys.executable, 'launch/sweep.py', '--num=10', '--parallel=2']
  command += [f'--sweep={tmp_path}/sweep.py', f'--workdir={tmp_path}/w']
  env = os.environ | {'JAX_PLATFORMS': 'cpu'}
  run = lambda: subprocess.run(
    command, cwd=ROOT, env=env, capture_output=True, text=True, check=True
  )
  run()
  before = times(tmp_path / 'w' / 'num_steps=4')
  assert run().stdout.count('was finished') == 2
  after = times(tmp_path / 'w' / 'num_steps=4')
  assert {p for p in after if after[p] != before[p]} == {
    f'{tmp_path}/w/num_steps=4/config.json'
  }


# ---- Slices ------------------------------------------------------------------


def slices_job(name: str, workdir: str = 'gs://b/s') -> sweep_runs.Job:
  run = hyper.Run({'train.seed': 1}, name, 'configs/x.py', '1')
  return sweep_runs.Job(run, None, f'{workdir}/{name}', pathlib.Path('l'))


def test_names_of_slices(monkeypatch):
  monkeypatch.delenv('ELT_TPU_NAME', raising=False)
  slices = sweep_tpu.Slices([])
  names = [
    slices.name(slices_job(name))
    for name in ('a=1', 'A=1', 'learning_rate=0.001,' * 4, '_', 'a_1')
  ]
  names.append(slices.name(slices_job('a=1', 'gs://b/other')))
  assert len(set(names)) == len(names)
  assert all(re.fullmatch('elt[a-z0-9-]{4,54}[0-9a-f]', n) for n in names)
  assert names[0].startswith('elt-a-1-') and names[0] == slices.name(
    slices_job('a=1')
  )
  monkeypatch.setenv('ELT_TPU_NAME', 'mine')
  assert sweep_tpu.Slices([]).name(slices_job('b')).startswith('mine-b-')
  slices = sweep_tpu.Slices(['--name=x', '--zone=z', '--type=v6e-8'])
  name = slices.name(slices_job('b'))
  assert name.startswith('x-b-')
  assert slices.train(slices_job('b'))[1:] == [
    '--zone=z',
    '--type=v6e-8',
    f'--name={name}',
    '--workdir=gs://b/s/b',
    '--',
    '--config=configs/x.py',
    '--config.train.seed=1',
  ]
  assert slices.delete(slices_job('b'))[1:] == [
    '--zone=z',
    f'--name={name}',
    '--delete',
    '--yes',
  ]
  for flags, message in (
    (['--workdir=gs://b/s'], '--workdir cannot be given after --'),
    (['--help'], '--help cannot be given after --'),
    (['--name=Mine'], 'lower case letters.*got --name=Mine'),
  ):
    with pytest.raises(ValueError, match=message):
      sweep_tpu.Slices(flags)


SLICES = """
CONFIG = 'configs/mnist_diffusion.py'
LOOPS = '1'
def get_sweep():
  return [
    {'name': name, 'overrides': {'train.seed': seed, 'train.num_steps': 7}}
    for seed, name in enumerate(('bad', 'done', 'good'))
  ]
"""


REPORT = {
  'recipe': {
    'quality': 'fd_lenet',
    'sampler': 'ddim',
    'checkpoint_step': 7,
    'num_samples': 20,
    'seed': 0,
  },
  'rows': [
    {
      'loops': 1,
      'fd_lenet': 9.0,
      'class_accuracy': 0.5,
      'gflops_per_sample': 1.0,
      'seconds_per_sample': 0.1,
    }
  ],
}


def test_each_run_has_a_slice_which_is_deleted_after_it(cloud: Cloud):
  path = cloud.path / 'sweep'
  path.mkdir()
  more = (
    f'sweep_tpu.LAUNCH = pathlib.Path({str(cloud.clone / "launch")!r})\n'
    f'sweep_runs.STATE = pathlib.Path({str(path)!r})'
  )
  command = write_driver(path, SLICES, more)
  command += ['--num=20', '--workdir=gs://bucket/s', '--tpu=1', '--']
  flags = '--project=p --zone=z --type=v6e-8 --name=n'
  command += [*flags.split(), '--poll=0', '--grace=0', '--backoff=0']
  _, done, good = sweep_runs.make_jobs(
    sweep_runs.load(f'{path}/sweep.py'), 'gs://bucket/s'
  )
  slices = sweep_tpu.Slices(['--name=n'])
  gcs = FakeGCS()
  put = lambda name, text: gcs.write(f's/{name}', text.encode(), None)
  with gcs as environment:
    put('done/config.json', config_lib.to_json(done.config))
    put('done/checkpoints/4/commit_success.txt', '')
    # What evaluations would leave.
    for job in (done, good):
      put(f'{job.name}/elastic.json', json.dumps(REPORT))
    env = os.environ | cloud.env | environment | {'JAX_PLATFORMS': 'cpu'}
    first = cloud.spawn(command, ROOT, env)
    wait_for((cloud.homes / '0' / 'arguments').exists)
    first.kill()
    ended(first, -signal.SIGKILL)
    again = cloud.spawn(command, ROOT, env)
    assert again.stdout.readline().startswith('bad: still alive')
    revision = cloud.git('rev-parse', 'HEAD')
    (cloud.clone / 'requirements.txt').write_text('new\n')
    cloud.git('commit', '-qam', 'second')
    # Another has trained on, since this sweep looked.
    put('done/checkpoints/7/commit_success.txt', '')
    cloud.write('end-bad', '2')
    cloud.write('end', '0')
    ran = ended(again, 1)
  created, deleted = (
    [call[4] for call in cloud.calls(f'queued-resources {what}')]
    for what in ('create', 'delete')
  )
  assert [name[:6] for name in created] == ['n-bad-', 'n-good']
  assert deleted == created and created[1] == slices.name(good)
  assert not (cloud.path / 'resource').exists()
  assert 'done: was finished' in ran.stdout and 'good: finished' in ran.stdout
  assert 'Error: bad: exit code 1: ' in ran.stderr
  assert ran.stderr.endswith('Its slice is deleted now.\n')
  summary = gcs.objects['s/summary.csv'][0].decode()
  rows = list(csv.DictReader(summary.splitlines()))
  assert [(row['run'], row['train.seed']) for row in rows] == [
    ('done', '1'),
    ('good', '2'),
  ]
  log = (path / 'bucket' / 's' / 'bad' / 'sweep.log').read_text()
  assert 'the run failed by its own error' in log
  assert '--workdir=gs://bucket/s/bad -- --config=' in log
  # All runs are of the revision that was checked out at the start.
  set_up = [' '.join(call) for call in cloud.calls('worker.sh setup')]
  assert 'n-good' in set_up[-1] and all(revision in call for call in set_up)
