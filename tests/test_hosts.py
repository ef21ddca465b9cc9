"""Runs of several hosts, as real processes on one machine."""

from concurrent import futures
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from elt_jax import checkpoint, files, hosts
from elt_jax import config as config_lib
from tests.commands import ROOT, TINY, wait_for_step
from tests.helpers import Stack, damage, inception_weights

RUN = [*TINY, '--config.train.num_steps=20', '--config.train.seed=3']


def free_port():
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


def connect(port):
  """A connection to host 0, once it listens."""
  for _ in range(100):
    try:
      return socket.create_connection(('localhost', port))
    except OSError:
      time.sleep(0.1)
  raise AssertionError('Host 0 does not listen.')


def start(count, workdir, *args, devices=4, name='train', run=RUN):
  """`count` hosts of `devices / count` devices each, at work in workdir."""
  port = free_port()
  command = [
    sys.executable,
    '-m',
    f'elt_jax.{name}',
    f'--workdir={workdir}',
    *(run if name == 'train' else ()),
  ]
  processes = []
  for host in range(count):
    flags = [
      flag
      for flag in os.environ.get('XLA_FLAGS', '').split()
      if 'device_count' not in flag
    ]
    flags.append(f'--xla_force_host_platform_device_count={devices // count}')
    env = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ' '.join(flags)}
    several = []
    if count > 1:
      several = ['--multihost']
      env |= {
        'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
        'JAX_NUM_PROCESSES': str(count),
        'JAX_PROCESS_ID': str(host),
      }
    processes.append(
      subprocess.Popen(
        [*command, *args, *several],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
      )
    )
  return processes


def finish(processes):
  outputs = [process.communicate(timeout=240)[0] for process in processes]
  for process, output in zip(processes, outputs, strict=True):
    assert process.returncode == 0, output[-3000:]


def newest(workdir):
  """(state, step) of the newest checkpoint, on one device."""
  stack = Stack(config_lib.load(workdir))
  with checkpoint.Checkpoints(workdir, read_only=True) as checkpoints:
    return jax.device_get(checkpoints.restore(stack.like))


SLOW = pytest.mark.slow
SHARDED = ['--config.mesh.data=2', '--config.mesh.fsdp=2']


@pytest.fixture(scope='module')
def workdir_of_one(tmp_path_factory):
  """A run of one host with four devices."""
  workdir = tmp_path_factory.mktemp('one')
  finish(start(1, workdir, *SHARDED))
  return workdir


@pytest.fixture(scope='module')
def one(workdir_of_one):
  """Its newest state."""
  return newest(workdir_of_one)


def check_equal(one, workdir):
  """Whether a run in `workdir` ended where the run of one host did."""
  many = newest(workdir)
  assert one[1] == many[1] == 20
  # Sums between processes and inside of one are in another order. The bias of
  # keys has no gradient but what that leaves, and Adam scales it up.
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  jax.tree.map(close, one[0], many[0])
  lines = (workdir / 'logs' / 'metrics.jsonl').read_text().splitlines()
  steps = [json.loads(line)['step'] for line in lines]
  # Of host 0 alone, and of the step it may have been stopped at.
  assert [step for step in steps if step % 4 == 0] == [4, 8, 12, 16, 20]


@pytest.mark.parametrize(
  'number', [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=SLOW)]
)
def test_two_hosts_stopped_in_the_middle_train_what_one_trains(
  one, tmp_path, number
):
  """SIGTERM on one host saves one step for both; a dead host ends the other."""
  run = [tmp_path, *SHARDED, '--config.train.sample_every_steps=10']
  processes = start(2, *run)
  wait_for_step(processes[0], tmp_path, 8)
  # JAX asks host 0 whether the others live; it is missed at once.
  stopped, other = processes if number == signal.SIGKILL else processes[::-1]
  stopped.send_signal(number)
  output = other.communicate(timeout=240)[0]
  stopped.communicate(timeout=240)
  if number == signal.SIGTERM:
    assert stopped.returncode == other.returncode == 143, output[-3000:]
    assert f'Stopping at step {newest(tmp_path)[1]} of 20' in output
  else:
    assert other.returncode not in (0, 143)
  assert 8 <= newest(tmp_path)[1] < 20
  if number == signal.SIGTERM:  # Both take the one before, and one renames it.
    damage(tmp_path / 'checkpoints' / str(newest(tmp_path)[1]))
  finish(start(2, *run))
  check_equal(one, tmp_path)
  assert len(list((tmp_path / 'samples').iterdir())) == 2


