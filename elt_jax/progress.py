"""Progress of a long command: a bar on a terminal, plain lines elsewhere."""

from collections.abc import Mapping
import datetime
import logging
import sys
import time
from typing import Any

import jax
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
