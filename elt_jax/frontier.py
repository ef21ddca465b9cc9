"""Searches the best ways to sample a trained workdir, for any budget.

    python -m elt_jax.frontier --workdir=runs/mnist --num=1000

Measures every combination of --loops (numbers and schedules), --guidances
(modes and scales, as in cfg:2 or exit:1.5) and --refines once with the first
seed; then what is on its frontier, and constant loops with the first of the
guidances, with the other seeds, which make the reported means. Writes
frontier.json after every point (a finished point is not measured again),
frontier.png and frontier.md.
"""

import itertools
from typing import Any

from absl import flags

from elt_jax import cli, sample
from elt_jax.evals import elastic, frontier, frontier_report
from elt_jax.evals.frontier import Point, Sweep
from elt_jax.samplers.loops import parse


def default_loops(config: Any, workdir: str) -> list[str]:
  """Every count, the ramps, converging loops; calibrated ones if there are."""
  forms = [str(n) for n in elastic.loop_counts(config)]
  forms += ['increasing', 'decreasing', 'mid-peak', 'converge', 'rebatch']
  for form in ('calibrated:0.5', 'calibrated:0.75'):
    try:
      parse(form, config, workdir)
    except ValueError:  # None, or not of this sampler.
      continue
    forms.append(form)
  return forms


def default_guidances(config: Any) -> list[str]:
  """The config's scale and half of it, both also shallow; exits; none."""
  s = config.sample.guidance
  half = 1 + (s - 1) / 2
  return [
    f'cfg:{s:g}',
    f'cfg:{half:g}',
    f'cfg_shallow:{s:g}',
    f'cfg_shallow:{half:g}',
    f'cfg+exit:{half:g}:exit=2',
    'exit:2',
    'exit:4',
    'none',
  ]


def main(args: flags.FlagValues) -> None:
  workdir = cli.workdir(args)
  if args.num < 2:
    raise ValueError(f'--num must be at least 2, got {args.num}.')
  first, *others = cli.parse_integers('seeds', args.seeds, 0, None)
  draw, params, step = sample.load(workdir, args.num, **cli.sampling(args))
  sweep = Sweep(workdir, draw, params, step, args.num)
  split = lambda text: text and text.split(',')
  guidances = split(args.guidances) or default_guidances(draw.config)
  points = sweep.possible(
    Point(*words)
    for words in itertools.product(
      split(args.loops) or default_loops(draw.config, workdir),
      guidances,
      split(args.refines),
    )
  )
  usual = (guidances[0], 'none')
  baselines = [
    point.name
    for point in points
    if point.loops.isdigit() and (point.guidance, point.refine) == usual
  ]
  sweep.measure(points, [first])
  names = {point.name for point in points}
  of = lambda seeds: [
    row for row in sweep.rows if row['point'] in names and row['seed'] in seeds
  ]
  quality = sweep.recipe['quality']
  rows = frontier.summarize(of([first]), first, quality)
  best = [row for cost in frontier.COSTS for row in frontier.pareto(rows, cost)]
  repeated = {row['point'] for row in best} | set(baselines)
  sweep.measure([p for p in points if p.name in repeated], others)
  rows = frontier.summarize(of([first, *others]), first, quality)
  for path in frontier_report.write(workdir, sweep.recipe, rows, baselines):
    print(path)


def _define(values: flags.FlagValues) -> None:
  string, integer = flags.DEFINE_string, flags.DEFINE_integer
  string('workdir', None, 'A trained workdir.', flag_values=values)
  string(
    'loops',
    None,
    'Loops and schedules, as in 1,2,decreasing:avg=3.',
    flag_values=values,
  )
  string(
    'guidances',
    None,
    'Modes and scales, as in cfg:2,cfg_shallow:2:weak=1,exit:1.5,none; the '
    'first is what constant loops are compared with.',
    flag_values=values,
  )
  string(
    'refines',
    'none',
    'Of masked models, as in none,rounds=1:share=0.3.',
    flag_values=values,
  )
  integer('num', 1000, 'Samples of a point.', flag_values=values)
  string('seeds', '0,1,2,3', 'Seeds of the noise.', flag_values=values)
  cli.add_program(values)


if __name__ == '__main__':
  cli.run(main, _define, __doc__)
