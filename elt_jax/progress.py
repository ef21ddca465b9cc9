"""What a run shows of itself: progress, means of its metrics, a trace.

Progress is a bar on a terminal and plain lines elsewhere.
"""

from collections.abc import Mapping, Sequence
import datetime
import logging
import sys
import time
from typing import Any

from etils import epath
import jax
import numpy as np
import tqdm

log = logging.getLogger(__name__)


class Progress:
  """Counts steps; a context manager.

  Attributes:
    rate: steps per second at the last report, 0 before any.
  """

  def __init__(self, total: int, start: int = 0):
    self._total = total
    self._quiet = jax.process_index() != 0
    self._bar = None
    if sys.stderr.isatty() and not self._quiet:
      self._bar = tqdm.tqdm(
        total=total, initial=start, unit='step', dynamic_ncols=True
      )
    self._last_step, self._last_time = start, time.monotonic()
    self.rate = 0.0

  def __enter__(self) -> 'Progress':
    return self

  def __exit__(self, *exc: Any) -> None:
    if self._bar is not None:
      self._bar.close()

  def restart(self, first: Any) -> None:
    """Waits for the first step's arrays; rates count from here."""
    jax.block_until_ready(first)
    seconds = time.monotonic() - self._last_time
    log.info('First step, compilation included: %.1f s.', seconds)
    self._last_step, self._last_time = self._last_step + 1, time.monotonic()

  def step(self) -> None:
    """One step was dispatched."""
    if self._bar is not None:
      self._bar.update()

  def report(self, step: int, values: Mapping[str, float]) -> None:
    """Shows `values` of the steps up to `step`, which are finished."""
    now = time.monotonic()
    if step > self._last_step:
      self.rate = (step - self._last_step) / (now - self._last_time)
    self._last_step, self._last_time = step, now
    text = ' '.join(f'{name} {value:.4g}' for name, value in values.items())
    if self._bar is not None:
      self._bar.set_postfix_str(text)
    elif not self._quiet:
      eta = '?'
      if self.rate:
        seconds = round((self._total - step) / self.rate)
        eta = str(datetime.timedelta(seconds=seconds))
      log.info(
        'step %d/%d  %s  %.2f steps/s  ETA %s',
        step,
        self._total,
        text,
        self.rate,
        eta,
      )

  def skip_time(self, seconds: float) -> None:
    """Leaves out time not spent on steps (sampling)."""
    self._last_time += seconds


class Window:
  """Metrics of the steps since the last read, left on the device till then."""

  def __init__(self, step: int):
    self._step = step
    self._metrics = []
    self._means = {}

  def add(self, metrics: dict[str, jax.Array]) -> None:
    self._metrics.append(metrics)

  def read(self) -> dict[str, float]:
    """Means over the window, or the last ones if nothing came since.

    Raises:
      FloatingPointError: naming the first such step and its metrics.
    """
    if not self._metrics:
      return dict(self._means)
    fetched = jax.device_get(self._metrics)
    self._metrics = []
    for metrics in fetched:
      self._step += 1
      bad = [n for n in metrics if not np.isfinite(metrics[n])]
      if bad:
        named = ', '.join(f'{name} is {metrics[name]}' for name in bad)
        raise FloatingPointError(
          f'Not finite at step {self._step}: {named}. The newest checkpoint '
          'is from before; lower optim.learning_rate or optim.clip_norm in a '
          'new workdir.'
        )
    self._means = {
      f'train/{name}': float(np.mean([m[name] for m in fetched]))
      for name in fetched[0]
    }
    return dict(self._means)


class Trace:
  """Traces some steps with the JAX profiler, for TensorBoard and Perfetto.

  A context manager that ends a trace begun.
  """

  def __init__(self, steps: Sequence[int], directory: epath.PathLike | None):
    """Traces nothing yet.

    Args:
      steps: the first and the last; () for none.
      directory: logs of the run; None on hosts that write none.
    """
    self._steps = tuple(steps) if directory else ()
    self._directory = directory
    self._active = False

  def __enter__(self) -> 'Trace':
    return self

  def __exit__(self, *exc: Any) -> None:
    self._stop()

  def begin(self, step: int) -> None:
    """Before `step` is dispatched."""
    if self._steps and step == self._steps[0]:
      jax.profiler.start_trace(self._directory)
      self._active = True

  def end(self, step: int, metrics: Any) -> None:
    """After `step` was dispatched; waits for the last, by its `metrics`."""
    if self._active and step == self._steps[1]:
      jax.block_until_ready(metrics)
      self._stop()

  def _stop(self) -> None:
    if self._active:
      self._active = False
      jax.profiler.stop_trace()
      log.info('Traced steps %d to %d: logs/plugins/profile.', *self._steps)
