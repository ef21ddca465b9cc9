"""What survives preemptions: launch/tpu_retry.sh."""

import os
import signal
import subprocess

from fake_gcloud import (
  NEEDS,
  NUM_WORKERS,
  TRAIN,
  WORKDIR,
  Cloud,
  ended,
  wait_for,
)

FAST = ('--backoff=0', '--poll=0', '--grace=0')


def retry(cloud: Cloud, *args: str) -> subprocess.Popen:
  return cloud.start('retry', *FAST, *args, *NEEDS['retry'])


def running(cloud: Cloud, generation: int) -> None:
  """Waits until both workers of the slice created that often train."""
  wait_for(lambda: cloud.created() == generation)
  for number in range(NUM_WORKERS):
    wait_for((cloud.homes / str(number) / 'arguments').exists)


def looked_at(cloud: Cloud) -> None:
  """Waits until the retry, once it watches, has seen the workers as they are.

  One look may be the one before it watches, and the last one has only begun.
  """
  calls = len(cloud.calls('worker.sh state'))
  wait_for(lambda: len(cloud.calls('worker.sh state')) > calls + 2)


def test_retry_goes_on_after_preemptions_until_the_run_has_finished(cloud):
  process = retry(cloud, '--grace=30')
  running(cloud, 1)
  # What is checked out later is not what the run goes on with.
  (cloud.clone / 'requirements.txt').write_text('newer\n')
  cloud.preempt()
  cloud.write('dead', '')
  running(cloud, 2)
  arguments = (cloud.homes / '0' / 'arguments').read_text()
  assert f'--workdir={WORKDIR}\n--config=configs/x.py:small' in arguments
  code = cloud.homes / '0' / 'elt_jax' / 'code'
  assert (code / 'requirements.txt').read_text() == 'jax\n'
  cloud.write('end', '0')
  done = ended(process, 0)
  assert done.stderr.count(' the run is preempted') == 1
  assert ' the run is finished\n' in done.stderr
  assert cloud.created() == 2
  # The logs of the first slice are still there.
  assert {'t1v-n-1-w-0.log', 't1v-n-2-w-0.log'} <= cloud.logs().keys()


def test_retry_ends_on_the_error_of_the_run(cloud):
  cloud.write('end', '2')
  done = ended(retry(cloud), 1)
  assert 'failed by its own error, not by a preemption' in done.stderr
  assert 'failed, exit code 2' in done.stderr  # The end of the log.
  assert cloud.created() == 1
  assert not cloud.calls('delete')


def test_retry_takes_a_failure_before_a_preemption_for_one(cloud):
  process = retry(cloud, '--grace=30')
  running(cloud, 1)
  cloud.write('end', '1')  # The others fail when one of them is gone.
  wait_for(lambda: 'failed' in cloud.states())
  looked_at(cloud)
  cloud.write('vm', 'PREEMPTED')
  wait_for(lambda: cloud.calls('queued-resources delete'))
  cloud.write('end', '0')
  done = ended(process, 0)
  assert ' failed; a preemption? waits 30 s\n' in done.stderr
  assert 'the run is preempted' in done.stderr


def test_retry_tries_again_what_did_not_work_and_gives_up_in_the_end(cloud):
  cloud.fail('queued-resources create', 1, times=1)
  cloud.fail('tpu-vm scp', 255, times=1)
  cloud.write('end', '0')
  done = ended(retry(cloud, '--attempts=3'), 0)
  assert 'gcloud failed: queued-resources create' in done.stderr
  assert 'gcloud failed: tpu-vm scp' in done.stderr
  cloud.fail('worker.sh setup', 1)
  done = ended(retry(cloud, '--attempts=2'), 1)
  assert 'no attempts left after 2; n was left as it is' in done.stderr
  assert not cloud.calls('queued-resources delete')
  # A slice that cannot be set up is given back for another.
  done = ended(retry(cloud, '--attempts=3'), 1)
  assert len(cloud.calls('queued-resources delete')) == 1


def test_retry_keeps_its_place_in_the_queue(cloud):
  cloud.write('granted', 'WAITING_FOR_RESOURCES')
  done = ended(retry(cloud, '--attempts=4', '--timeout=0'), 1)
  assert done.stderr.count('still WAITING_FOR_RESOURCES') == 4
  assert cloud.created() == 1 and not cloud.calls('delete')


def test_retry_does_not_create_again_what_was_deleted(cloud):
  process = retry(cloud, '--grace=30')
  running(cloud, 1)
  cloud.write('resource', 'DELETING')
  done = ended(process, 1)
  assert 'n was deleted, and is not created again' in done.stderr
  assert cloud.created() == 1


def test_retry_replaces_a_slice_with_a_dead_worker(cloud):
  process = retry(cloud)
  running(cloud, 1)
  cloud.write('dead', '1')
  wait_for(lambda: cloud.calls('queued-resources delete'))
  cloud.write('dead', '')
  cloud.write('end', '0')
  done = ended(process, 0)
  assert 'the run is unreachable' in done.stderr
  assert cloud.created() == 2


def test_retry_goes_on_watching_a_run_that_is_alive(slice_):
  slice_('run', *NEEDS['run'])
  pid = slice_.pid()
  other = ['--workdir=gs://bucket/b', '--type=v6e-8', *TRAIN]
  done = slice_('retry', *FAST, *other, code=1)
  assert 'another run is alive on n' in done.stderr
  process = retry(slice_)
  looked_at(slice_)
  assert slice_.pid() == pid
  slice_('stop')
  done = ended(process, 1)
  assert 'stopped by tpu_stop.sh, and not started again' in done.stderr
  assert not slice_.calls('delete')


def test_retry_forgets_a_worker_that_was_silent_for_a_while(slice_):
  slice_('run', *NEEDS['run'])
  process = retry(slice_, '--grace=30')
  for dead in ('1', '', '1', ''):
    slice_.write('dead', dead)
    looked_at(slice_)
  # Without an answer from gcloud nothing is known.
  slice_.fail('compute tpus', 1, times=9)
  wait_for(lambda: (slice_.path / 'failures').read_text().startswith('0 '))
  slice_.write('end', '0')
  done = ended(process, 0)
  assert done.stderr.count('unreachable; a preemption? waits 30 s') == 2
  assert slice_.created() == 1


def test_retry_restarts_a_run_that_is_only_half_there(slice_):
  slice_('run', *NEEDS['run'])
  for number in range(NUM_WORKERS):
    slice_.pid(number)
  os.killpg(os.getpgid(slice_.pid(1)), signal.SIGKILL)
  process = retry(slice_)
  starts = lambda: len(slice_.calls('worker.sh start'))
  wait_for(lambda: starts() == 2)
  wait_for(lambda: slice_.states() == ['running'] * 2)
  slice_.write('end', '0')
  ended(process, 0)
  assert slice_.created() == 1


def test_retry_does_not_retry_what_cannot_work(cloud):
  args = (f'--workdir={WORKDIR}', '--type=v9-8', *TRAIN)
  done = cloud('retry', *FAST, *args, code=2)
  assert 'No default --runtime-version' in done.stderr
  (cloud.clone / 'new.py').write_text('')
  done = ended(retry(cloud), 1)
  assert 'uncommitted changes' in done.stderr and '?? new.py' in done.stderr
  assert not cloud.created()
