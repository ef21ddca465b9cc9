"""The scripts for TPU slices, run against a gcloud that pretends.

The pretended gcloud (`GCLOUD` below) keeps what it was called with, answers
with states that a test sets, and runs what is sent to a worker in a directory
that stands for the home of that worker. Detaching, stopping and the rest are
those of real processes; in place of the training runs a few lines of bash.
"""

from collections.abc import Iterator
import contextlib
import fcntl
import os
import pathlib
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / 'launch').glob('*.sh'))
COMMANDS = ['create', 'setup', 'run', 'retry', 'status', 'stop']
SLICE = ('--project=p', '--zone=z', '--name=n')
WORKDIR = 'gs://bucket/a_run'
TRAIN = ('--', '--config=configs/x.py:small', '--config.a=it\'s a "b" & $c *')
# Of each command, what it needs besides SLICE.
NEEDS = {
  'create': ('--type=v6e-8', '--spot'),
  'run': (f'--workdir={WORKDIR}', *TRAIN),
  'retry': (f'--workdir={WORKDIR}', '--type=v6e-8', '--spot', *TRAIN),
  'stop': ('--delete',),
}
NUM_WORKERS = 2
# Whoever runs the tests, whatever their configuration.
GIT = {
  'GIT_CONFIG_GLOBAL': '/dev/null',
  'GIT_AUTHOR_NAME': 'n',
  'GIT_AUTHOR_EMAIL': 'e',
  'GIT_COMMITTER_NAME': 'n',
  'GIT_COMMITTER_EMAIL': 'e',
}

# In $CLOUD: resource, vm: states, one a line; the last one stays. failures:
# TIMES CODE PART, of calls that contain PART. dead: numbers of workers that do
# not answer. homes/I: of worker I.
GCLOUD = r"""#!/usr/bin/env bash
set -euo pipefail
cd "$CLOUD"
exec 8>lock
flock 8
printf '%s\0' "$@" >>calls && printf '\n' >>calls

lines=()
[[ ! -e failures ]] || mapfile -t lines <failures
for i in "${!lines[@]}"; do
  read -r times code part <<<"${lines[i]}"
  if [[ " $* " == *"$part"* ]] && ((times > 0)); then
    lines[i]="$((times - 1)) $code $part"
    printf '%s\n' "${lines[@]}" >failures
    echo "gcloud failed: $part" >&2
    exit "$code"
  fi
done
exec 8>&-

describe() {
  local states
  [[ -e $1 ]] || { echo 'ERROR: (gcloud) NOT_FOUND: no such' >&2; exit 1; }
  mapfile -t states <"$1"
  echo "${states[0]}"
  ((${#states[@]} == 1)) || printf '%s\n' "${states[@]:1}" >"$1"
}

create() {
  local number
  for number in 0 1; do
    mkdir -p "homes/$number/.local/bin"
    cp uv "homes/$number/.local/bin"
  done
  cp granted resource
  echo READY >vm
  printf x >>created
}

delete() {
  local pid group
  shopt -s nullglob
  for pid in homes/*/elt_jax/runs/*/pid; do
    if [[ ! -e ${pid%pid}outcome ]]; then
      group=$(cut -d ' ' -f 5 "/proc/$(<"$pid")/stat") || continue
      kill -KILL -- "-$group"
    fi
  done
  rm -rf homes resource vm
}

ssh() {
  local argument chosen command number code=0 processes=()
  for argument; do
    case $argument in
      --worker=*) chosen=${argument#*=} ;;
      --command=*) command=${argument#*=} ;;
    esac
  done
  [[ $chosen != all ]] || chosen='0 1'
  for number in $chosen; do
    if grep -qsx "$number" dead; then
      code=255
      continue
    fi
    (
      export HOME=$CLOUD/homes/$number
      export HOSTNAME=t1v-n-$(wc -c <created)-w-$number
      cd "$HOME" && exec bash -c "$command"
    ) &
    processes+=("$!")
  done
  for process in "${processes[@]}"; do wait "$process" || code=$?; done
  exit "$code"
}

copy() {
  mkdir -p "${2%/*}"
  cp "$1" "$2"
}

case $* in
  *queued-resources\ create*) create ;;
  *queued-resources\ delete*) delete ;;
  *queued-resources\ describe*) describe resource ;;
  *tpu-vm\ describe*) describe vm ;;
  *tpu-vm\ ssh*) ssh "$@" ;;
  *tpu-vm\ scp*) for home in homes/*; do cp "$5" "$home"; done ;;
  storage\ cp*) copy "$4" "${5#gs://}" ;;
esac
"""

