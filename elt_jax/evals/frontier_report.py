"""The frontier for people: frontier.md and frontier.png."""

from typing import Any

from etils import epath
import numpy as np

from elt_jax import files, viz
from elt_jax.evals.frontier import COSTS, best_within, pareto

Row = dict[str, Any]
_HEAD = (
  '| sampled with | {} | class accuracy | loops a step | GFLOPs | ms |\n'
  '|---|---|---|---|---|---|'
)


def write(
  workdir: str, recipe: Row, rows: list[Row], baselines: list[str]
) -> list[epath.Path]:
  """Writes frontier.md and frontier.png; returns their paths.

  Args:
    workdir: where to.
    recipe: of the sweep.
    rows: of `frontier.summarize`.
    baselines: names of the points whose costs are the budgets.
  """
  root = epath.Path(workdir)
  files.write_text(root / 'frontier.md', markdown(recipe, rows, baselines))
  with files.replacing(root / 'frontier.png') as temporary:
    figure(recipe, rows, baselines, temporary)
  return [root / 'frontier.md', root / 'frontier.png']


def markdown(recipe: Row, rows: list[Row], baselines: list[str]) -> str:
  """The report, as text."""
  quality = recipe['quality']
  head = _HEAD.format(quality)
  lines = [
    '# Quality against cost of one checkpoint',
    '',
    f'{recipe["num_samples"]} samples a point, step '
    f'{recipe["checkpoint_step"]}, {recipe["num_steps"]} steps of '
    f'{recipe["sampler"]}, L_max = {recipe["max_loops_in_training"]}; '
    f'{quality} of half of the real data to the other half is '
    f'{recipe["floor"]:.2f}. The first seed chose what is on the '
    'frontier; means of those are over the others, ± half of their range.',
  ]
  settled = _settled(rows)
  named = {row['point']: row for row in rows}
  constant = [named[name] for name in baselines]
  units = tuple(zip(COSTS, ('GFLOPs', 'seconds'), strict=True))
  for cost, unit in units:
    lines += ['', f'## Frontier in {unit} a sample', '', head]
    lines += [_line(row) for row in pareto(settled, cost)]
  last = f'L={recipe["max_loops_in_training"]},'
  top = next((b for b in constant if b['point'].startswith(last)), None)
  for cost, unit in units:
    lines += ['', f'## The best at the {unit} of a constant L', '']
    # Timings of one program differ by a few percent.
    slack = 1.03 if unit == 'seconds' else 1 + 1e-6
    lines += _best(quality, settled, constant, top, cost, slack)
  lines += ['', '## Every point', '', head]
  lines += [_line(row) for row in sorted(rows, key=lambda row: row[COSTS[0]])]
  lines += ['', '## Recipe', '']
  lines += [f'* {name}: {value}' for name, value in recipe.items()]
  return '\n'.join(lines) + '\n'


def _best(
  quality: str,
  rows: list[Row],
  constant: list[Row],
  top: Row | None,
  cost: str,
  slack: float,
) -> list[str]:
  """A line per constant L: the best of `rows` at its cost, against L_max."""
  lines = [f'| at the cost of | its {quality} | best | its {quality} |']
  lines += ['|---|---|---|---|']
  if top:
    lines[0] += f' no worse than {top["point"]} |'
    lines[1] += '---|'
  for budget in constant:
    best = best_within(rows, cost, budget[cost] * slack)
    words = [budget['point'], _quality(budget), best['point'], _quality(best)]
    if top:
      words.append('yes' if best['quality'] <= top['quality'] else 'no')
    lines.append(f'| {" | ".join(words)} |')
  return lines


def _settled(rows: list[Row]) -> list[Row]:
  """Those measured with more than the seed that chose; all, if none is."""
  return [row for row in rows if row['chosen']] or rows


def _quality(row: Row) -> str:
  spread = '' if row['spread'] is None else f' ± {row["spread"]:.2f}'
  return f'{row["quality"]:.2f}{spread}'


def _line(row: Row) -> str:
  return (
    f'| {row["point"]} | {_quality(row)} | {row["class_accuracy"]:.3f} | '
    f'{row["mean_loops"]:.2f} | {row[COSTS[0]]:.2f} | '
    f'{1e3 * row[COSTS[1]]:.1f} |'
  )


def figure(
  recipe: Row, rows: list[Row], baselines: list[str], path: epath.Path
) -> None:
  """Every point and both frontiers; what is on them, and constant L, named."""
  from matplotlib.figure import Figure  # Slow to import; no global state.
  from matplotlib.ticker import LogLocator, NullLocator

  highest = 1.3 * np.quantile([row['quality'] for row in rows], 0.9)
  kinds = sorted({_kind(row['point']) for row in rows})
  shown = Figure(figsize=(13, 5.5), layout='constrained')
  for axis, cost in zip(shown.subplots(1, 2, sharey=True), COSTS, strict=True):
    for n, kind in enumerate(kinds):
      same = [row for row in rows if _kind(row['point']) == kind]
      axis.errorbar(
        [row[cost] for row in same],
        [row['quality'] for row in same],
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
      [row['quality'] for row in best],
      where='post',
      color='0.4',
      lw=1,
    )
    # Names would cover each other: numbers, and a list where no point is.
    names = {row['point']: str(n) for n, row in enumerate(best, 1)}
    constant = [row for row in rows if row['point'] in baselines]
    for row in best + [row for row in constant if row not in best]:
      above = row not in best
      axis.annotate(
        names.get(row['point'], row['point'].partition(',')[0]),
        (row[cost], min(row['quality'], highest)),
        xytext=(4, 8 if above else -10),
        textcoords='offset points',
        fontsize=7,
        color='0.5' if above else 'black',
      )
    listed = axis.text(
      0.02,
      0.1,
      '\n'.join(f'{n}  {point}' for point, n in names.items()),
      transform=axis.transAxes,
      fontsize=8,
    )
    listed.set_in_layout(False)  # A long name would squeeze the axis.
    axis.axhline(recipe['floor'], color='0.4', ls=':', lw=1)
    axis.set_xscale('log')
    axis.set_yscale('log')
    for side in (axis.xaxis, axis.yaxis):
      side.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
      side.set_major_formatter('{x:g}')
      side.set_minor_locator(NullLocator())
    axis.set_xlabel(cost.replace('_', ' '))
    axis.set_ylabel(f'{recipe["quality"]} (lower is better)')
  axis.set_ylim(recipe['floor'] * 0.9, 1.1 * highest)
  axis.legend(title='guidance', fontsize=8)
  shown.suptitle(
    f'One checkpoint, step {recipe["checkpoint_step"]}; '
    f'{recipe["num_samples"]} samples a point',
    fontsize=10,
  )
  viz.save_figure(shown, path, dpi=110)


def _kind(point: str) -> str:
  """The mode of guidance in a point's name."""
  return point.split(', ')[1].partition(':')[0]
