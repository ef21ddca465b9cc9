"""What a sweep found: summary.csv, summary.png and a table."""

from collections.abc import Mapping, Sequence
import csv
import io
import json
from typing import Any

from etils import epath
from matplotlib.figure import Figure
import ml_collections

from elt_jax import files, viz
from elt_jax.hyper import Run, varying
from elt_jax.samplers import loops as loops_lib

_COLORS, _MARKERS = 10, 'os^Dv'


def read(
  config: ml_collections.ConfigDict,
  workdir: epath.PathLike,
  loops: str,
  num: int,
) -> dict[str, Any] | None:
  """The elastic report of a trained run, or None if there is none of its kind.

  Args:
    config: of the run.
    workdir: of the run.
    loops: those wanted, as given to --loops.
    num: samples wanted of each.
  """
  path = epath.Path(workdir) / 'elastic.json'
  if not path.exists():
    return None
  report = json.loads(path.read_text())
  recipe, sample = report['recipe'], config.sample
  # Of the config, what the recipe tells; its batch size is that of the draw.
  wanted = {
    k: v for k, v in sample.items() if k in recipe and k != 'batch_size'
  }
  wanted |= {
    'sampler': sample.method,
    'checkpoint_step': config.train.num_steps,
    'num_samples': num,
    'seed': 0,
  }
  forms = [loops_lib.parse(form, config, workdir) for form in loops.split(',')]
  same = [row['loops'] for row in report['rows']] == [f.label for f in forms]
  same = same and 'refine' not in recipe and recipe | wanted == recipe
  # A report without the name of its metric is of an older version.
  return report if same and 'quality' in recipe else None


def write(
  workdir: epath.PathLike,
  runs: Sequence[Run],
  reports: Mapping[str, dict[str, Any]],
) -> list[epath.Path]:
  """Writes summary.csv and summary.png of the runs that have a report.

  Args:
    workdir: of the sweep.
    runs: all runs of the sweep.
    reports: those that there are, by the name of the run.

  Returns:
    The paths of the two.
  """
  paths = [epath.Path(workdir) / f'summary.{kind}' for kind in ('csv', 'png')]
  files.write_text(paths[0], _csv(runs, reports))
  with files.replacing(paths[1]) as temporary:
    viz.save_figure(_figure(reports), temporary, dpi=110)
  return paths


def table(reports: Mapping[str, dict[str, Any]]) -> str:
  """A line of text for every run and loop count."""
  width = max(map(len, reports))
  quality = next(iter(reports.values()))['recipe']['quality']
  lines = [
    f'{"run":{width}s} {"loops":>6s} {quality:>9s} {"accuracy":>9s} '
    f'{"GFLOPs":>8s} {"seconds":>8s}'
  ]
  for name, report in reports.items():
    for row in report['rows']:
      lines.append(
        f'{name:{width}s} {row["loops"]!s:>6s} '
        f'{row[report["recipe"]["quality"]]:9.2f} {row["class_accuracy"]:9.3f} '
        f'{row["gflops_per_sample"]:8.2f} {row["seconds_per_sample"]:8.3f}'
      )
  return '\n'.join(lines)


def _csv(runs: Sequence[Run], reports: Mapping[str, dict[str, Any]]) -> str:
  keys = varying(runs)
  rows = [
    {'run': run.name} | {key: run.settings.get(key, '') for key in keys} | row
    for run in runs
    if run.name in reports
    for row in reports[run.name]['rows']
  ]
  # Clips, and a schedule that ends early, have columns of their own.
  columns = dict.fromkeys(name for row in rows for name in row)
  text = io.StringIO(newline='')
  writer = csv.DictWriter(text, fieldnames=columns)
  writer.writeheader()
  writer.writerows(rows)
  return text.getvalue()


def _figure(reports: Mapping[str, dict[str, Any]]) -> Figure:
  """Quality and accuracy over compute, a line for each run."""
  height = max(3.5, 1 + 0.2 * len(reports))
  figure = Figure(figsize=(11, height), layout='constrained')
  axes = figure.subplots(1, 2)
  for i, (name, report) in enumerate(reports.items()):
    rows = report['rows']
    quality = report['recipe']['quality']
    for axis, metric in zip(axes, (quality, 'class_accuracy')):
      axis.plot(
        [row['gflops_per_sample'] for row in rows],
        [row[metric] for row in rows],
        f'{_MARKERS[i // _COLORS % len(_MARKERS)]}-',
        color=f'C{i % _COLORS}',
        label=name,
      )
      axis.set_xlabel('GFLOPs per sample')
      axis.set_ylabel(metric)
      axis.locator_params(axis='x', nbins=5)
  handles, labels = axes[0].get_legend_handles_labels()
  figure.legend(handles, labels, loc='outside right upper', fontsize='small')
  return figure
