"""The scripts for TPU slices, run against a gcloud that pretends."""

import os
import pathlib
import pty
import re
import shlex
import subprocess
import sys

from fake_gcloud import (
  COMMANDS,
  NEEDS,
  NUM_WORKERS,
  ROOT,
  SCRIPTS,
  SLICE,
  TRAIN,
  WORKDIR,
  wait_for,
)
import pytest

# ---- Arguments ---------------------------------------------------------------


@pytest.mark.parametrize('command', COMMANDS)
def test_help_is_the_head_of_the_script(cloud, command):
  done = cloud(command, '--help')
  assert f'launch/tpu_{command}.sh --project=P' in done.stdout
  assert '--dry-run' in done.stdout and not done.stderr
  assert '#' not in done.stdout
  # Every flag that is read is told of.
  script = (ROOT / 'launch' / f'tpu_{command}.sh').read_text()
  (flags,) = re.findall(r"parse '?([a-z -]*)'?[ \\\n]+'(.*)' ", script)
  for flag in ' '.join(flags).split():
    assert f'--{flag}' in done.stdout


@pytest.mark.parametrize(
  'command,args,message',
  [
    *[
      (c, ('--name=',), '--name is required, or ELT_TPU_NAME') for c in COMMANDS
    ],
    *[(c, ('--nmae=n',), 'No such flag: --nmae=n.') for c in COMMANDS],
    *[(c, ('--name=x/../y',), '--name must be of lower-') for c in COMMANDS],
    ('status', ('--zone',), '--zone needs a value: --zone=VALUE.'),
    ('status', ('--force',), 'No such flag: --force.'),
    ('status', ('n',), 'An argument without a flag: n.'),
    ('status', ('--lines=ten',), "--lines must be a whole number, got 'ten'."),
    ('create', (), '--type is required, or ELT_TPU_TYPE'),
    (
      'create',
      ('--type=v9-8',),
      'No default --runtime-version for --type=v9-8',
    ),
    ('create', ('--type=v6e-8', '--spot', '--reserved'), 'give one of them'),
    ('setup', ('--revision=none',), '--revision must name a commit'),
    ('setup', ('--data=data',), "--data must be gs://BUCKET/DIRECTORY, got 'd"),
    ('run', TRAIN, '--workdir is required, or ELT_TPU_WORKDIR'),
    ('run', ('--workdir=runs/a', *TRAIN), 'must be gs://BUCKET/DIRECTORY'),
    ('run', (f'--workdir={WORKDIR}',), 'Nothing to train'),
    (
      'run',
      ('--command=tokenize', *NEEDS['run']),
      'train, evaluate, sample or cal',
    ),
    (
      'retry',
      ('--type=v6e-8', f'--workdir={WORKDIR}', '--data=data', *TRAIN),
      "--data must be gs://BUCKET/DIRECTORY, got 'd",
    ),
    ('retry', ('--type=v6e-8', f'--workdir={WORKDIR}'), 'Nothing to train'),
    ('stop', ('--delete',), None),
  ],
)
def test_wrong_arguments_end_with_a_line_and_code_2(
  cloud, command, args, message
):
  if message is None:  # Where nobody can be asked.
    cloud('create', '--poll=0', *NEEDS['create'])
    message = '--delete asks; without a terminal give --yes.'
  before = len(cloud.calls())
  done = cloud(command, *args, code=2)
  assert message in done.stderr and done.stderr.count('\n') == 1
  assert not done.stdout
  assert all('describe' in call for call in cloud.calls()[before:])


def test_flags_may_come_from_the_environment(cloud):
  cloud.env |= {'ELT_TPU_TYPE': 'v5p-16', 'ELT_TPU_NAME': 'other'}
  done = cloud('create', '--dry-run')
  assert '--accelerator-type=v5p-16' in done.stdout
  assert 'create n ' in done.stdout  # A flag goes before the environment.


# ---- Dry runs ----------------------------------------------------------------


def lines_of(text: str) -> list[list[str]]:
  """Printed commands as a shell reads them, but for times and temporaries."""
  text = re.sub(r'\d{8}T\d{6}Z-\d+', 'TIME', text)
  text = re.sub(r'[^ ]+/elt_jax\.tar\.gz', 'elt_jax.tar.gz', text)
  return [shlex.split(line) for line in text.splitlines()]


