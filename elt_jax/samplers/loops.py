"""Loop schedules: how many loops each sampling step runs.

    4                        four at every step
    constant:avg=2.5         2 and 3 in turn
    decreasing:avg=3         a straight ramp, widest that fits in L_min..L_max
    increasing, mid-peak     likewise
    explicit:10x1+15x4       ten steps of one loop, then fifteen of four
    calibrated:0.6           0.6 of the loops of L_max, placed where
                             `python -m elt_jax.calibrate` found they count
    converge:tol=0.05        until the output changes by less, as a batch
    rebatch:tol=0.05         the same, batches made anew between the steps of
                             samples that are alike in difficulty

A schedule is an array that the compiled sampler takes: none recompiles. The
literature disagrees on the best shape, so none is a default.
"""

from collections.abc import Sequence
import dataclasses
import math
import re
from typing import Any

import numpy as np

from elt_jax.samplers import calibration

# Relative change of the output under which `converge` stops.
TOLERANCE = 0.05
_KEYS = {
  'constant': ('avg',),
  'increasing': ('avg',),
  'decreasing': ('avg',),
  'mid-peak': ('avg',),
  'converge': ('tol', 'min', 'max'),
  'rebatch': ('tol', 'min', 'max'),
}


@dataclasses.dataclass(frozen=True)
class Loops:
  """Loops of every sampling step.

  Attributes:
    label: as it was asked for: a number, or one of the forms above.
    steps: [K], the loops of each step, at most.
    min_loops: at least so many, where `tolerance` may end a step early.
    tolerance: relative change of the output under which a step ends; 0 runs
      all its loops.
    rebatch: whether batches are made anew between steps.
  """

  label: int | str
  steps: tuple[int, ...]
  min_loops: int = 1
  tolerance: float = 0.0
  rebatch: bool = False


def parse(
  loops: 'int | str | Sequence[int] | Loops', config: Any, workdir: str = ''
) -> Loops:
  """The loops of every step, from any form in which they are given.

  Args:
    loops: a number, one number per step, or a form of this module's docstring.
    config: of the model.
    workdir: where 'calibrated' looks for calibration.json.

  Raises:
    ValueError: naming what is wrong and what is allowed.
  """
  if isinstance(loops, Loops):
    return loops
  num_steps = config.sample.num_steps
  if isinstance(loops, str) and not loops.strip().isdigit():
    return _parse_form(loops.strip(), config, workdir)
  steps = np.asarray(int(loops) if isinstance(loops, str) else loops)
  if (
    steps.dtype.kind not in 'iu'
    or steps.shape not in ((), (num_steps,))
    or steps.min() < 1
  ):
    raise ValueError(
      f'loops must be one number or one per sampling step ({num_steps}), each '
      f'an integer of at least 1; got {np.asarray(loops).tolist()}.'
    )
  label = int(steps) if steps.ndim == 0 else explicit(steps)
  return Loops(label, tuple(int(n) for n in np.broadcast_to(steps, num_steps)))


def _parse_form(form: str, config: Any, workdir: str) -> Loops:
  num_steps = config.sample.num_steps
  low, high = config.objective.min_loops, config.model.max_loops
  low = min(low, high)  # A model of one loop.
  name, _, rest = form.partition(':')
  if name == 'explicit':
    return dataclasses.replace(
      parse(_expand(rest, num_steps), config), label=form
    )
  if name == 'calibrated':
    return Loops(form, calibration.schedule(workdir, rest, config))
  if name not in _KEYS:
    raise ValueError(
      f'{form!r} is no loop schedule: give a number, '
      f'{", ".join(_KEYS)}, explicit:10x1+15x4 or calibrated:0.6.'
    )
  given = options(form, rest, _KEYS[name])
  if name in ('converge', 'rebatch'):
    least, most = given.get('min', low), given.get('max', high)
    tolerance = given.get('tol', TOLERANCE)
    if least % 1 or most % 1 or not 1 <= least <= most or tolerance < 0:
      raise ValueError(
        f'{form!r}: min and max must be integers with 1 <= min <= max, tol at '
        f'least 0; got min {least:g}, max {most:g}, tol {tolerance:g}.'
      )
    steps = (int(most),) * num_steps
    return Loops(form, steps, int(least), tolerance, name == 'rebatch')
  average = given.get('avg', (low + high) / 2)
  if not low <= average <= high:
    raise ValueError(
      f'{form!r}: avg must be within L_min..L_max = {low}..{high} of the '
      f'training; got {average:g}.'
    )
  return Loops(form, ramp(name, average, num_steps, low, high))


def ramp(
  shape: str, average: float, num_steps: int, low: int, high: int
) -> tuple[int, ...]:
  """[K] loops in low..high whose sum is K `average`, rounded.

  The straight line (or, for 'mid-peak', the roof) about the average that is
  steepest without leaving low..high, rounded to integers of the same sum.
  """
  u = np.linspace(0, 1, num_steps) if num_steps > 1 else np.array([0.5])
  slope = {
    'constant': 0 * u,
    'increasing': 2 * u - 1,
    'decreasing': 1 - 2 * u,
    'mid-peak': 1 - np.abs(4 * u - 2),
  }[shape]
  slope = slope - slope.mean()
  reach = min(
    (high - average) / max(slope.max(), 1e-9),
    (average - low) / max(-slope.min(), 1e-9),
  )
  wanted = average + min(reach, 1e6) * slope
  if shape == 'constant':  # Spread evenly.
    edges = np.floor(average * np.arange(num_steps + 1) + 0.5)
    return tuple(int(n) for n in np.diff(edges))
  # Largest remainders, so that equal fractions keep the order of the ramp.
  whole = np.floor(wanted + 1e-9)
  missing = round(average * num_steps) - int(whole.sum())
  first = np.argsort(-np.round(wanted - whole, 6), kind='stable')
  whole[first[:missing]] += 1
  return tuple(int(n) for n in whole)


def options(form: str, text: str, allowed: tuple[str, ...]) -> dict:
  """'tol=0.1:max=6' -> {'tol': 0.1, 'max': 6.0}."""
  found = {}
  for part in filter(None, text.split(':')):
    key, _, value = part.partition('=')
    try:
      found[key] = float(value)
    except ValueError:
      found[key] = math.nan
    if key not in allowed or math.isnan(found[key]):
      raise ValueError(
        f'{form!r}: expected {" or ".join(f"{k}=NUMBER" for k in allowed)}, '
        f'separated by colons; got {part!r}.'
      )
  return found


def _expand(text: str, num_steps: int) -> list[int]:
  """'10x1+15x4' -> ten ones, fifteen fours."""
  if not re.fullmatch(r'(\d+x)?\d+(\+(\d+x)?\d+)*', text):
    raise ValueError(
      f"'explicit:{text}' must be STEPSxLOOPS joined by +, as in 10x1+15x4."
    )
  steps = []
  for part in text.split('+'):
    count, _, loops = part.rpartition('x')
    steps += [int(loops)] * int(count or 1)
  if len(steps) != num_steps:
    raise ValueError(
      f"'explicit:{text}' is of {len(steps)} steps, the sampler makes "
      f'{num_steps}.'
    )
  return steps


def explicit(steps: Sequence[int]) -> str:
  """[1, 1, 3] -> 'explicit:2x1+1x3'."""
  steps = np.asarray(steps)
  starts = np.flatnonzero(np.diff(steps, prepend=steps[0] - 1))
  counts = np.diff(starts, append=len(steps))
  return 'explicit:' + '+'.join(
    f'{count}x{steps[start]}'
    for start, count in zip(starts, counts, strict=True)
  )