UV = r"""#!/usr/bin/env bash
printf '%s\n' "$*" >>"$HOME/uv_calls"
if [[ $1 == venv ]]; then
  mkdir -p "${@: -1}/bin" && cp "$CLOUD/python" "${@: -1}/bin/python"
fi
"""

# Trains until $CLOUD/end has an exit code; $CLOUD/slow lets it save for ever.
PYTHON = r"""#!/usr/bin/env bash
trap 'echo saved; exit 0' TERM
[[ ! -e $CLOUD/slow ]] || trap 'echo saving' TERM
printf '%s\n' "$@" >"$HOME/arguments.new"
mv "$HOME/arguments.new" "$HOME/arguments"
echo "training in $PWD"
until [[ -e $CLOUD/end ]]; do sleep 0.05; done
exit "$(<"$CLOUD/end")"
"""


def git(clone: pathlib.Path, *args: str) -> str:
  return subprocess.run(
    ['git', *args],
    env=os.environ | GIT,
    cwd=clone,
    check=True,
    capture_output=True,
    text=True,
  ).stdout.strip()


@pytest.fixture(scope='module')
def clone(tmp_path_factory) -> pathlib.Path:
  """What of a clone of the project the scripts look at."""
  path = tmp_path_factory.mktemp('clone')
  shutil.copytree(ROOT / 'launch', path / 'launch')
  (path / 'requirements.txt').write_text('jax\n')
  git(path, 'init', '-q', '--template=')
  git(path, 'add', '.')
  git(path, 'commit', '-qm', 'first')
  return path


class Cloud:
  """The pretended cloud, and a clone of the scripts to launch from."""

  def __init__(self, path: pathlib.Path, clone: pathlib.Path):
    self.path = path
    self.clone = path / 'clone'
    self.homes = path / 'homes'
    self.processes = []
    bin = path / 'bin'
    bin.mkdir()
    for file, text in (
      (bin / 'gcloud', GCLOUD),
      (path / 'uv', UV),
      (path / 'python', PYTHON),
    ):
      file.write_text(text)
      file.chmod(0o755)
    self.write('granted', 'PROVISIONING\nACTIVE')
    self.env = {
      'PATH': f'{bin}:{os.environ["PATH"]}',
      'CLOUD': str(path),
      'TMPDIR': str(path),
      'HOME': str(path),
    }
    shutil.copytree(clone, self.clone)

  def git(self, *args: str) -> str:
    return git(self.clone, *args)

  def write(self, name: str, text: str) -> None:
    (self.path / name).write_text(text)

  def fail(self, part: str, code: int, times: int = 99) -> None:
    """Lets calls of gcloud that have `part` in them fail."""
    with (self.path / 'failures').open('a') as file:
      file.write(f'{times} {code} {part}\n')

  def start(self, command: str, *args: str) -> subprocess.Popen:
    script = self.clone / 'launch' / f'tpu_{command}.sh'
    return self._start([script, *SLICE, *args], self.clone, self.env)

  def _start(
    self, command: list, cwd: pathlib.Path, env: dict[str, str]
  ) -> subprocess.Popen:
    process = subprocess.Popen(
      command,
      cwd=cwd,
      env=env,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,  # Killing groups must not reach pytest.
    )
    self.processes.append(process)
    return process

  def __call__(
    self, command: str, *args: str, code: int = 0
  ) -> subprocess.CompletedProcess:
    """Runs a script to its end, which must be with `code`."""
    return ended(self.start(command, *args), code)

  def on_worker(
    self, *args: str, number: int = 0, code: int = 0
  ) -> subprocess.CompletedProcess:
    """Runs tpu_worker.sh on a worker, without gcloud."""
    return ended(self.start_on_worker(*args, number=number), code)

  def start_on_worker(self, *args: str, number: int = 0) -> subprocess.Popen:
    home = self.homes / str(number)
    env = self.env | {'HOME': str(home), 'HOSTNAME': f't1v-n-1-w-{number}'}
    return self._start(['bash', 'tpu_worker.sh', *args], home, env)

  def states(self) -> list[str]:
    return [
      self.on_worker('state', number=number).stdout.split()[2]
      for number in range(NUM_WORKERS)
    ]

  def calls(self, part: str = '') -> list[list[str]]:
    """Calls of gcloud that have `part` in them."""
    path = self.path / 'calls'
    text = path.read_text() if path.exists() else ''
    calls = [line.split('\0') for line in text.split('\0\n')[:-1]]
    return [call for call in calls if part in ' '.join(call)]

  def created(self) -> int:
    return len(self.calls('queued-resources create'))

  def logs(self) -> dict[str, str]:
    """What is in the bucket, by the name of the host."""
    paths = (self.path / 'bucket').glob('a_run/worker_logs/*')
    return {p.name[p.name.index('t1v') :]: p.read_text() for p in paths}

  def pid(self, number: int = 0) -> int:
    runs = self.homes / str(number) / 'elt_jax' / 'runs'
    wait_for(lambda: (runs / 'latest' / 'pid').exists())
    return int((runs / 'latest' / 'pid').read_text())

  def preempt(self) -> None:
    self.write('vm', 'PREEMPTED')
    self.write('dead', '0\n1')
    for number in range(NUM_WORKERS):
      os.killpg(os.getpgid(self.pid(number)), signal.SIGKILL)


