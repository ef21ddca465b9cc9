"""Searches loop schedules for a trained workdir.

    python -m elt_jax.calibrate --workdir=runs/mnist --budget=0.6
    python -m elt_jax.sample --workdir=runs/mnist --loops=calibrated:0.6

Measures on a few hundred samples how far the outcome of each sampling step is
from that of L_max, at fewer loops; fills the budget, a share of the loops of
L_max, where they count most; writes calibration.json to the workdir with the
schedule and its recipe. The measurement serves any budget afterwards. With
--multihost every host of a slice runs this command.
"""

from absl import flags
import numpy as np

from elt_jax import cli, hosts, sample
from elt_jax.evals import elastic
from elt_jax.samplers import calibration
from elt_jax.samplers.loops import explicit
from elt_jax.samplers.plan import VALUES, build_plan, least_loops


def main(args: flags.FlagValues) -> None:
  cli.join_hosts(args)
  workdir = cli.workdir(args)
  if args.num < 1:
    raise ValueError(f'--num must be at least 1, got {args.num}.')
  draw, params, step = sample.load(workdir, args.num, **cli.sampling(args))
  config = draw.config
  high = config.model.max_loops
  low = min(max(config.objective.min_loops, least_loops(config)), high)
  budgets = {
    text: calibration.share(text, low, high) for text in args.budget.split(',')
  }
  effect = draw.probe(params, args.num, high, args.seed).effect
  effect = effect.astype(float).round(6)
  plan = build_plan(config, high)
  # An unconditional pass of as many loops doubles the price of each.
  cost = 1 + (plan.null_loops == plan.loops)
  schedules = {
    text: calibration.fill(effect, cost, low, budget)
    for text, budget in budgets.items()
  }
  s = config.sample
  recipe = {
    'checkpoint_step': step,
    'num_samples': args.num,
    'seed': args.seed,
    'num_steps': s.num_steps,
    'method': s.method,
    **{name: s[name] for name in VALUES},
    'effect': 'how far the outcome of a step with 1..L_max loops is from that '
    'of L_max, expected share of the result',
    'cost': 'passes a loop takes part in',
    'device': elastic.device(),
  }
  report = {
    'recipe': recipe,
    'low': low,
    'effect': effect.tolist(),
    'cost': cost.tolist(),
    'schedules': {text: explicit(n) for text, n in schedules.items()},
  }
  far = max(effect[:, low - 1].sum(), 1e-12)
  for text, loops in schedules.items():
    left = sum(effect[k, n - 1] for k, n in enumerate(loops))
    print(
      f'calibrated:{text}   {np.mean(loops):.2f} loops a step, '
      f'{100 * (1 - left / far):.0f}% of the way from '
      f'L = {low} to L = {high}: {explicit(loops)}'
    )
  write = lambda: print(calibration.write(workdir, report))
  hosts.once('calibration', write)


def _define(values: flags.FlagValues) -> None:
  flags.DEFINE_string('workdir', None, 'A trained workdir.', flag_values=values)
  flags.DEFINE_string(
    'budget',
    '0.6',
    'Shares of the loops of L_max, separated by commas.',
    flag_values=values,
  )
  flags.DEFINE_integer('num', 256, 'Samples.', flag_values=values)
  flags.DEFINE_integer('seed', 0, 'Seed of the noise.', flag_values=values)
  cli.add_sampler(values)
  cli.add_multihost(values)


if __name__ == '__main__':
  cli.run(main, _define, __doc__)
