"""Installs what the notebooks need, for the devices of this machine.

    python launch/colab/install.py

Where the project can be imported already nothing is installed. Runs before
anything is: the standard library alone.
"""

import glob
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
IMPORTS = 'import elt_jax.evaluate, elt_jax.train, elt_jax.panel, IPython'


def jax_extra() -> str:
  """The extra of jax for the devices: 'tpu', 'cuda13', 'cuda12' or ''."""
  if shutil.which('nvidia-smi'):
    said = subprocess.run(['nvidia-smi'], capture_output=True, text=True).stdout
    # The newest CUDA that the driver runs; wheels of an older one run too.
    version = re.search(r'CUDA Version: (\d+)', said)
    return 'cuda13' if version and int(version[1]) >= 13 else 'cuda12'
  # Beside a GPU either may be of other devices.
  if glob.glob('/dev/accel[0-9]*') or glob.glob('/dev/vfio/[0-9]*'):
    return 'tpu'
  return ''


def importable(quiet: bool = True) -> bool:
  """Whether all that the notebooks import is there; says why not, if asked."""
  command = [sys.executable, '-c', IMPORTS]
  done = subprocess.run(command, cwd=ROOT, capture_output=quiet)
  return done.returncode == 0


def main() -> None:
  if importable():
    print(f'Everything is there; {ROOT}.')
    return
  extra = jax_extra()
  wanted = ['-r', str(ROOT / 'requirements.txt')]
  if extra:
    wanted.append(f'jax[{extra}]')
  print(f'Installing, a minute or two: {" ".join(wanted)}', flush=True)
  pip = [sys.executable, '-m', 'pip', 'install', '--quiet']
  if subprocess.run([*pip, *wanted]).returncode or not importable(quiet=False):
    raise SystemExit('The installation failed: see above.')
  print('Installed. If an import fails below, restart the kernel and go on.')


if __name__ == '__main__':
  main()
