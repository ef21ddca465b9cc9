"""Metrics to logs/metrics.jsonl and to TensorBoard, with clu's method names.

`clu.metric_writers` needs TensorFlow; this writes the same event files
through tensorboardX.
"""

from collections.abc import Mapping
import json
import pathlib
from typing import Any

import jax
import numpy as np
import tensorboardX

from elt_jax import files


class MetricWriter:
  """Writes on process 0 and does nothing elsewhere; a context manager."""

  def __init__(self, workdir: str | pathlib.Path, start_step: int = 0):
    """Opens workdir/logs.

    Args:
      workdir: of the run.
      start_step: the step a resumed run starts from: records of later steps,
        left by the run that died, are dropped.
    """
    self._active = jax.process_index() == 0
    if not self._active:
      return
    logs = pathlib.Path(workdir) / 'logs'
    logs.mkdir(parents=True, exist_ok=True)
    path = logs / 'metrics.jsonl'
    resumed = path.exists()
    if resumed:
      _drop_after(path, start_step)
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


def _drop_after(path: pathlib.Path, step: int) -> None:
  """Keeps whole records up to `step`: a killed run may end in half of one."""
  kept = []
  for line in path.read_text().splitlines():
    try:
      if json.loads(line)['step'] <= step:
        kept.append(line + '\n')
    except (json.JSONDecodeError, KeyError, TypeError):
      continue
  files.write_text(path, ''.join(kept))
