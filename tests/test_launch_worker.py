"""What happens on a worker of a slice: launch/tpu_worker.sh."""

import os
import shutil
import signal

from fake_gcloud import NUM_WORKERS, ROOT, WORKDIR, Cloud, ended, wait_for
import pytest


@pytest.fixture
def worker(cloud):
  """A worker that is set up, without what set it up; starts runs."""
  for number in range(NUM_WORKERS):
    base = cloud.homes / str(number) / 'elt_jax'
    (base / 'code').mkdir(parents=True)
    (base / 'venv' / 'bin').mkdir(parents=True)
    shutil.copy(cloud.path / 'python', base / 'venv' / 'bin')
    (base / 'revision').write_text('abc\n')
    shutil.copy(ROOT / 'launch' / 'tpu_worker.sh', base.parent)
  return cloud


def start(cloud: Cloud, id: str, code: int = 0):
  return cloud.on_worker(
    'start', id, '60', WORKDIR, 'train', '--config=x', code=code
  )


def test_a_start_that_is_repeated_starts_nothing(worker):
  start(worker, 'one')
  pid = worker.pid()
  start(worker, 'one')  # The connection broke, and gcloud ran it again.
  assert worker.pid() == pid
  assert 'a run is alive' in start(worker, 'two', code=1).stderr
  worker.write('end', '0')
  wait_for(lambda: worker.states() == ['finished', 'idle'])
  start(worker, 'one')
  assert worker.states() == ['finished', 'idle']


def test_nothing_starts_where_the_bucket_cannot_be_written(worker):
  worker.fail('storage cp', 1, times=1)
  done = start(worker, 'one', code=1)
  assert 'failed: storage cp' in done.stderr
  assert f'{WORKDIR} cannot be written; nothing was started' in done.stderr
  assert worker.states() == ['idle', 'idle']
  start(worker, 'one')
  assert worker.states() == ['running', 'idle']


@pytest.mark.parametrize(
  'endpoints',
  ['w-0:1:10.0.0.4,w-1:2:10.0.0.5', '10.0.0.4,10.0.0.5'],
  ids=['triples', 'addresses'],
)
def test_a_run_is_told_the_hosts_of_its_slice(worker, endpoints):
  home = worker.homes / '0'
  (home / 'metadata-worker-network-endpoints').write_text(endpoints)
  (home / 'metadata-agent-worker-number').write_text('1')
  start(worker, 'one')
  log = lambda: worker.on_worker('log', '9').stdout
  wait_for(lambda: 'host 1 of 2 at 10.0.0.4:8482\n' in log())


def test_where_a_vm_does_not_know_its_slice_jax_looks_for_it(worker):
  file = worker.homes / '0' / 'metadata-worker-network-endpoints'
  file.write_text('10.0.0.4,10.0.0.5')
  start(worker, 'one')
  log = lambda: worker.on_worker('log', '9').stdout
  wait_for(lambda: 'host  of  at \n' in log())


def test_a_run_that_fails_leaves_its_exit_code(worker):
  worker.write('end', '3')
  start(worker, 'one')
  wait_for(lambda: worker.states()[0] == 'failed')
  assert ' failed 3 one ' in worker.on_worker('state').stdout
  assert worker.logs()['t1v-n-1-w-0.log'].endswith('failed, exit code 3\n')
  assert 'exit code 3' in worker.on_worker('log', '1').stdout


def test_a_run_told_to_stop_on_another_host_is_no_run_that_finished(worker):
  worker.write('end', '143')
  start(worker, 'one')
  wait_for(lambda: worker.states()[0] == 'terminated')


def test_logs_that_cannot_be_copied_do_not_end_the_run(worker):
  start(worker, 'one')
  worker.fail('storage cp', 1)
  worker.pid()
  worker.write('end', '0')
  wait_for(lambda: worker.states()[0] == 'finished')


def test_a_vm_that_shuts_down_is_no_run_that_finished(worker):
  start(worker, 'one')
  pid = worker.pid()
  wait_for((worker.homes / '0' / 'arguments').exists)
  os.killpg(os.getpgid(pid), signal.SIGTERM)  # As systemd: everybody, once.
  wait_for(lambda: worker.states()[0] == 'terminated')
  assert worker.logs()['t1v-n-1-w-0.log'].count('saved') == 1


def test_a_vm_that_was_started_anew_is_seen(worker):
  start(worker, 'one')
  os.killpg(os.getpgid(worker.pid()), signal.SIGKILL)
  wait_for(lambda: worker.states()[0] == 'lost')
  start(worker, 'two')
  assert worker.states()[0] == 'running'


def test_a_run_is_asked_once_to_stop_and_killed_in_the_end(worker):
  worker.write('slow', '')
  start(worker, 'one')
  wait_for((worker.homes / '0' / 'arguments').exists)
  # The connection broke, and gcloud asks again.
  process = worker.start_on_worker('stop', '60')
  saving = lambda: worker.on_worker('log', '9').stdout.count('saving')
  wait_for(saving)
  done = worker.on_worker('stop', '1')
  assert 'killed after 1 seconds' in done.stderr
  assert ' stopped 137 ' in done.stdout
  assert ' stopped 137 ' in ended(process, 0).stdout
  assert saving() == 1
