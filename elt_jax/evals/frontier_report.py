"""The frontier for people: frontier.md and frontier.png."""

import pathlib
from typing import Any

import numpy as np

from elt_jax import files
from elt_jax.evals.frontier import COSTS, QUALITY, best_within, pareto

Row = dict[str, Any]
_HEAD = (
  '| sampled with | fd_lenet | class accuracy | loops a step | GFLOPs | ms |\n'
  '|---|---|---|---|---|---|'
)


def write(
  workdir: str, recipe: Row, rows: list[Row], baselines: list[str]
) -> list[pathlib.Path]:
  """Writes frontier.md and frontier.png; returns their paths.

  Args:
    workdir: where to.
    recipe: of the sweep.
    rows: of `frontier.summarize`.
    baselines: names of the points whose costs are the budgets.
  """
  root = pathlib.Path(workdir)
  files.write_text(root / 'frontier.md', markdown(recipe, rows, baselines))
  with files.replacing(root / 'frontier.png') as temporary:
    figure(recipe, rows, temporary)
  return [root / 'frontier.md', root / 'frontier.png']


def markdown(recipe: Row, rows: list[Row], baselines: list[str]) -> str:
  """The report, as text."""
  lines = [
    '# Quality against cost of one checkpoint',
    '',
    f'{recipe["num_samples"]} samples a point, step '
    f'{recipe["checkpoint_step"]}, {recipe["num_steps"]} steps of '
    f'{recipe["sampler"]}, L_max = {recipe["max_loops_in_training"]}; '
    f'{QUALITY} of half of the real data to the other half is '
    f'{recipe["fd_lenet_floor"]:.2f}. The first seed chose what is on the '
    'frontier; means of those are over the others, ± half of their range.',
  ]
  settled = _settled(rows)
  by_name = {row['point']: row for row in rows}
  for cost, unit in zip(COSTS, ('GFLOPs', 'seconds'), strict=True):
    lines += ['', f'## Frontier in {unit} a sample', '', _HEAD]
    lines += [_line(row) for row in pareto(settled, cost)]
  last = recipe['max_loops_in_training']
  top = next((b for b in baselines if b.startswith(f'L={last},')), None)
  for cost, unit in zip(COSTS, ('GFLOPs', 'seconds'), strict=True):
    lines += ['', f'## The best at the {unit} of a constant L', '']
    lines += [f'| at the cost of | its {QUALITY} | best | its {QUALITY} |']
    lines[-1] += f' no worse than {top} |' if top else ''
    lines += ['|---|---|---|---|' + ('---|' if top else '')]
    for name in baselines:
      budget = by_name[name]
      # Timings of one program differ by a few percent.
      slack = 1.03 if unit == 'seconds' else 1 + 1e-6
      best = best_within(settled, cost, budget[cost] * slack)
      lines.append(
        f'| {name} | {_quality(budget)} | {best["point"]} | {_quality(best)} |'
      )
      if top:
        reached = best[QUALITY] <= by_name[top][QUALITY]
        lines[-1] += ' yes |' if reached else ' no |'
  lines += ['', '## Every point', '', _HEAD]
  lines += [_line(row) for row in sorted(rows, key=lambda row: row[COSTS[0]])]
  lines += ['', '## Recipe', '']
  lines += [f'* {name}: {value}' for name, value in recipe.items()]
  return '\n'.join(lines) + '\n'


def _settled(rows: list[Row]) -> list[Row]:
  """Those that were measured with every seed."""
  most = max(row['seeds'] for row in rows)
  return [row for row in rows if row['seeds'] == most]


def _quality(row: Row) -> str:
  spread = '' if row['spread'] is None else f' ± {row["spread"]:.2f}'
  return f'{row[QUALITY]:.2f}{spread}'


def _line(row: Row) -> str:
  return (
    f'| {row["point"]} | {_quality(row)} | {row["class_accuracy"]:.3f} | '
    f'{row["mean_loops"]:.2f} | {row[COSTS[0]]:.2f} | '
    f'{1e3 * row[COSTS[1]]:.1f} |'
  )


def figure(recipe: Row, rows: list[Row], path: pathlib.Path) -> None:
  """Every point and both frontiers, whose points are named."""
  from matplotlib.figure import Figure  # Slow to import; no global state.

  kinds = sorted({_kind(row['point']) for row in rows})
  shown = Figure(figsize=(13, 5.5), layout='constrained')
  for axis, cost in zip(shown.subplots(1, 2, sharey=True), COSTS, strict=True):
    for n, kind in enumerate(kinds):
      same = [row for row in rows if _kind(row['point']) == kind]
      axis.errorbar(
        [row[cost] for row in same],
        [row[QUALITY] for row in same],
        [row['spread'] or 0 for row in same],
        fmt='o',
        ms=4,
        lw=1,
        color=f'C{n}',
        label=kind,
        alpha=0.7,
      )
    best = pareto(_settled(rows), cost)
    axis.step(
      [row[cost] for row in best],
      [row[QUALITY] for row in best],
      where='post',
      color='0.4',
      lw=1,
    )
    for row in best:
      axis.annotate(
        row['point'],
        (row[cost], row[QUALITY]),
        xytext=(4, -9),
        textcoords='offset points',
        fontsize=7,
        rotation=-20,
      )
    axis.axhline(recipe['fd_lenet_floor'], color='0.4', ls=':', lw=1)
    axis.set_xscale('log')
    axis.set_yscale('log')
    axis.set_xlabel(cost.replace('_', ' '))
    axis.set_ylabel(f'{QUALITY} (lower is better)')
  top = np.quantile([row[QUALITY] for row in rows], 0.9)
  axis.set_ylim(recipe['fd_lenet_floor'] * 0.9, 1.3 * top)
  axis.legend(title='guidance', fontsize=8)
  shown.suptitle(
    f'One checkpoint, step {recipe["checkpoint_step"]}; '
    f'{recipe["num_samples"]} samples a point',
    fontsize=10,
  )
  shown.savefig(path, format='png', dpi=110)


def _kind(point: str) -> str:
  """The mode of guidance in a point's name."""
  return point.split(', ')[1].partition(':')[0]
