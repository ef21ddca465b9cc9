"""Workdirs at gs:// addresses, on a Cloud Storage of the tests."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests import commands
from tests.commands import TINY, timeless
from tests.fake_gcs import FakeGCS

TRAIN = ['train', *TINY, '--config.train.num_steps=12']


def in_turn(environment, *argv):
  """[exit code, stdout, stderr] of each command."""
  done = subprocess.run(
    [sys.executable, '-c', commands.IN_TURN],
    cwd=commands.ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'} | environment,
    input=json.dumps([list(map(str, args)) for args in argv]),
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """The same run twice: here, and in a bucket and killed once.

  Returns:
    Its directory, the objects of the bucket by their name in the run, and the
    outputs of commands on the bucket.
  """
  here = tmp_path_factory.mktemp('here')
  gcs = FakeGCS()
  with gcs as environment:
    workdir = 'gs://bucket/some/run'
    killed = commands.start(*TRAIN, f'--workdir={workdir}', env=environment)
    began = time.monotonic()
    while 'some/run/checkpoints/4/commit_success.txt' not in gcs.objects:
      assert killed.poll() is None, killed.communicate()[1][-3000:]
      assert time.monotonic() - began < 120
      time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    outputs = in_turn(
      environment,
      [*TRAIN, f'--workdir={workdir}'],
      ['sample', f'--workdir={workdir}', f'--out={workdir}/samples/x.png'],
      [*TRAIN, '--workdir=gs://another/run'],
      ['tokenize', f'--workdir={workdir}', '--out=gs://bucket/tokens'],
      [*TRAIN, f'--workdir={here}'],
      ['sample', f'--workdir={here}', f'--out={here}/samples/x.png'],
    )
  objects = {
    name.removeprefix('some/run/'): contents
    for name, (contents, _) in gcs.objects.items()
  }
  return here, objects, outputs


def test_a_killed_run_goes_on_as_one_of_this_machine(runs):
  here, objects, ((code, _, err), *_) = runs
  assert code == 0, err
  assert 'Resumed gs://bucket/some/run at step' in err
  wanted = timeless(commands.metrics(here))
  lines = objects['logs/metrics.jsonl'].decode().splitlines()
  assert len(wanted) == len(lines) == 3
  assert timeless(map(json.loads, lines)) == wanted
  steps = {name.split('/')[1] for name in objects if 'checkpoints/' in name}
  assert steps == {'8', '12'}  # Of `keep` = 2, as on this machine.
  assert steps == {path.name for path in (here / 'checkpoints').iterdir()}
  assert any(name.startswith('logs/events.out.') for name in objects)


def test_samples_are_those_of_this_machine(runs):
  here, objects, outputs = runs
  assert [outputs[i][0] for i in (1, 5)] == [0, 0], outputs
  assert objects['samples/x.png'] == (here / 'samples' / 'x.png').read_bytes()


def test_errors_say_what_is_wrong_with_the_address(runs):
  _, _, outputs = runs
  for (code, _, err), text in (
    (outputs[2], 'gs://another/run/config.json cannot be written'),
    (outputs[3], '--out must be a directory, got the address gs://bucket/tok'),
  ):
    assert code == 2
    assert text in err and 'Traceback' not in err
