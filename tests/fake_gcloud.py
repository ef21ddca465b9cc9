"""A gcloud that pretends, and slices that are directories.

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
import shutil
import signal
import subprocess
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
  storage\ rsync*) cp -r "${5#gs://}/." "$6" ;;
esac
"""

UV = r"""#!/usr/bin/env bash
printf '%s\n' "$*" >>"$HOME/uv_calls"
if [[ $1 == venv ]]; then
  mkdir -p "${@: -1}/bin" && cp "$CLOUD/python" "${@: -1}/bin/python"
fi
"""

# What a VM knows of its slice, in $HOME/metadata-KEY.
CURL = r"""#!/usr/bin/env bash
url=${@: -1}
cat "$HOME/metadata-${url##*/}" 2>/dev/null || exit 22
"""

# Trains until $CLOUD/end has an exit code, or end-RUN of a workdir RUN;
# $CLOUD/slow lets it save for ever.
PYTHON = r"""#!/usr/bin/env bash
trap 'echo saved; exit 143' TERM
[[ ! -e $CLOUD/slow ]] || trap 'echo saving' TERM
printf '%s\n' "$@" >"$HOME/arguments.new"
mv "$HOME/arguments.new" "$HOME/arguments"
echo "training in $PWD, compiled in $JAX_COMPILATION_CACHE_DIR"
echo "host $JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS"
end=$CLOUD/end
for argument; do
  own=$end-${argument##*/}
  [[ $argument != --workdir=* || ! -e $own ]] || end=$own
done
until [[ -e $end ]]; do sleep 0.05; done
exit "$(<"$end")"
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
      (bin / 'curl', CURL),
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
    return self.spawn([script, *SLICE, *args], self.clone, self.env)

  def spawn(
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
    return self.spawn(['bash', 'tpu_worker.sh', *args], home, env)

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
