"""Trains and evaluates every run of a sweep, one after the other.

    python launch/sweep.py --sweep=configs/sweeps/mnist_ablation.py \\
        --workdir=runs/ablation [--num=500]

A sweep file names its experiment (CONFIG), the loop counts of the evaluation
(LOOPS) and its runs (get_sweep). Each run has its own workdir below --workdir;
killed and started again, the sweep goes on where it was: what is finished is
not repeated. At the end --workdir holds summary.csv and summary.png.
"""

import argparse
import csv
import importlib.util
import json
import pathlib
import subprocess
import sys
from types import ModuleType

ROOT = pathlib.Path(__file__).resolve().parent.parent


def load(path: str) -> ModuleType:
  """The sweep file as a module; exits with a message if it is not one."""
  spec = importlib.util.spec_from_file_location('sweep_file', path)
  if not pathlib.Path(path).is_file() or spec is None:
    sys.exit(f'Error: there is no sweep file {path}.')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  for name in ('CONFIG', 'LOOPS', 'get_sweep'):
    if not hasattr(module, name):
      sys.exit(f'Error: the sweep file {path} defines no {name}.')
  return module


def command(module: str, *args: str) -> None:
  """Runs a command of the project; its failure ends the sweep."""
  print(f'$ python -m elt_jax.{module} {" ".join(args)}', flush=True)
  code = subprocess.run(
    [sys.executable, '-m', f'elt_jax.{module}', *args], cwd=ROOT, check=False
  ).returncode
  if code:
    sys.exit(f'Error: the command above ended with code {code}.')


def run(
  sweep: ModuleType, entry: dict, workdir: pathlib.Path, num: int
) -> dict:
  """Trains and evaluates one run; returns its elastic report."""
  path = workdir / 'elastic.json'
  loops = entry.get('loops', sweep.LOOPS)
  overrides = [f'--config.{k}={v}' for k, v in entry['overrides'].items()]
  # Returns at once where it is finished; refuses a workdir of another config.
  command(
    'train', f'--config={sweep.CONFIG}', f'--workdir={workdir}', *overrides
  )
  if path.exists():
    report = json.loads(path.read_text())
    names = [path.name for path in (workdir / 'checkpoints').iterdir()]
    steps = [int(name) for name in names if name.isdigit()]
    measured = ','.join(str(row['loops']) for row in report['rows'])
    recipe = report['recipe']
    of = (measured, recipe['num_samples'], recipe['checkpoint_step'])
    # A report without the name of its metric is of an older version.
    if 'quality' in recipe and of == (loops, num, max(steps, default=None)):
      return report
  command(
    'evaluate', f'--workdir={workdir}', f'--loops={loops}', f'--num={num}'
  )
  return json.loads(path.read_text())


def summarize(reports: dict[str, dict], workdir: pathlib.Path) -> None:
  """summary.csv, summary.png and a table on stdout."""
  rows = [
    {'run': name} | row
    for name, report in reports.items()
    for row in report['rows']
  ]
  with (workdir / 'summary.csv').open('w', newline='') as file:
    # A schedule that ends early has columns of its own.
    columns = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(file, fieldnames=columns)
    writer.writeheader()
    writer.writerows(rows)
  quality = next(iter(reports.values()))['recipe']['quality']
  print(f'{"run":18s} {"L":>3s} {quality:>9s} {"accuracy":>9s} {"GFLOPs":>8s}')
  for row in rows:
    print(
      f'{row["run"]:18s} {row["loops"]!s:>3s} {row[quality]:9.2f} '
      f'{row["class_accuracy"]:9.3f} {row["gflops_per_sample"]:8.2f}'
    )
  from matplotlib.figure import Figure

  figure = Figure(figsize=(9, 3.5), layout='constrained')
  for axis, metric in zip(
    figure.subplots(1, 2), (quality, 'class_accuracy'), strict=True
  ):
    for name, report in reports.items():
      x = [row['gflops_per_sample'] for row in report['rows']]
      y = [row[metric] for row in report['rows']]
      axis.plot(x, y, 'o-', label=name)
    axis.set_xlabel('GFLOPs per sample')
    axis.set_ylabel(metric)
    axis.legend()
  figure.savefig(workdir / 'summary.png', dpi=110)
  print(workdir / 'summary.csv', workdir / 'summary.png', sep='\n')


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--sweep', required=True, help='a file of configs/sweeps')
  parser.add_argument('--workdir', required=True, help='directory of all runs')
  parser.add_argument(
    '--num', type=int, default=500, help='samples a loop count'
  )
  args = parser.parse_args()
  sweep = load(args.sweep)
  workdir = pathlib.Path(args.workdir).resolve()
  reports = {
    entry['name']: run(sweep, entry, workdir / entry['name'], args.num)
    for entry in sweep.get_sweep()
  }
  summarize(reports, workdir)


if __name__ == '__main__':
  main()