@pytest.mark.parametrize('command', COMMANDS)
def test_a_dry_run_prints_commands_and_runs_none(cloud, command):
  before = sorted(cloud.path.rglob('*'))
  done = cloud(command, '--dry-run', *NEEDS.get(command, ()))
  assert not done.stderr
  assert sorted(cloud.path.rglob('*')) == before
  programs = {line[0] for line in lines_of(done.stdout)}
  assert 'gcloud' in programs and programs <= {'gcloud', 'git'}


@pytest.mark.parametrize('command', ['setup', 'run', 'status', 'stop'])
def test_a_worker_that_is_gone_is_given_up_soon(cloud, command):
  args = NEEDS.get(command, ())
  lines = lines_of(cloud(command, '--dry-run', *args).stdout)
  calls = [line for line in lines if 'ssh' in line]
  assert calls
  limits = {
    '--ssh-flag=-oConnectTimeout=20',
    '--ssh-flag=-oServerAliveInterval=30',
  }
  assert all(limits <= set(call) for call in calls)


def test_a_dry_run_prints_what_is_run(cloud):
  cloud.write('granted', 'ACTIVE')
  for command in ('create', 'setup', 'run', 'status', 'stop'):
    args = NEEDS.get(command, ())
    printed = lines_of(cloud(command, '--dry-run', *args).stdout)
    before = len(cloud.calls())
    cloud(command, *args, *(['--yes'] if command == 'stop' else []))
    ran = cloud.calls()[before:]
    ran = [call for call in ran if call[0] != 'storage']  # By the worker.
    printed = [line[1:] for line in printed if line[0] == 'gcloud']
    assert printed == lines_of('\n'.join(map(shlex.join, ran)))


# ---- Create ------------------------------------------------------------------


@pytest.mark.parametrize(
  'type,version',
  [
    ('v5litepod-16', 'v2-alpha-tpuv5-lite'),
    ('v5p-8', 'v2-alpha-tpuv5'),
    ('v6e-256', 'v2-alpha-tpuv6e'),
    ('v4-8', 'tpu-ubuntu2204-base'),
  ],
)
def test_the_runtime_version_follows_from_the_type(cloud, type, version):
  done = cloud('create', f'--type={type}', '--reserved', '--dry-run')
  (create,) = [line for line in lines_of(done.stdout) if 'create' in line]
  assert {f'--runtime-version={version}', '--reserved'} <= set(create)
  assert '--spot' not in create


def test_create_waits_until_resource_and_vm_are_up(cloud):
  cloud.write('granted', 'WAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE')
  done = cloud('create', '--poll=0', *NEEDS['create'])
  seen = re.findall(r'n: ([A-Z_]+)', done.stderr)
  assert seen == ['WAITING_FOR_RESOURCES', 'PROVISIONING']
  # Run again, it does not ask for another.
  cloud.write('resource', 'PROVISIONING\nACTIVE')
  cloud.write('vm', 'CREATING\nREADY')
  cloud('create', '--poll=0', *NEEDS['create'])
  assert cloud.created() == 1


def test_create_tells_what_went_wrong(cloud):
  cloud.fail('queued-resources create', 1, times=1)
  done = cloud('create', *NEEDS['create'], code=1)
  assert 'gcloud failed: queued-resources create' in done.stderr
  assert 'exit code 1 of: gcloud compute tpus queued-resources create n' in (
    done.stderr
  )
  cloud.write('granted', 'WAITING_FOR_RESOURCES')
  done = cloud('create', '--timeout=0', *NEEDS['create'], code=1)
  assert 'still WAITING_FOR_RESOURCES' in done.stderr
  cloud.write('resource', 'PROVISIONING\nFAILED')
  done = cloud('create', '--poll=0', *NEEDS['create'], code=1)
  assert 'n became FAILED' in done.stderr
  done = cloud('create', *NEEDS['create'], code=1)
  assert 'a n already, FAILED: tpu_stop.sh --delete' in done.stderr
  cloud.write('resource', 'ACTIVE')
  (cloud.path / 'vm').unlink()
  done = cloud('create', *NEEDS['create'], code=1)
  assert 'a n already, GONE' in done.stderr
  cloud.fail('describe', 1)
  done = cloud('create', *NEEDS['create'], code=1)
  assert (
    'failed: describe' in done.stderr and 'nothing was created' in done.stderr
  )
  assert cloud.created() == 2


