"""Loop schedules that were searched: a budget of loops, spent where it counts.

`calibrate` measures, for every sampling step and every number of loops, how
far the outcome of the step is from that of L_max loops (`samplers.probe`).
A budget is then filled greedily, loop by loop, where the next one brings the
outcome closest. The measurement serves every budget.
"""

import json
import math
from typing import Any

from etils import epath
import numpy as np

from elt_jax import files


def fill(
  effect: np.ndarray, cost: np.ndarray, low: int, budget: float
) -> list[int]:
  """Loops of each step.

  Args:
    effect: [K, L_max], distance of each step's outcome after so many loops
      from that after L_max.
    cost: [K], passes that a loop of the step takes part in.
    low: L_min, the loops of a step at least.
    budget: share of the cost of L_max loops at every step, as `share` reads.

  Returns:
    K numbers in low..L_max, which cost as much as the budget allows, to less
    than one loop.
  """
  num_steps, high = effect.shape
  loops = np.full(num_steps, low)
  left = (budget + 1e-9) * high * cost.sum() - low * cost.sum()
  while True:
    # The best is what gains most for each loop, over any number of them: the
    # first alone may gain nothing.
    found = [
      ((effect[k, loops[k] - 1] - effect[k, n - 1]) / (cost[k] * more), k, n)
      for k in range(num_steps)
      for n in range(loops[k] + 1, high + 1)
      if cost[k] * (more := n - loops[k]) <= left
    ]
    if not found:
      return [int(n) for n in loops]
    _, k, n = max(found, key=lambda x: (x[0], -x[1]))
    left -= cost[k] * (n - loops[k])
    loops[k] = n


def share(text: str, low: int, high: int) -> float:
  """A budget: '0.6' is 0.6 of the loops of L_max = `high`.

  Raises:
    ValueError: unless loops in low..high can meet it.
  """
  try:
    budget = float(text)
  except ValueError:
    budget = math.nan
  if not low / high <= budget <= 1:
    raise ValueError(
      f'A budget of {text!r} cannot be met: {low}..{high} loops a step are '
      f'{low / high:.3g}..1 of those of L_max.'
    )
  return budget


def write(workdir: str, report: dict[str, Any]) -> epath.Path:
  """Writes calibration.json: 'recipe', 'low', 'effect', 'cost', 'schedules'."""
  path = epath.Path(workdir) / 'calibration.json'
  files.write_text(path, json.dumps(report, indent=2) + '\n')
  return path


def schedule(workdir: str, budget: str, config: Any) -> tuple[int, ...]:
  """Loops of each step for a budget, by what was measured in a workdir.

  They were measured under the guidance of the recipe, and may serve another.

  Raises:
    ValueError: if nothing was, or for another sampler; if the budget is no
      number, or cannot be met.
  """
  path = epath.Path(workdir) / 'calibration.json'
  if not workdir or not path.is_file():
    raise ValueError(
      f"'calibrated:{budget}' needs {path}: make it with python -m "
      f'elt_jax.calibrate --workdir={workdir or "DIR"}'
    )
  try:
    report = json.loads(path.read_text())
    recipe = report['recipe']
    effect, cost = np.array(report['effect']), np.array(report['cost'])
    low, high = report['low'], effect.shape[1]
  except (json.JSONDecodeError, KeyError, TypeError) as e:
    raise ValueError(f'{path} is no calibration: {e!r}') from e
  s = config.sample
  for key in ('num_steps', 'method'):
    if recipe[key] != s[key]:
      raise ValueError(
        f'{path} is of {key} = {recipe[key]}, and this sampler has {s[key]}: '
        'calibrate again with the same flags.'
      )
  return tuple(fill(effect, cost, low, share(budget, low, high)))