def test_hosts_that_share_examples_train_what_one_trains(one, tmp_path):
  """Of one tensor-parallel model, each holds a half and the same batch."""
  finish(start(2, tmp_path, '--config.mesh.tensor=2', devices=2))
  check_equal(one, tmp_path)


@pytest.mark.slow
def test_hosts_train_the_tokenizer_that_one_trains(tmp_path):
  """Whose loss and restarts know of more than one example at a time."""
  args = [
    '--config=configs/mnist_tokenizer.py',
    '--config.data.source=synthetic',
    '--config.tokenizer.filters=8',
    '--config.tokenizer.norm_groups=4',
    '--config.tokenizer.entropy=0.1',
    '--config.tokenizer.restart_every_steps=1',
    '--config.train.batch_size=16',
    '--config.train.accumulate_steps=2',
    '--config.train.num_steps=3',
    '--config.train.log_every_steps=1',
    '--config.train.sample_every_steps=0',
    '--config.mesh.data=4',
  ]
  losses = []
  for count in (1, 2):
    workdir = tmp_path / str(count)
    finish(start(count, workdir, run=args))
    lines = (workdir / 'logs' / 'metrics.jsonl').read_text().splitlines()
    losses.append([json.loads(line)['train/loss'] for line in lines])
  assert len(losses[0]) == 3
  np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.slow
def test_four_hosts_train_what_one_trains(one, tmp_path):
  finish(start(4, tmp_path, *SHARDED))
  check_equal(one, tmp_path)


def compare(name, file, workdir, *args):
  """The (recipe, rows) that two hosts write, and those of one."""
  found = []
  for count in (2, 1):
    finish(start(count, workdir, *args, name=name))
    found.append(json.loads((workdir / file).read_text()))
    (workdir / file).unlink()
  return found


def same_numbers(a, b):
  for row, other in zip(a['rows'], b['rows'], strict=True):
    for name in ('seconds_per_sample', 'device'):
      row.pop(name, None), other.pop(name, None)
    assert row.pop('schedule', None) == other.pop('schedule', None)
    assert row == pytest.approx(other, rel=1e-4)


def test_two_hosts_measure_what_one_measures(
  workdir_of_one, tmp_path, monkeypatch
):
  monkeypatch.setenv('ELT_JAX_CACHE', str(tmp_path))
  args = ['--loops=1,2', '--num=20']
  two, single = compare('evaluate', 'elastic.json', workdir_of_one, *args)
  assert [row['loops'] for row in two['rows']] == [1, 2]
  same_numbers(two, single)
  np.testing.assert_allclose(
    two['telemetry']['sampling']['effect'],
    single['telemetry']['sampling']['effect'],
    rtol=1e-3,
    atol=1e-6,
  )


@pytest.mark.slow
def test_two_hosts_calibrate_as_one_does(workdir_of_one):
  args = ['calibrate', 'calibration.json', workdir_of_one, '--num=16']
  two, single = compare(*args)
  assert two['schedules'] == single['schedules']


@pytest.mark.slow
def test_two_hosts_make_the_reference_that_one_makes(tmp_path):
  """And measure the same against it, with the whole network."""
  images = np.random.default_rng(2).integers(0, 256, (16, 8, 8, 1), np.uint8)
  both = {'image': images, 'label': np.arange(16) % 10}
  both |= {f'test_{name}': value for name, value in both.items()}
  np.savez(tmp_path / 'data.npz', **both)
  np.savez(tmp_path / 'weights.npz', **inception_weights())
  workdir = tmp_path / 'run'
  source = f'--config.data.source=npz:{tmp_path}/data.npz'
  finish(start(1, workdir, *SHARDED, source))
  args = [f'--inception={tmp_path}/weights.npz', '--num=10', '--loops=1']
  args.append('--metrics=fid,is')
  reports, references = [], []
  for count in (2, 1):
    finish(start(count, workdir, *args, name='evaluate'))
    reports.append(json.loads((workdir / 'metrics.json').read_text()))
    references.append(files.read_npz(workdir / 'fid-train.npz'))
    for name in ('metrics.json', 'fid-train.npz'):
      (workdir / name).unlink()
  same_numbers(*reports)
  two, single = references
  assert two['recipe'] == single['recipe']
  np.testing.assert_array_equal(two['arr_0'], single['arr_0'])
  for name in ('mu', 'sigma', 'mu_s', 'sigma_s'):
    np.testing.assert_allclose(two[name], single[name], rtol=1e-4, atol=1e-6)


