"""What each sampling step spends: loops, passes and scales, as values.

The compiled sampler takes a plan as an argument, so that one program serves
every schedule of loops, every mode and scale of guidance, every interval and
every tolerance. Modes of `sample.guidance_mode`, with c the conditional and u
the unconditional output, L the loops and l = `sample.weak_loops`:

    cfg          u_L + s (c_L - u_L)                     2 passes
    cfg_shallow  u_l + s (c_L - u_l)                     1 + l / L passes
    exit         c_l + s (c_L - c_l)                     1 pass, 1 more head
    cfg+exit     c_L + (s - 1) (c_L - u_L)
                     + (s' - 1) (c_L - c_l)              2 passes, 1 more head

s is `sample.guidance` and s' `sample.exit_guidance`. cfg: Ho and Salimans,
arXiv 2207.12598, with w = s - 1. exit: the weak model of autoguidance (arXiv
2406.02507) is an early loop of the same pass, as in Internal Guidance (arXiv
2512.24176). A shallow unconditional pass: ELIT. At s = 1 nothing is guided.
Guidance acts at times in [`guidance_low`, `guidance_high`] (arXiv 2404.07724)
and its scale may ramp over the steps, see `guidance_ramp`.
"""

from collections.abc import Sequence
from typing import Any

from flax import struct
import numpy as np

from elt_jax.samplers.loops import Loops, options, parse
from elt_jax.validation import CHOICES, validate

# Keys of config.sample that are values of a plan; others shape the program.
VALUES = (
  'guidance',
  'guidance_mode',
  'guidance_low',
  'guidance_high',
  'guidance_schedule',
  'exit_guidance',
  'weak_loops',
)


@struct.dataclass
class Plan:
  """[K] each, or scalars for one step.

  Attributes:
    loops: int32, loops of the conditional pass, at most.
    null_loops: int32, of the unconditional pass; 0 leaves it out.
    exit_loop: int32, the loop whose output is the weak one; 0 for none.
    scale: float32, s of the unconditional pass.
    exit_scale: float32, s of the exit.
    min_loops: int32, loops of either pass, at least.
    tolerance: float32, the relative change that ends a pass; 0 runs all loops.
  """

  loops: Any
  null_loops: Any
  exit_loop: Any
  scale: Any
  exit_scale: Any
  min_loops: Any
  tolerance: Any


def build_plan(
  config: Any, loops: int | str | Sequence[int] | Loops, **changes: Any
) -> Plan:
  """The plan of a config, in numpy.

  Args:
    config: a validated config of a generator.
    loops: any form of `samplers.loops.parse`.
    **changes: values in place of those of config.sample, of `VALUES`.

  Raises:
    ValueError: if anything is out of range, or a weak pass is to run more
      loops than the strong one.
  """
  if changes:
    config = changed(config, **changes)
  s, num_steps = config.sample, config.sample.num_steps
  loops = parse(loops, config)
  steps = np.array(loops.steps, np.int32)
  if steps.shape != (num_steps,):
    raise ValueError(
      f'The schedule {loops.label} is of {len(steps)} steps, the sampler '
      f'makes {num_steps}.'
    )
  low, high = np.float32([s.guidance_low, s.guidance_high])
  times = step_times(num_steps)
  active = (low <= times) & (times <= high)
  gain = np.where(active, guidance_ramp(s.guidance_schedule, num_steps), 0)
  ramped = lambda scale: (1 + (scale - 1) * gain).astype(np.float32)
  one, none = np.ones(num_steps, np.float32), np.zeros(num_steps, np.int32)
  scale = one if s.guidance_mode == 'exit' else ramped(s.guidance)
  exit_scale = {
    'exit': ramped(s.guidance),
    'cfg+exit': ramped(s.exit_guidance),
  }.get(s.guidance_mode, one)
  weak = np.full(num_steps, s.weak_loops, np.int32)
  # The exit of the last loop is the output itself.
  exit_scale = np.where(steps == weak, 1, exit_scale).astype(np.float32)
  null = weak if s.guidance_mode == 'cfg_shallow' else steps
  plan = Plan(
    loops=steps,
    null_loops=np.where(scale != 1, null, none),
    exit_loop=np.where(exit_scale != 1, weak, none),
    scale=scale,
    exit_scale=exit_scale,
    min_loops=np.full(num_steps, loops.min_loops, np.int32),
    tolerance=np.full(num_steps, loops.tolerance, np.float32),
  )
  _check_weak(plan, loops, s.weak_loops)
  return plan