# ---- Setup -------------------------------------------------------------------


def test_setup_copies_the_revision_and_installs_it_on_every_worker(slice_):
  for number in range(NUM_WORKERS):
    home = slice_.homes / str(number)
    code = home / 'elt_jax' / 'code'
    assert (code / 'requirements.txt').read_text() == 'jax\n'
    assert (home / 'elt_jax' / 'revision').read_text().strip() == slice_.git(
      'rev-parse', 'HEAD'
    )
    install = (home / 'uv_calls').read_text().splitlines()[-1]
    date = slice_.git('show', '-s', '--format=%cI')
    assert f'--exclude-newer={date}' in install
    assert f'--requirement={code}/requirements.txt jax[tpu]' in install
  assert not list(slice_.path.glob('tmp.*'))


def test_data_of_a_bucket_is_at_data_of_every_worker(slice_):
  tokens = slice_.path / 'bucket' / 'data' / 'tokens'
  tokens.mkdir(parents=True)
  (tokens / 'meta.json').write_text('{}')
  slice_('setup', '--data=gs://bucket/data')
  slice_('setup')  # A setup leaves it there.
  for number in range(NUM_WORKERS):
    code = slice_.homes / str(number) / 'elt_jax' / 'code'
    assert (code / 'data' / 'tokens' / 'meta.json').read_text() == '{}'
  slice_.fail('storage rsync', 1)
  done = slice_('setup', '--data=gs://bucket/data', code=1)
  assert 'gcloud failed: storage rsync' in done.stderr
  done = slice_('run', *NEEDS['run'], code=1)
  assert 'not set up; run tpu_setup.sh' in done.stderr


def test_setup_refuses_uncommitted_changes_unless_a_revision_is_named(slice_):
  first = slice_.git('rev-parse', 'HEAD')
  (slice_.clone / 'requirements.txt').write_text('new\n')
  before = len(slice_.calls())
  done = slice_('setup', code=1)
  assert 'uncommitted changes' in done.stderr
  assert 'M requirements.txt' in done.stderr
  assert len(slice_.calls()) == before
  slice_.git('commit', '-qam', 'second')
  slice_('setup')
  slice_('setup', f'--revision={first}')
  copied = slice_.homes / '1' / 'elt_jax' / 'code' / 'requirements.txt'
  assert copied.read_text() == 'jax\n'


@pytest.mark.parametrize(
  'part', ['--worker=0', 'tpu-vm scp', 'worker.sh setup']
)
def test_setup_reports_the_command_that_failed(cloud, part):
  cloud('create', '--poll=0', *NEEDS['create'])
  cloud.fail(part, 255, times=1)
  done = cloud('setup', code=1)
  assert f'gcloud failed: {part}' in done.stderr
  assert 'exit code 255 of: gcloud compute tpus tpu-vm' in done.stderr
  assert part in done.stderr
  cloud('setup')  # Run again, it goes through.


def test_setup_that_failed_in_the_middle_leaves_nothing_to_start(slice_):
  uv = slice_.homes / '1' / '.local' / 'bin' / 'uv'
  uv.write_text('#!/bin/sh\nexit 4\n')
  done = slice_('setup', code=1)
  assert 'exit code 4 of: gcloud' in done.stderr
  done = slice_('run', *NEEDS['run'], code=1)
  assert 'not set up; run tpu_setup.sh' in done.stderr
  assert 'not started on every worker' in done.stderr


# ---- Run, status and stop ----------------------------------------------------


