"""FID and its kin per loop count, as OpenAI's evaluation suite has them.

A row for each loop count or schedule, written to metrics.json once it is
measured: a command that was killed goes on with the next.
"""

from collections.abc import Callable, Iterable, Sequence
import contextlib
import json
import time
from typing import Any

from etils import epath
import jax
import numpy as np
from tqdm import tqdm

from elt_jax import files, flops, hosts, viz
from elt_jax.evals import adm, elastic, image_metrics
from elt_jax.evals.frechet import Moments, frechet_distance
from elt_jax.evals.inception import Features
from elt_jax.evals.resume import read_report
from elt_jax.samplers.draw import Draw
from elt_jax.samplers.loops import Loops

# By their flag; each has a column or two.
METRICS = {
  'fid': ('fid',),
  'sfid': ('sfid',),
  'is': ('is',),
  'pr': ('precision', 'recall'),
}
_FEATURES = {'fid': 'pool', 'sfid': 'spatial'}
REPORT = 'metrics.json'
# Samples drawn before Inception sees them; all of them would fill the memory.
_PART = 1024

Network = Callable[[np.ndarray], Features]


class Seen:
  """What metrics take of images that come in parts."""

  def __init__(self, network: Network, metrics: Sequence[str]):
    self._network = network
    self._metrics = metrics
    self._moments = {m: Moments() for m in metrics if m in _FEATURES}
    self._pool, self._probabilities = [], []

  def add(self, images: np.ndarray) -> None:
    """Takes in uint8 [n, h, w, c]."""
    features = self._network(images)
    for metric, moments in self._moments.items():
      moments.add(getattr(features, _FEATURES[metric]))
    if 'pr' in self._metrics:
      self._pool.append(features.pool)
    if 'is' in self._metrics:
      self._probabilities.append(features.probabilities)

  def moments(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """(mean, covariance) of the features of 'fid' or 'sfid'."""
    return self._moments[metric].read()

  @property
  def pool(self) -> np.ndarray:
    return np.concatenate(self._pool)

  @property
  def probabilities(self) -> np.ndarray:
    return np.concatenate(self._probabilities)


class Reference:
  """What samples are measured against, by metric.

  Attributes:
    moments: of 'fid' and 'sfid', (mean, covariance).
    pool: float32 [n, 2048], of 'pr'.
  """

  def __init__(
    self, file: adm.Reference, network: Network, metrics: Sequence[str]
  ):
    """Reads moments, and sees images where there are none or 'pr' wants them.

    Raises:
      ValueError: as `adm.Reference`, or if the file lacks what a metric takes.
    """
    self.moments = {}
    for metric in set(metrics) & set(_FEATURES):
      if found := file.moments(_FEATURES[metric]):
        self.moments[metric] = found
    missing = [m for m in metrics if m != 'is' and m not in self.moments]
    if not missing:
      return
    if 'arr_0' not in file.names:
      raise ValueError(
        f'{file.path} has {file.names}, and no arr_0, the images that '
        f'--metrics={",".join(missing)} take.'
      )
    seen = Seen(network, missing)
    images = file.images()
    for start in tqdm(range(0, len(images), _PART), desc='reference'):
      seen.add(images[start : start + _PART])
    for metric in set(missing) & set(_FEATURES):
      self.moments[metric] = seen.moments(metric)
    if 'pr' in missing:
      self.pool = seen.pool

  def measure(self, seen: Seen, metrics: Iterable[str]) -> dict[str, float]:
    """Every column of `METRICS`, in their order."""
    row = {}
    for metric in metrics:
      if metric in _FEATURES:
        row[metric] = frechet_distance(
          *seen.moments(metric), *self.moments[metric]
        )
      elif metric == 'is':
        row['is'] = image_metrics.inception_score(seen.probabilities)
      else:
        row['precision'], row['recall'] = image_metrics.precision_recall(
          self.pool, seen.pool
        )
    return row


def check_metrics(metrics: Sequence[str]) -> None:
  """Raises ValueError on an unknown metric, or one named twice."""
  for metric in metrics:
    if metric not in METRICS or metrics.count(metric) > 1:
      raise ValueError(
        f'--metrics must be some of {",".join(METRICS)}, each once; got '
        f'{",".join(metrics)}.'
      )


def check_count(file: adm.Reference, metrics: Iterable[str], num: int) -> None:
  """Raises ValueError where a Frechet distance is of unequal counts.

  It is biased, the more the fewer the images. Published moments do not say of
  how many they are: of a whole training set, compared with 50,000 samples.
  """
  for metric in metrics:
    if metric not in _FEATURES or file.has_moments(_FEATURES[metric]):
      continue
    if (count := file.count()) not in (None, num):
      raise ValueError(
        f'--metrics={metric} of {num} samples against {count} images: the '
        f'distance is biased by both numbers. Set --num={count}, or give '
        '--unequal to compare all the same.'
      )


def evaluate(
  draw: Draw,
  params: Any,
  workdir: str,
  schedules: Sequence[Loops],
  network: Network,
  file: adm.Reference,
  recipe: dict[str, Any],
  save_samples: bool = False,
) -> dict[str, Any]:
  """The report, {'recipe', 'rows'}, and workdir/metrics.json of it.

  Args:
    draw: of a model of images.
    params: its averaged parameters.
    workdir: where the report is.
    schedules: a row each, unless the report has it.
    network: features of images.
    file: what is measured against; not looked at if no row is missing.
    recipe: of `make_recipe`.
    save_samples: writes what is drawn to workdir/samples-LOOPS.npz.

  Raises:
    ValueError: if the report there is of another recipe, or for `rebatch`.
  """
  if any(loops.rebatch for loops in schedules):
    raise ValueError(
      'rebatch sorts all samples together, and these are drawn in parts.'
    )
  path, metrics = epath.Path(workdir) / REPORT, recipe['metrics']
  _, rows = read_report(path, 'metrics', recipe)
  report = {'recipe': recipe, 'rows': rows}
  done = [row['loops'] for row in rows]
  todo = [loops for loops in schedules if loops.label not in done]
  reference = Reference(file, network, metrics) if todo else None
  for loops in todo:
    seen = Seen(network, metrics)
    with contextlib.ExitStack() as stack:
      sinks = [seen.add]
      if save_samples and jax.process_index() == 0:
        kept = path.parent / f'samples-{_as_name(str(loops.label))}.npz'
        writing = adm.writing(kept, recipe['num_samples'])
        sinks.append(stack.enter_context(writing))
      cost = _draw_into(draw, params, loops, recipe, sinks)
    row = {'loops': loops.label} | reference.measure(seen, metrics) | cost
    rows.append(row)
    text = json.dumps(report, indent=2) + '\n'
    hosts.once('row', lambda text=text: files.write_text(path, text))
  return report


def _draw_into(
  draw: Draw,
  params: Any,
  loops: Loops,
  recipe: dict[str, Any],
  sinks: Sequence[Callable[[np.ndarray], None]],
) -> dict[str, Any]:
  """Draws all samples, part after part, and returns their cost."""
  num, size = recipe['num_samples'], _part_size(draw)
  labels = np.arange(num) % draw.config.data.num_classes
  draw.warm_up(params, loops)
  seconds, spent = 0.0, []
  for first in tqdm(range(0, num, size), desc=f'loops {loops.label}'):
    of_part = labels[first : first + size]
    began = time.monotonic()
    drawn = draw.sample(params, of_part, loops, recipe['seed'], first=first)
    seconds += time.monotonic() - began
    each = flops.flops_per_sample(draw.config, *drawn.spent[0])
    spent.append(each * len(of_part))
    images = viz.to_uint8(drawn.samples)
    images = np.broadcast_to(images, (*images.shape[:-1], 3))
    for sink in sinks:
      sink(images)
  return {
    'gflops_per_sample': sum(spent) / num / 1e9,
    'seconds_per_sample': seconds / num,
    'device': elastic.device(),
  }


def _part_size(draw: Draw) -> int:
  """Whole batches: in which parts samples are drawn does not show in them."""
  return max(1, _PART // draw.batch_size) * draw.batch_size


def make_recipe(
  draw: Draw,
  step: int,
  num: int,
  seed: int,
  metrics: Sequence[str],
  file: adm.Reference,
  network: Any,
) -> dict[str, Any]:
  """How samples are made and measured, but for what the rows say."""
  return elastic.recipe_of_samples(draw, step, num) | {
    'metrics': list(metrics),
    'reference': epath.Path(file.path).name,
    'inception': network.fingerprint,
    'preprocessing': 'uint8; TensorFlow 1 bilinear to 299 x 299',
    'is_split': image_metrics.IS_SPLIT,
    'neighbours': image_metrics.NEIGHBOURS,
    'seed': seed,
  }


def table(report: dict[str, Any]) -> str:
  """The rows as text."""
  rows = report['rows']
  columns = [c for m in report['recipe']['metrics'] for c in METRICS[m]]
  width = max(6, *(len(str(row['loops'])) for row in rows))
  head = ''.join(f'   {name:>9s}' for name in columns)
  lines = [f'{"loops":{width}s}{head}   GFLOPs/sample   ms/sample']
  for row in rows:
    values = ''.join(f'   {row[name]:9.3f}' for name in columns)
    lines.append(
      f'{row["loops"]!s:{width}s}{values}   {row["gflops_per_sample"]:13.2f}   '
      f'{1e3 * row["seconds_per_sample"]:9.2f}'
    )
  return '\n'.join(lines)


def _as_name(label: str) -> str:
  return ''.join(c if c.isalnum() or c in '.-=' else '_' for c in label)
