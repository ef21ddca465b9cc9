"""Quality against cost over many ways to sample one checkpoint.

A point is a way to sample: loops or a schedule of them, guidance, refinement.
It is measured once for each seed. Points that no other beats in quality at
less cost are the frontier.
"""

from collections.abc import Iterable
import dataclasses
import functools
import json
import logging
from typing import Any

from etils import epath
import jax
import numpy as np

from elt_jax import files
from elt_jax.evals import elastic
from elt_jax.evals.reference import Reference
from elt_jax.evals.resume import read_report
from elt_jax.samplers import refine
from elt_jax.samplers.draw import Draw
from elt_jax.samplers.loops import Loops, explicit, parse
from elt_jax.samplers.plan import changed, parse_guidance

log = logging.getLogger('elt_jax.frontier')
COSTS = ('gflops_per_sample', 'seconds_per_sample')


@dataclasses.dataclass(frozen=True)
class Point:
  """One way to sample, in the words of the command line."""

  loops: str
  guidance: str
  refine: str = 'none'

  @property
  def name(self) -> str:
    parts = [f'L={self.loops}' if self.loops.isdigit() else self.loops]
    parts.append(self.guidance)
    if self.refine != 'none':
      parts.append(f'refine {self.refine}')
    return ', '.join(parts)


class Sweep:
  """Measures points once, and keeps what is measured in frontier.json.

  Attributes:
    rows: what is measured: rows of `elastic.measure` with 'point' and 'seed'.
  """

  def __init__(
    self, workdir: str, draw: Draw, params: Any, step: int, num: int
  ):
    """Reads what a sweep of the same settings has left.

    Raises:
      ValueError: if frontier.json is of other settings.
    """
    self._workdir = workdir
    self._path = epath.Path(workdir) / 'frontier.json'
    self._draw, self._params, self._num = draw, params, num
    # All that a point does not say itself.
    self.key = draw.config.sample.to_dict() | {
      'checkpoint_step': step,
      'num_samples': num,
      'batch_size': draw.batch_size,
    }
    for said in ('guidance', 'guidance_mode'):
      del self.key[said]
    # Older versions did not name the quality.
    self.recipe, self.rows = read_report(
      self._path, 'a frontier', self.key, 'quality'
    )

  def possible(self, points: Iterable[Point]) -> list[Point]:
    """Without those that no sampler can run, and those that say the same.

    Raises:
      ValueError: if a word of a point has no meaning, or nothing is left.
    """
    kept, why = {}, 'there are none'
    for point in points:
      loops, changes, refined = self._resolve(point)
      changed(self._draw.config, **changes)  # What is wrong by itself raises.
      try:
        plans = self._draw.plans(loops, refined, **changes)
      except ValueError as e:  # A weak output after the strong one.
        log.info('Left out, %s: %s', point.name, e)
        why = e
        continue
      same = [x.tobytes() for x in jax.tree.leaves(plans)]
      same = (*same, loops.rebatch, point.refine)
      if same not in kept or point.guidance == 'none':  # Its plain name.
        kept[same] = point
    if not kept:
      raise ValueError(f'No point of the sweep can be measured: {why}')
    return list(kept.values())

  def measure(self, points: list[Point], seeds: Iterable[int]) -> None:
    """Measures what is not yet; writes after each point."""
    done = {(row['point'], row['schedule'], row['seed']) for row in self.rows}
    todo = [
      (point, seed)
      for seed in seeds
      for point in points
      if (point.name, self._schedule(point), seed) not in done
    ]
    if not todo:
      return
    draw, step = self._draw, self.key['checkpoint_step']
    reference = self._reference
    recipe = elastic.make_recipe(draw, reference, step, self._num)
    self.recipe = {
      name: value
      for name, value in recipe.items()
      if name not in ('guidance', 'guidance_mode')  # The points say them.
    } | self.key
    for n, (point, seed) in enumerate(todo):
      loops, changes, refined = self._resolve(point)
      row, _ = elastic.measure(
        draw,
        self._params,
        reference,
        loops,
        self._num,
        seed,
        refined,
        **changes,
      )
      named = {'point': point.name, 'schedule': self._schedule(point)}
      # Of a calibration that was made again, the old rows go, of all seeds.
      self.rows = [
        old
        for old in self.rows
        if old['point'] != point.name or named.items() <= old.items()
      ]
      self.rows.append(named | {'seed': seed} | row)
      self._write()
      log.info(
        '%d/%d  %s, seed %d: %s %.2f, accuracy %.3f, %.2f GFLOPs, %.1f ms.',
        n + 1,
        len(todo),
        point.name,
        seed,
        reference.quality,
        row[reference.quality],
        row['class_accuracy'],
        row['gflops_per_sample'],
        1e3 * row['seconds_per_sample'],
      )

  def _write(self) -> None:
    report = {'recipe': self.recipe, 'rows': self.rows}
    files.write_text(self._path, json.dumps(report, indent=1) + '\n')

  @functools.cached_property
  def _reference(self) -> Reference:
    return elastic.load_reference(self._draw)

  def _schedule(self, point: Point) -> str:
    return explicit(self._resolve(point)[0].steps)

  def _resolve(
    self, point: Point
  ) -> tuple[Loops, dict[str, Any], refine.Refine | None]:
    config = self._draw.config
    refined = None
    if point.refine != 'none':
      refined = refine.parse(point.refine, config)
    loops = parse(point.loops, config, self._workdir)
    return loops, parse_guidance(point.guidance), refined


def summarize(
  rows: list[dict[str, Any]], first: int, quality: str
) -> list[dict[str, Any]]:
  """A row per point: means over its seeds, and half the range of quality.

  The metric `quality` is called 'quality' in them. The seed `first` chose which
  points have others: of those, 'chosen', it is left out, or they would look
  better than they are. 'spread' is None where there is one seed.
  """
  found = []
  for name in dict.fromkeys(row['point'] for row in rows):
    same = [row for row in rows if row['point'] == name]
    others = [row for row in same if row['seed'] != first]
    same = others or same
    values = [row[quality] for row in same]
    mean = lambda key, same=same: float(np.mean([row[key] for row in same]))
    columns = ('class_accuracy', 'mean_loops', *COSTS)
    found.append(
      {'point': name, 'seeds': len(same), 'chosen': bool(others)}
      | {'quality': mean(quality)}
      | {column: mean(column) for column in columns}
      | {'spread': np.ptp(values) / 2 if len(same) > 1 else None}
    )
  return found


def pareto(rows: list[dict[str, Any]], cost: str) -> list[dict[str, Any]]:
  """The rows that none beats in quality at no more cost, cheapest first."""
  kept = []
  for row in sorted(rows, key=lambda row: (row[cost], row['quality'])):
    if not kept or row['quality'] < kept[-1]['quality']:
      kept.append(row)
  return kept


def best_within(
  rows: list[dict[str, Any]], cost: str, budget: float
) -> dict[str, Any] | None:
  """The row of best quality that costs at most `budget`."""
  affordable = [row for row in rows if row[cost] <= budget]
  return min(affordable, key=lambda row: row['quality'], default=None)
