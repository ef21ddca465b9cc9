"""Metrics of published networks, a row per loop count, in one table.

What is measured, of images (`evals.fid`) or of clips (`evals.fvd`), is a
`Measure`; here samples are drawn for it. A row for each loop count or schedule
is written to metrics.json once it is measured: a command that was killed goes
on with the next.
"""

from collections.abc import Callable, Collection, Sequence
import contextlib
import json
import time
from typing import Any

from etils import epath
import jax
import numpy as np
from tqdm import tqdm

from elt_jax import files, flops, hosts, viz
from elt_jax.config import sample_shape
from elt_jax.evals import adm, elastic
from elt_jax.evals.resume import read_report
from elt_jax.samplers.draw import Draw
from elt_jax.samplers.loops import Loops, explicit

REPORT = 'metrics.json'
# Drawn before a network sees them; all of them would fill the memory.
_SAMPLES, _VALUES = 1024, 2**28


class Measure:
  """Metrics of one kind of samples.

  Attributes:
    recipe: how samples are measured, and with what; it decides the rows.
  """

  recipe: dict[str, Any]

  def prepare(self) -> None:
    """Reads, or makes, what samples are measured against, if anything."""

  def labels(self, num: int, num_classes: int) -> np.ndarray:
    """int [num], the classes of samples; asked for once all is prepared."""
    return np.arange(num) % num_classes

  def start(self) -> Any:
    """What sees samples: `add` takes them in, uint8 [n, (f,) h, w, 3]."""
    raise NotImplementedError

  def row(self, seen: Any) -> dict[str, float]:
    """The columns of samples, all of which were added to `seen`."""
    raise NotImplementedError


def check_names(given: Sequence[str], known: Collection[str], of: str) -> None:
  """Raises ValueError on a metric that is not `of` these, or named twice."""
  for metric in given:
    if metric not in known or given.count(metric) > 1:
      raise ValueError(
        f'--metrics of a model of {of} must be some of {",".join(known)}, each '
        f'once; got {",".join(given)}.'
      )


def evaluate(
  draw: Draw,
  params: Any,
  step: int,
  workdir: str,
  schedules: Sequence[Loops],
  measures: Sequence[Measure],
  num: int,
  seed: int,
  save_samples: bool = False,
) -> dict[str, Any]:
  """The report, {'recipe', 'rows'}, and workdir/metrics.json of it.

  Args:
    draw: of a model.
    params: its averaged parameters.
    step: of its checkpoint.
    workdir: where the report is.
    schedules: a row each, unless the report has it.
    measures: of the same samples, whose classes the first of them says; not
      prepared if no row is missing.
    num: samples of a row.
    seed: of their noise.
    save_samples: writes what is drawn to workdir/samples-LOOPS.npz.

  Raises:
    ValueError: if the report there is of another recipe, for `rebatch`, or if
      samples are to be saved of a row that is there without them.
  """
  if any(loops.rebatch for loops in schedules):
    raise ValueError(
      'rebatch sorts all samples together, and these are drawn in parts.'
    )
  path = epath.Path(workdir) / REPORT
  recipe = elastic.recipe_of_samples(draw, step, num)
  for measure in reversed(measures):
    recipe |= measure.recipe
  recipe['metrics'] = [m for each in measures for m in each.recipe['metrics']]
  recipe['seed'] = seed
  _, rows = read_report(path, 'metrics', recipe)
  report = {'recipe': recipe, 'rows': rows}
  done = {(row['loops'], row.get('schedule')) for row in rows}
  todo = [s for s in schedules if (s.label, explicit(s.steps)) not in done]
  kept = lambda loops: path.parent / f'samples-{_as_name(str(loops.label))}.npz'
  for loops in schedules if save_samples else ():
    if loops not in todo and not kept(loops).exists():
      raise ValueError(
        f'--save_samples: {path} has the row of {loops.label}, and '
        f'{kept(loops)} is not there: move the report away to draw them again.'
      )
  if todo:
    for measure in measures:
      measure.prepare()
    labels = measures[0].labels(num, draw.config.data.num_classes)
  for loops in todo:
    seen = [measure.start() for measure in measures]
    with contextlib.ExitStack() as stack:
      sinks = [each.add for each in seen]
      if save_samples and jax.process_index() == 0:
        writer = stack.enter_context(adm.writing(kept(loops), num))
        sinks.append(writer.add)
      cost = _draw_into(draw, params, loops, labels, seed, sinks)
    row = {'loops': loops.label, 'schedule': explicit(loops.steps)}
    for measure, each in zip(measures, seen, strict=True):
      row |= measure.row(each)
    # Of a calibration that was made again, the old row goes.
    rows[:] = [old for old in rows if old['loops'] != loops.label]
    rows.append(row | cost)
    text = json.dumps(report, indent=2) + '\n'
    hosts.once('row', lambda text=text: files.write_text(path, text))
  return report


def _draw_into(
  draw: Draw,
  params: Any,
  loops: Loops,
  labels: np.ndarray,
  seed: int,
  sinks: Sequence[Callable[[np.ndarray], None]],
) -> dict[str, Any]:
  """Draws all samples, part after part, and returns their cost."""
  num, size = len(labels), _part_size(draw)
  draw.warm_up(params, loops)
  seconds, spent = 0.0, []
  for first in tqdm(range(0, num, size), desc=f'loops {loops.label}'):
    of_part = labels[first : first + size]
    began = time.monotonic()
    drawn = draw.sample(params, of_part, loops, seed, first=first)
    seconds += time.monotonic() - began
    each = flops.gflops_per_sample(draw.config, drawn.spent)
    spent.append(each * len(of_part))
    samples = viz.to_uint8(drawn.samples)
    samples = np.broadcast_to(samples, (*samples.shape[:-1], 3))
    for sink in sinks:
      sink(samples)
  return {
    'gflops_per_sample': sum(spent) / num,
    'seconds_per_sample': seconds / num,
    'device': elastic.device(),
  }


def _part_size(draw: Draw) -> int:
  """Whole batches: in which parts samples are drawn does not show in them."""
  values = np.prod(sample_shape(elastic.pixel_config(draw)))
  most = min(_SAMPLES, _VALUES // values)
  return int(max(1, most // draw.batch_size) * draw.batch_size)


def table(report: dict[str, Any]) -> str:
  """The rows as text."""
  rows = report['rows']
  others = (
    'loops',
    'schedule',
    'gflops_per_sample',
    'seconds_per_sample',
    'device',
  )
  columns = [name for name in rows[0] if name not in others]
  width = max(6, *(len(str(row['loops'])) for row in rows))
  head = ''.join(f'   {name:>11s}' for name in columns)
  lines = [f'{"loops":{width}s}{head}   GFLOPs/sample   ms/sample']
  for row in rows:
    values = ''.join(f'   {row[name]:11.3f}' for name in columns)
    lines.append(
      f'{row["loops"]!s:{width}s}{values}   {row["gflops_per_sample"]:13.2f}   '
      f'{1e3 * row["seconds_per_sample"]:9.2f}'
    )
  return '\n'.join(lines)


def _as_name(label: str) -> str:
  return ''.join(c if c.isalnum() or c in '.-=' else '_' for c in label)