def test_a_host_that_does_not_come_is_named():
  place = {
    'JAX_COORDINATOR_ADDRESS': f'localhost:{free_port()}',
    'JAX_NUM_PROCESSES': '4',
  }
  code = 'from elt_jax import hosts; hosts.join(seconds=4)'
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', code],
      cwd=ROOT,
      env=os.environ | place | {'JAX_PROCESS_ID': str(host)},
      stderr=subprocess.PIPE,
      text=True,
    )
    for host in (0, 2)
  ]
  for process in processes:
    _, err = process.communicate(timeout=60)
    assert 'after 4 s host 1, 3 has not come' in err


@pytest.mark.parametrize('saves', [False, True])
def test_sigterm_is_left_to_jax_where_a_run_saves(saves):
  place = {
    'JAX_COORDINATOR_ADDRESS': f'localhost:{free_port()}',
    'JAX_NUM_PROCESSES': '1',
    'JAX_PROCESS_ID': '0',
    'JAX_PLATFORMS': 'cpu',
  }
  code = (
    'import time; from elt_jax import hosts; '
    f"hosts.join(saves={saves}); print('joined', flush=True); time.sleep(60)"
  )
  process = subprocess.Popen(
    [sys.executable, '-c', code],
    cwd=ROOT,
    env=os.environ | place,
    stdout=subprocess.PIPE,
    text=True,
  )
  with process:
    assert process.stdout.readline() == 'joined\n'
    process.terminate()
    if saves:
      with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2)
      process.kill()
    assert process.wait(30) == (-signal.SIGKILL if saves else -signal.SIGTERM)


def test_who_is_no_host_does_not_count():
  """One says nothing, one hangs up: host 0 goes on to wait for host 1."""
  port = free_port()
  with futures.ThreadPoolExecutor() as pool:
    host_0 = pool.submit(hosts._receive, port, {1}, 60.0)
    silent, rude = (
      connect(port),
      connect(port),
    )
    rude.setsockopt(
      socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)
    )
    rude.close()
    host_1 = pool.submit(hosts._report, 'localhost', port, 1, 60.0)
    assert host_1.result(30) == host_0.result(30) == ''
    silent.close()


def test_a_host_0_that_ends_while_it_waits_is_not_taken_for_all():
  with socket.create_server(('localhost', 0)) as server:
    port = server.getsockname()[1]
    with futures.ThreadPoolExecutor() as pool:
      host_1 = pool.submit(hosts._report, 'localhost', port, 1, 1.0)
      server.accept()[0].close()
      server.close()
      assert host_1.result(30) == f'host 0 does not answer at localhost:{port}'


def test_a_machine_of_no_slice_is_told_what_to_set():
  code = 'from elt_jax import hosts; hosts.join()'
  env = {k: v for k, v in os.environ.items() if k not in hosts._PLACE}
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    env=env,
    capture_output=True,
    text=True,
  )
  assert 'is of no slice that JAX knows' in done.stderr


def test_a_host_0_that_does_not_come_is_named(monkeypatch):
  address = f'localhost:{free_port()}'
  values = (address, '2', '1')
  for name, value in zip(hosts._PLACE, values, strict=True):
    monkeypatch.setenv(name, value)
  with pytest.raises(ValueError, match=f'host 0 does not answer at {address}'):
    hosts.join(seconds=0.5)


@pytest.mark.parametrize(
  'place,message',
  [
    ({'JAX_NUM_PROCESSES': '2'}, 'set all of JAX_COORD'),
    (
      {
        'JAX_COORDINATOR_ADDRESS': 'localhost:1',
        'JAX_NUM_PROCESSES': '2',
        'JAX_PROCESS_ID': '2',
      },
      'JAX_PROCESS_ID = 2 must be a number below',
    ),
    (
      {
        'JAX_COORDINATOR_ADDRESS': 'localhost',
        'JAX_NUM_PROCESSES': '2',
        'JAX_PROCESS_ID': '0',
      },
      'JAX_COORDINATOR_ADDRESS = localhost must be host:port',
    ),
  ],
)
def test_a_place_that_makes_no_sense_is_refused(place, message, monkeypatch):
  for name in hosts._PLACE:
    monkeypatch.delenv(name, raising=False)
  for name, value in place.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(ValueError, match=message):
    hosts.join()