def ended(
  process: subprocess.Popen, code: int
) -> subprocess.CompletedProcess[str]:
  """Waits for the end, and for all who may write to the same pipes."""
  out, err = process.communicate(timeout=60)
  print(out, err, sep='\n')  # Of a test that fails.
  assert process.returncode == code, out + err
  return subprocess.CompletedProcess(process.args, code, out, err)


def wait_for(condition) -> None:
  deadline = time.monotonic() + 20
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)


def is_free(lock) -> bool:
  with contextlib.suppress(BlockingIOError):
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True
  return False


@pytest.fixture
def cloud(tmp_path, clone) -> Iterator[Cloud]:
  """A cloud without a slice; no process of it survives the test."""
  cloud = Cloud(tmp_path, clone)
  yield cloud
  for process in cloud.processes:
    if process.poll() is None:
      os.killpg(process.pid, signal.SIGKILL)
      process.communicate()
  cloud.write('end', '0')
  for lock in cloud.homes.glob('*/elt_jax/lock'):
    with lock.open() as file:
      wait_for(lambda: is_free(file))


@pytest.fixture
def slice_(cloud) -> Cloud:
  """A cloud with a slice that is set up."""
  cloud('create', '--poll=0', *NEEDS['create'])
  cloud('setup')
  return cloud


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
    ('run', TRAIN, '--workdir is required, or ELT_TPU_WORKDIR'),
    ('run', ('--workdir=runs/a', *TRAIN), 'must be gs://BUCKET/DIRECTORY'),
    ('run', (f'--workdir={WORKDIR}',), 'Nothing to train'),
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
  """Printed commands as a shell reads them, without the time of the start."""
  text = re.sub(r'\d{8}T\d{6}Z-\d+', 'TIME', text)
  return [shlex.split(line) for line in text.splitlines()]


@pytest.mark.parametrize('command', COMMANDS)
def test_a_dry_run_prints_commands_and_runs_none(cloud, command):
  before = sorted(cloud.path.rglob('*'))
  done = cloud(command, '--dry-run', *NEEDS.get(command, ()))
  assert not done.stderr
  assert sorted(cloud.path.rglob('*')) == before
  programs = {line[0] for line in lines_of(done.stdout)}
  assert 'gcloud' in programs and programs <= {'gcloud', 'git', 'mkdir'}


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
    assert f'--requirement={code}/requirements.txt jax[tpu] gcsfs' in install
  assert not list(slice_.path.glob('elt_jax-*'))


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

  done = slice_('stop')
  assert re.findall(r'stopped \d', done.stdout) == ['stopped 0'] * 2
  for log in slice_.logs().values():
    assert log.endswith('saved\nstopped, exit code 0\n')
  slice_('stop')  # Nothing is alive: nothing to do.

  # The next start has a log of its own.
  slice_('run', *NEEDS['run'])
  assert len(list((slice_.path / 'bucket/a_run/worker_logs').iterdir())) == 4


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
  return cloud.on_worker('start', id, '60', WORKDIR, '--config=x', code=code)


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


def test_a_run_that_fails_leaves_its_exit_code(worker):
  worker.write('end', '3')
  start(worker, 'one')
  wait_for(lambda: worker.states()[0] == 'failed')
  assert ' failed 3 one ' in worker.on_worker('state').stdout
  assert worker.logs()['t1v-n-1-w-0.log'].endswith('failed, exit code 3\n')
  assert 'exit code 3' in worker.on_worker('log', '1').stdout


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
    'saved\nstopped, exit code 0\n'
  )
  (delete,) = slice_.calls('queued-resources delete')
  assert '--force' in delete
  done = slice_('stop', '--delete', '--yes')
  assert 'There is no n.' in done.stderr


# ---- Retry -------------------------------------------------------------------

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


# ---- The scripts themselves --------------------------------------------------


def test_shellcheck_finds_nothing():
  program = pathlib.Path(sys.executable).parent / 'shellcheck'
  done = subprocess.run([program, *SCRIPTS], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout
