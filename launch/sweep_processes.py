"""Processes of a sweep: one for each workdir, and each its share of devices.

A run is guarded by a lock on a file that its processes hold open: it is free
however they end, and not before, also when the sweep itself was killed.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import glob
import importlib.util
import os
import pathlib
import shlex
import signal
import subprocess
import threading
from types import FrameType
from typing import Any

from elt_jax import files

ROOT = pathlib.Path(__file__).resolve().parent.parent
# How many chips side by side make a slice by themselves.
_BOUNDS = {1: '1,1,1', 2: '1,2,1', 4: '2,2,1', 8: '2,4,1'}
_TPU_PORT = 8476
# JAX uses GPUs if one of these is installed beside it.
_CUDA = ('jax_cuda12_plugin', 'jax_cuda13_plugin')


class Stopped(Exception):
  """The sweep was told to stop."""


class Failed(Exception):
  """A command of a run ended with an error."""


class Processes:
  """What a sweep has running; a context manager.

  SIGTERM and Ctrl-C stop all of it with SIGTERM, at which a training saves. A
  second one ends the sweep alone. Threads share it.

  Attributes:
    signal: the one that stopped it, or None.
  """

  def __init__(self):
    self.signal: int | None = None
    self._stopping = threading.Event()
    self._mutex = threading.Lock()
    self._alive: set[subprocess.Popen] = set()
    self._previous = {}

  def __enter__(self) -> 'Processes':
    for number in (signal.SIGTERM, signal.SIGINT):
      self._previous[number] = signal.signal(number, self._stop)
    return self

  def __exit__(self, *exc: Any) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _stop(self, number: int, frame: FrameType | None) -> None:
    del frame
    for other in self._previous:
      signal.signal(other, signal.SIG_DFL)
    with self._mutex:
      self.signal = number
      self._stopping.set()
      for process in self._alive:
        with contextlib.suppress(ProcessLookupError):
          if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)

  def check(self) -> None:
    """Raises `Stopped` once the sweep is to stop."""
    if self._stopping.is_set():
      raise Stopped

  def run(
    self,
    command: Sequence[str],
    log: pathlib.Path,
    lock: int,
    environment: Mapping[str, str],
  ) -> None:
    """Runs a command of a run to its end.

    Args:
      command: the program and its arguments.
      log: file that its output is added to.
      lock: descriptor of the lock of the run.
      environment: variables besides those of the sweep.

    Raises:
      Failed: if it does not end with 0.
      Stopped: if it was stopped, or was not to be started any more.
    """
    with log.open('a') as output:
      output.write(f'$ {shlex.join(command)}\n')
      output.flush()
      with self._mutex:
        self.check()
        process = subprocess.Popen(
          command,
          cwd=ROOT,
          env=os.environ | environment,
          stdin=subprocess.DEVNULL,
          stdout=output,
          stderr=subprocess.STDOUT,
          pass_fds=[lock],
          # Ctrl-C of a terminal reaches a whole group, and a training that is
          # told twice does not save.
          start_new_session=True,
        )
        self._alive.add(process)
    code = process.wait()
    with self._mutex:
      self._alive.remove(process)
    if code:
      self.check()
      lines = log.read_text(errors='replace').strip().splitlines()
      raise Failed(f'exit code {code}: {lines[-1][:500]}')

  @contextlib.contextmanager
  def lock(self, path: pathlib.Path, waits: str) -> Iterator[int]:
    """Yields the descriptor of a lock, once no other process holds it.

    Args:
      path: its file.
      waits: what is printed when another process does hold it.

    Raises:
      Stopped: if the sweep is to stop before that.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('a') as file:
      told = False
      while not files.try_lock(file.fileno()):
        if not told:
          print(waits, flush=True)
        told = True
        self._stopping.wait(1)
        self.check()
      yield file.fileno()


def is_locked(path: pathlib.Path) -> bool:
  """Whether a process holds the lock of this file."""
  if not path.exists():
    return False
  with path.open() as file:
    return not files.try_lock(file.fileno())


def shares(parallel: int) -> list[dict[str, str]]:
  """Variables that give each of `parallel` processes its part of the devices.

  None for one process, or without an accelerator that JAX may use.

  Raises:
    ValueError: if the devices cannot be parted so.
  """
  if parallel == 1 or os.environ.get('JAX_PLATFORMS') == 'cpu':
    return [{}] * parallel
  if chips := tpu_chips():
    parts = _split('TPU chips', chips, parallel)
    if len(parts[0]) not in _BOUNDS:
      raise ValueError(
        f'--parallel={parallel} leaves {len(parts[0])} TPU chips to a run; '
        f'that must be one of {list(_BOUNDS)}.'
      )
    return [_tpu_variables(part, i) for i, part in enumerate(parts)]
  if gpus := nvidia_gpus():
    parts = _split('GPUs', gpus, parallel)
    return [{'CUDA_VISIBLE_DEVICES': ','.join(part)} for part in parts]
  return [{}] * parallel


def _tpu_variables(chips: Sequence[str], number: int) -> dict[str, str]:
  """A process that is alone on some of the chips of this host."""
  port = str(_TPU_PORT + number)
  return {
    'TPU_VISIBLE_CHIPS': ','.join(chips),
    'TPU_CHIPS_PER_PROCESS_BOUNDS': _BOUNDS[len(chips)],
    'TPU_PROCESS_BOUNDS': '1,1,1',
    'TPU_MESH_CONTROLLER_ADDRESS': f'localhost:{port}',
    'TPU_MESH_CONTROLLER_PORT': port,
    # Or the second process that takes half of a host finds libtpu in use.
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  }


def _split(kind: str, names: Sequence[str], parts: int) -> list[list[str]]:
  size = len(names) // parts
  if size * parts != len(names) or not size:
    raise ValueError(
      f'--parallel={parts} must divide the {len(names)} {kind} of this machine.'
    )
  return [list(names[i * size : (i + 1) * size]) for i in range(parts)]


def tpu_chips() -> list[str]:
  """Numbers of the TPU chips that JAX would use."""
  if not importlib.util.find_spec('libtpu'):
    return []
  if chosen := os.environ.get('TPU_VISIBLE_CHIPS'):
    return chosen.split(',')
  # v5e and later are passed through by vfio, with numbers of their own.
  found = glob.glob('/dev/accel[0-9]*') or glob.glob('/dev/vfio/[0-9]*')
  return [str(i) for i in range(len(found))]


def nvidia_gpus() -> list[str]:
  """Names of the GPUs that JAX would use."""
  if not any(map(importlib.util.find_spec, _CUDA)):
    return []
  chosen = os.environ.get('CUDA_VISIBLE_DEVICES')
  if chosen is not None:
    return [name for name in chosen.split(',') if name]
  return [str(i) for i in range(len(glob.glob('/dev/nvidia[0-9]*')))]
