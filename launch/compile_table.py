"""Every paper-scale config through compile_check, and a table of what it says.

    make compile-check        (or, of some)
    python launch/compile_table.py --out=runs/compile_check \\
        [--topologies=v5e:2x4,v6e:2x4] \\
        [--configs=imagenet256_masked.py:XL_7Nx4L]

--out receives a JSON file for each config and topology and table.md. A file
that is there is not made again: killed and started once more, the command goes
on. Some minutes for each, hours for all.
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


def report(config: str, topology: str, out: pathlib.Path) -> dict:
  """compile_check's report, made now or before; 'error' where it has none."""
  name = f'{config}-{topology}'.replace(':', '-').replace('.py', '')
  path = out / f'{name}.json'
  if path.exists():
    return json.loads(path.read_text())
  print(f'{config} for {topology}', file=sys.stderr, flush=True)
  command = [
    sys.executable,
    'launch/compile_check.py',
    '--json',
    f'--config=configs/{config}',
    f'--topology={topology}',
    *OVERRIDES.get(config.partition('.py')[0], []),
  ]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  if done.returncode not in (0, TOO_LARGE):
    sys.exit(f'Error: {" ".join(command)}\n{done.stderr.strip()[-2000:]}')
  found = json.loads(done.stdout)
  files.write_text(path, json.dumps(found, indent=2) + '\n')
  return found


def num_steps(config: str) -> int:
  """Of the training that a config describes."""
  name, _, variant = config.replace('.py', '').partition(':')
  module = importlib.import_module(f'configs.{name}')
  return module.get_config(variant).train.num_steps


def row(config: str, topology: str, found: dict) -> str:
  """A line of the table."""
  name = config.replace('.py', '')
  if 'error' in found:
    return f'| {name} | {topology} | | does not fit | | | | |'
  gib = lambda n: f'{n / 2**30:.1f}'
  memory, floor = found['train_step']['memory'], found.get('floor')
  sent = sum(kind['bytes'] for kind in found['collectives'].values())
  least, rate, hours = '', '', ''
  if floor:
    least = f'{1e3 * floor["seconds"]:.0f}'
    rate = f'{found["batch_size"] / floor["seconds"]:,.0f}'
    hours = f'{floor["seconds"] * num_steps(config) / 3600:.1f}'
  return (
    f'| {name} | {topology} | {found["batch_per_chip"]:g} | '
    f'{gib(memory["total"])} of {gib(found["hbm_limit"])} | '
    f'{sent / 1e6:,.0f} | {least} | {rate} | {hours} |'
  )


HEAD = """| config | slice | batch a chip | GiB of HBM | MB received a step | \
least ms a step | at most examples/s | least hours of the training |
|---|---|---|---|---|---|---|---|
"""


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--out', required=True, help='directory of the reports')
  parser.add_argument('--topologies', default='v5e:2x4,v6e:2x4')
  parser.add_argument('--configs', help='some of configs/; all by default')
  args = parser.parse_args()
  out = pathlib.Path(args.out)
  out.mkdir(parents=True, exist_ok=True)
  known = variants()
  wanted = args.configs.split(',') if args.configs else known
  if unknown := sorted(set(wanted) - set(known)):
    sys.exit(f'Error: --configs: {unknown} are not among {known}.')
  rows = [
    row(config, topology, report(config, topology, out))
    for config in wanted
    for topology in args.topologies.split(',')
  ]
  table = HEAD + '\n'.join(rows) + '\n'
  files.write_text(out / 'table.md', table)
  print(table)


if __name__ == '__main__':
  main()
