"""Metrics to logs/metrics.jsonl and to TensorBoard, with clu's method names.

`clu.metric_writers` needs TensorFlow; this writes the same event files
through tensorboardX. Logs grow by lines, and what lies in a bucket cannot: of
a workdir there they are written on this machine, and copied once a minute.
"""

from collections.abc import Mapping
import json
import logging
import pathlib
import shutil
import tempfile
import threading
from typing import Any

from etils import epath
import jax
import numpy as np
import tensorboardX

from elt_jax import files

log = logging.getLogger(__name__)

MIRROR_SECONDS = 60.0


class MetricWriter:
  """Writes on process 0 and does nothing elsewhere; a context manager.

  Attributes:
    logs: directory of this machine that is written to; None elsewhere.
  """

  def __init__(self, workdir: epath.PathLike, start_step: int = 0):
    """Opens workdir/logs.

    Args:
      workdir: of the run.
      start_step: the step a resumed run starts from: records of later steps,
        left by the run that died, are dropped.
    """
    self.logs = None
    self._active = jax.process_index() == 0
    if not self._active:
      return
    logs = epath.Path(workdir) / 'logs'
    self._mirror = None
    if files.is_address(logs):
      self._mirror = _Mirror(logs)
      logs = self._mirror.local
    logs.mkdir(parents=True, exist_ok=True)
    self.logs = logs
    path = logs / 'metrics.jsonl'
    resumed = path.exists()
    if resumed:
      kept = [r for r in read(logs) if r['step'] <= start_step]
      files.write_text(path, ''.join(json.dumps(r) + '\n' for r in kept))
    self._json = path.open('a')
    self._events = tensorboardX.SummaryWriter(
      str(logs), purge_step=start_step + 1 if resumed else None
    )

  def __enter__(self) -> 'MetricWriter':
    return self

  def __exit__(self, *exc: Any) -> None:
    if self._active:
      self._json.close()
      self._events.close()
      if self._mirror:
        self._mirror.close()

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """One JSON line {"step": step, name: value, ...}, and TensorBoard."""
    if not self._active:
      return
    self._json.write(json.dumps({'step': step} | dict(scalars)) + '\n')
    for name, value in scalars.items():
      self._events.add_scalar(name, value, step)
    self.flush()

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """uint8 [h, w, c] pictures, to TensorBoard alone."""
    if not self._active:
      return
    for name, image in images.items():
      self._events.add_image(name, image, step, dataformats='HWC')
    self.flush()

  def flush(self) -> None:
    if self._active:
      self._json.flush()
      self._events.flush()

  def copy(self) -> None:
    """To be called before a checkpoint, whose run goes on from these logs."""
    if self._active and self._mirror:
      self._mirror.copy()


class _Mirror:
  """A directory of this machine whose files are copied to an address."""

  def __init__(self, address: epath.Path):
    """Begins with the metrics.jsonl that is there."""
    self.local = pathlib.Path(tempfile.mkdtemp(prefix='elt_jax_logs_'))
    self._address = address
    self._copied = {}
    if (address / 'metrics.jsonl').exists():
      (address / 'metrics.jsonl').copy(self.local / 'metrics.jsonl')
    self._lock = threading.Lock()
    self._closed = threading.Event()
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def _run(self) -> None:
    while not self._closed.wait(MIRROR_SECONDS):
      self.copy()

  def copy(self) -> bool:
    """Whether all that changed could be copied."""
    copied = True
    with self._lock:
      for path in filter(pathlib.Path.is_file, self.local.rglob('*')):
        size = path.stat().st_size
        if self._copied.get(path) == size:
          continue
        target = self._address / path.relative_to(self.local)
        try:
          epath.Path(path).copy(target, overwrite=True)
        except Exception as e:  # Of gcsfs; the run is worth more than its log.
          log.warning('%s cannot be copied to %s: %s', path, target, e)
          copied = False
        else:
          self._copied[path] = size
    return copied

  def close(self) -> None:
    """Copies the rest; what cannot be copied stays on this machine."""
    self._closed.set()
    self._thread.join()
    if self.copy():
      shutil.rmtree(self.local)


def read(logs: epath.PathLike) -> list[dict[str, float]]:
  """{'step', name: value, ...} of each line of metrics.jsonl in a directory.

  A killed run may end in half of a line, which is left out; without a log
  there are none.
  """
  path = epath.Path(logs) / 'metrics.jsonl'
  found = []
  for line in path.read_text().splitlines() if path.exists() else ():
    try:
      record = json.loads(line)
    except json.JSONDecodeError:
      continue
    if isinstance(record, dict) and 'step' in record:
      found.append(record)
  return found
