"""Runs of several hosts, as real processes on one machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from elt_jax import checkpoint, hosts
from elt_jax import config as config_lib
from tests.commands import ROOT, TINY
from tests.helpers import Stack

RUN = [*TINY, '--config.train.num_steps=20', '--config.train.seed=3']


def free_port():
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


def start(count, workdir, *args, devices=4):
  """`count` hosts of `devices / count` devices each, training into workdir."""
  port = free_port()
  command = [
    sys.executable,
    '-m',
    'elt_jax.train',
    f'--workdir={workdir}',
    *RUN,
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


def finish(processes, code=0):
  outputs = [process.communicate(timeout=240)[0] for process in processes]
  for process, output in zip(processes, outputs, strict=True):
    assert process.returncode == code, output[-3000:]
  return outputs


def newest(workdir):
  """(state, step) of the newest checkpoint, on one device."""
  stack = Stack(config_lib.load(workdir))
  with checkpoint.Checkpoints(workdir, read_only=True) as checkpoints:
    return jax.device_get(checkpoints.restore(stack.like))


SHARDED = ['--config.mesh.data=2', '--config.mesh.fsdp=2']


@pytest.fixture(scope='module')
def one(tmp_path_factory):
  """The newest state of a run of one host with four devices."""
  workdir = tmp_path_factory.mktemp('one')
  finish(start(1, workdir, *SHARDED))
  return newest(workdir)


@pytest.mark.parametrize('count', [2, pytest.param(4, marks=pytest.mark.slow)])
def test_hosts_train_what_one_host_trains(one, count, tmp_path):
  finish(
    start(count, tmp_path, *SHARDED, '--config.train.sample_every_steps=10')
  )
  many = newest(tmp_path)
  assert one[1] == many[1] == 20
  # Sums between processes and inside of one are in another order.
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
  jax.tree.map(close, one[0], many[0])
  lines = (tmp_path / 'logs' / 'metrics.jsonl').read_text().splitlines()
  steps = [json.loads(line)['step'] for line in lines]
  assert steps == [4, 8, 12, 16, 20]  # Of host 0 alone.
  assert len(list((tmp_path / 'samples').iterdir())) == 2


def test_one_told_to_stop_stops_all(tmp_path):
  """SIGTERM on host 1 of 2 saves one step, for both."""
  long = [
    '--config.train.num_steps=4000',
    '--config.checkpoint.every_steps=4000',
  ]
  processes = start(2, tmp_path / 'run', *long)
  log = tmp_path / 'run' / 'logs' / 'metrics.jsonl'
  deadline = time.monotonic() + 120
  while not (log.exists() and log.read_text()):
    assert time.monotonic() < deadline and processes[0].poll() is None
    time.sleep(0.1)
  processes[1].send_signal(signal.SIGTERM)
  outputs = finish(processes, code=143)
  assert all('Stopping at step' in output for output in outputs)
  _, step = newest(tmp_path / 'run')
  assert 0 < step < 4000


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
  ],
)
def test_a_place_that_makes_no_sense_is_refused(place, message, monkeypatch):
  for name in hosts._PLACE:
    monkeypatch.delenv(name, raising=False)
  for name, value in place.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(ValueError, match=message):
    hosts.join()
