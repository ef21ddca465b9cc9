"""Every paper-scale config through compile_check, and a table of what it says.

    make compile-check        (or, of some)
    python launch/compile_table.py --out=runs/compile_check \\
        [--topologies=v5e:2x4,v6e:2x4] [--find_batch] \\
        [--configs=imagenet256_masked.py:XL_7Nx4L]

--out receives a JSON file for each config and topology and table.md. A file
that is there is not made again: killed and started once more, the command goes
on. Some minutes for each, hours for all; --find_batch, which looks for the
largest batch too, takes three times as long. What fails has 'failed' in its
cell, is told at the end, and is made again by the same command.
"""

import argparse
import importlib
import json
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from elt_jax import files

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = (
  'imagenet256_masked',
  'imagenet256_diffusion',
  'imagenet256_tokenizer',
  'ucf101_masked',
  'ucf101_tokenizer',
)
TOO_LARGE = 3  # The exit code of compile_check where it does not fit.
LARGEST = 'largest_batch_per_chip'  # What --find_batch adds to a report.
# Compiled without the weights that a user has to bring.
OVERRIDES = {
  'imagenet256_tokenizer': ['--config.tokenizer.perceptual=0.0'],
  'ucf101_tokenizer': ['--config.tokenizer.perceptual=0.0'],
}


def variants() -> list[str]:
  """'file.py' or 'file.py:variant' of every paper-scale experiment."""
  found = []
  for name in FILES:
    module = importlib.import_module(f'configs.{name}')
    names = getattr(module, 'VARIANTS', ('',))
    found += [f'{name}.py:{v}' if v else f'{name}.py' for v in names]
  return found


def report(
  config: str, topology: str, out: pathlib.Path, batch: bool = False
) -> dict:
  """compile_check's report, made now or before; 'error' where it has none.

  With its largest batch, if `batch`. A compilation that failed, for another
  reason than memory, is 'failed' and is not kept.
  """
  name = f'{config}-{topology}'.replace(':', '-').replace('.py', '')
  path = out / f'{name}.json'
  if path.exists():
    found = json.loads(path.read_text())
    if not batch or LARGEST in found:
      return found
  print(f'{config} for {topology}', file=sys.stderr, flush=True)
  command = [
    sys.executable,
    'launch/compile_check.py',
    '--json',
    f'--config=configs/{config}',
    f'--topology={topology}',
    *OVERRIDES.get(config.partition('.py')[0], []),
    *(['--find_batch'] if batch else []),
  ]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  if done.returncode not in (0, TOO_LARGE):
    print(done.stderr.strip()[-2000:], file=sys.stderr)
    return {'failed': ' '.join(command)}
  found = json.loads(done.stdout)
  files.write_text(path, json.dumps(found, indent=2) + '\n')
  return found


def table(reports: dict[str, dict[str, dict]]) -> str:
  """Markdown of {config: {topology: report}}, a row for each config.

  Of every topology the memory of a chip, the examples a second if every peak
  were reached, and, if that was looked for, the largest batch of a chip.
  """
  columns = {'GiB a chip': _memory, 'examples/s': _rate}
  if any(LARGEST in found for found in _all(reports)):
    columns['largest batch'] = lambda found: str(found.get(LARGEST, ''))
  topologies = list(next(iter(reports.values())))
  head = [f'{name}, {t}' for t in topologies for name in columns]
  lines = [['config', *head], ['---'] * (1 + len(head))]
  for config, of in reports.items():
    cells = [cell(of[t]) for t in topologies for cell in columns.values()]
    lines.append([config.replace('.py', ''), *cells])
  return ''.join(f'| {" | ".join(cells)} |\n' for cells in lines)


def _all(reports: dict[str, dict[str, dict]]) -> list[dict]:
  return [found for of in reports.values() for found in of.values()]


def _memory(found: dict) -> str:
  if 'failed' in found:
    return 'failed'
  if 'error' in found:
    return 'does not fit'
  return f'{found["hbm_bytes_per_chip"] / 2**30:.1f}'


def _rate(found: dict) -> str:
  if 'floor' not in found:
    return ''
  return f'{found["batch_size"] / found["floor"]["seconds"]:,.0f}'


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--out', required=True, help='directory of the reports')
  parser.add_argument('--topologies', default='v5e:2x4,v6e:2x4')
  parser.add_argument('--find_batch', action='store_true')
  parser.add_argument('--configs', help='some of configs/; all by default')
  args = parser.parse_args()
  out = pathlib.Path(args.out)
  out.mkdir(parents=True, exist_ok=True)
  known = variants()
  wanted = args.configs.split(',') if args.configs else known
  if unknown := sorted(set(wanted) - set(known)):
    sys.exit(f'Error: --configs: {unknown} are not among {known}.')
  reports = {
    config: {
      topology: report(config, topology, out, args.find_batch)
      for topology in args.topologies.split(',')
    }
    for config in wanted
  }
  text = table(reports)
  files.write_text(out / 'table.md', text)
  print(text)
  if failed := [
    found['failed'] for found in _all(reports) if 'failed' in found
  ]:
    sys.exit('Error: these failed:\n' + '\n'.join(failed))


if __name__ == '__main__':
  main()