def _check_weak(plan: Plan, loops: Loops, weak: int) -> None:
  """A weak output must come before the strong one."""
  reached = np.maximum(plan.null_loops, plan.exit_loop) <= plan.loops
  if not reached.all():
    least = plan.loops.min()
    raise ValueError(
      f'sample.weak_loops = {weak} is more than the {least} loops of a step '
      f'of {loops.label}; give 1..{least}.'
    )
  if loops.tolerance and (plan.exit_loop > loops.min_loops).any():
    raise ValueError(
      f'{loops.label} may stop after {loops.min_loops} loops, before the exit '
      f'that guides, sample.weak_loops = {weak}; give min={weak}.'
    )


def least_loops(config: Any) -> int:
  """The fewest loops of a step that the config's guidance allows."""
  s = config.sample
  of_exit = s.guidance_mode == 'cfg+exit'
  scale = s.exit_guidance if of_exit else s.guidance
  return s.weak_loops if s.guidance_mode != 'cfg' and scale != 1 else 1


def changed(config: Any, **changes: Any) -> Any:
  """A copy of `config` with other values of config.sample, validated."""
  if wrong := sorted(set(changes) - set(VALUES)):
    raise ValueError(
      f'{wrong[0]!r} is no value of a plan; these are: {VALUES}.'
    )
  config = config.copy_and_resolve_references()
  config.sample.update(changes)
  return validate(config)


def parse_guidance(text: str) -> dict[str, Any]:
  """Changes for `build_plan` from a mode and its numbers, in one word.

  'none', 'cfg:2', 'cfg_shallow:2:weak=1', 'exit:1.5:weak=1' or
  'cfg+exit:2:exit=1.5:weak=1': the scale, and where it matters the loops of
  the weak output and the scale of the exit. Any may have an interval of times,
  as in 'cfg:2:low=0.2:high=0.8'.

  Raises:
    ValueError: on another form. Ranges are checked by `build_plan`.
  """
  if text == 'none':
    return {'guidance': 1.0}
  mode, _, rest = text.partition(':')
  scale, _, rest = rest.partition(':')
  if mode not in CHOICES['sample.guidance_mode'] or not scale:
    raise ValueError(
      f'{text!r} is no guidance: give none or MODE:SCALE, as in cfg:2, of '
      f'{", ".join(CHOICES["sample.guidance_mode"])}.'
    )
  allowed = {'cfg': (), 'cfg+exit': ('weak', 'exit')}.get(mode, ('weak',))
  given = options(text, f's={scale}:{rest}', ('s', 'low', 'high', *allowed))
  names = {
    's': 'guidance',
    'low': 'guidance_low',
    'high': 'guidance_high',
    'exit': 'exit_guidance',
    'weak': 'weak_loops',
  }
  if given.get('weak', 1) not in range(1, 10**6):
    raise ValueError(f'{text!r}: weak must be an integer of at least 1.')
  changes = {names[key]: value for key, value in given.items()}
  if 'weak' in given:
    changes['weak_loops'] = int(given['weak'])
  return changes | {'guidance_mode': mode}


def step_times(num_steps: int) -> np.ndarray:
  """[K] float32 times 1 - k / K: 1 at the first step, in every family."""
  return np.linspace(1.0, 0.0, num_steps + 1, dtype=np.float32)[:-1]


def guidance_ramp(schedule: str, num_steps: int) -> np.ndarray:
  """[K] float32: the scale at step k is 1 + (s - 1) ramp[k].

  'constant' 1; 'linear' k / (K - 1), nothing at first and all at last (Muse,
  Halton-MaskGIT), so nothing at all at K = 1; 'powcosP', as in 'powcos2',
  (1 - cos(pi (k / K)^P)) / 2 (MDT, arXiv 2303.14389).
  """
  k = np.arange(num_steps, dtype=np.float32)
  if schedule == 'constant':
    return np.ones_like(k)
  if schedule == 'linear':
    return k / max(num_steps - 1, 1)
  power = float(schedule.removeprefix('powcos'))
  return (1 - np.cos(np.pi * (k / num_steps) ** power)) / 2