def test_a_run_from_start_to_stop(slice_):
  slice_('run', '--log-seconds=1', *NEEDS['run'])  # Returns: it is detached.
  assert slice_.states() == ['running'] * 2
  for number in range(NUM_WORKERS):
    slice_.pid(number)
    arguments = slice_.homes / str(number) / 'arguments'
    wait_for(arguments.exists)
    assert arguments.read_text().splitlines() == [
      *('-u', '-m', 'elt_jax.train', '--multihost', f'--workdir={WORKDIR}'),
      *TRAIN[1:],
    ]
  # The logs reach the bucket while it runs.
  wait_for(lambda: 'training in' in slice_.logs()['t1v-n-1-w-1.log'])

  # Another one is refused, and so is other code.
  done = slice_('run', *NEEDS['run'], code=1)
  assert 'a run is alive, which tpu_stop.sh ends' in done.stderr
  assert done.stderr.count(' running - ') == 2
  done = slice_('setup', code=1)
  assert 'a run is alive; stop it before' in done.stderr
  assert slice_.states() == ['running'] * 2

  done = slice_('status', '--worker=1')
  assert done.stdout.startswith('queued resource ACTIVE, VM READY\n')
  assert done.stdout.count(f' {WORKDIR}\n') == 2
  assert f'training in {slice_.homes}/1/elt_jax/code' in done.stdout
  assert f'compiled in {WORKDIR}/compilation_cache' in done.stdout

  done = slice_('stop')
  assert re.findall(r'stopped \d+', done.stdout) == ['stopped 143'] * 2
  for log in slice_.logs().values():
    assert log.endswith('saved\nstopped, exit code 143\n')
  slice_('stop')  # Nothing is alive: nothing to do.

  # The next start has a log of its own; what was trained is measured.
  measure = ('--command=evaluate', f'--workdir={WORKDIR}', '--', '--num=8')
  slice_('run', *measure)
  arguments = slice_.homes / '1' / 'arguments'
  wait_for(lambda: '--num=8' in arguments.read_text())
  assert arguments.read_text().splitlines() == [
    *('-u', '-m', 'elt_jax.evaluate', '--multihost', f'--workdir={WORKDIR}'),
    '--num=8',
  ]
  assert len(list((slice_.path / 'bucket/a_run/worker_logs').iterdir())) == 4


def test_status_of_a_slice_that_is_half_there(slice_):
  slice_('run', *NEEDS['run'])
  slice_.write('dead', '1')
  done = slice_('status')
  assert 'not every worker of n answered' in done.stderr
  assert 'exit code 255 of: gcloud' in done.stderr
  assert 'w-0 running' in done.stdout and 'w-1' not in done.stdout
  # Nor is anything started.
  done = slice_('run', *NEEDS['run'], code=1)
  assert 'nothing was started' in done.stderr
  slice_.write('vm', 'PREEMPTED')
  done = slice_('status', code=1)
  assert done.stdout == 'queued resource ACTIVE, VM PREEMPTED\n'


# ---- Delete ------------------------------------------------------------------


@pytest.mark.parametrize('answer,code', [('n', 1), ('', 1), ('y', 0)])
def test_delete_asks(cloud, answer, code):
  cloud('create', '--poll=0', *NEEDS['create'])
  terminal, stdin = pty.openpty()
  os.write(terminal, f'{answer}\n'.encode())
  done = subprocess.run(
    [cloud.clone / 'launch' / 'tpu_stop.sh', *SLICE, '--delete'],
    env=cloud.env,
    stdin=stdin,
    stderr=subprocess.PIPE,
    text=True,
    check=False,
  )
  os.close(terminal)
  os.close(stdin)
  assert done.returncode == code
  assert 'Delete n (ACTIVE) in z of p?' in done.stderr
  assert len(cloud.calls('queued-resources delete')) == (code == 0)


def test_delete_stops_the_run_first_and_deletes_all_the_same(slice_):
  slice_('run', *NEEDS['run'])
  slice_.pid(0)
  wait_for((slice_.homes / '0' / 'arguments').exists)
  slice_.write('dead', '1')
  done = slice_('stop', '--delete', '--yes')
  assert 'Not stopped on every worker; deleted all the same' in done.stderr
  assert slice_.logs()['t1v-n-1-w-0.log'].endswith(
    'saved\nstopped, exit code 143\n'
  )
  (delete,) = slice_.calls('queued-resources delete')
  assert '--force' in delete
  done = slice_('stop', '--delete', '--yes')
  assert 'There is no n.' in done.stderr


# ---- The scripts themselves --------------------------------------------------


def test_shellcheck_finds_nothing():
  program = pathlib.Path(sys.executable).parent / 'shellcheck'
  done = subprocess.run([program, *SCRIPTS], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout
