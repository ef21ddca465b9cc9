"""Sweeps whose commands are a few lines of Python."""

import json
import pathlib
import sys

from commands import ROOT

# In place of the commands. Files in the directory of the sweep tell it what to
# do, and it tells there what it did.
STUB = r"""
import json, os, pathlib, signal, sys, time
command, workdir, loops, num, config = sys.argv[1:]
workdir, num, config = pathlib.Path(workdir), int(num), json.loads(config)
step, sample = config['train']['num_steps'], config['sample']
root = workdir.parent.parent
chips = os.environ.get('CUDA_VISIBLE_DEVICES', '')
with (root / 'calls').open('a') as file:
  file.write(f'{command} {workdir.name} {chips}\n')
def save(*_):
  (workdir / 'saved').write_text('')
  sys.exit(143)
signal.signal(signal.SIGTERM, save)
(root / f'began {workdir.name}').write_text('')
deadline = time.monotonic() + 30
while (root / 'together').exists() and time.monotonic() < deadline:
  if len(list(root.glob('began *'))) >= int((root / 'together').read_text()):
    break
  time.sleep(0.01)
else:
  if time.monotonic() >= deadline:
    sys.exit('Error: alone')
if (root / f'bad {workdir.name}').exists():
  sys.exit('Error: of the stub')
if command == 'train':
  (workdir / 'config.json').write_text(json.dumps(config))
  (workdir / 'checkpoints' / str(step)).mkdir(parents=True)
else:
  rows = [
    {
      'loops': int(n),
      'fd_lenet': 1 / int(n),
      'class_accuracy': 0.5,
      'gflops_per_sample': float(n),
      'seconds_per_sample': 0.1,
    }
    for n in loops.split(',')
  ]
  recipe = {key: sample[key] for key in ('num_steps', 'guidance')}
  recipe |= {'sampler': sample['method'], 'batch_size': 3, 'seed': 0}
  recipe |= {'num_samples': num, 'checkpoint_step': step}
  recipe['quality'] = 'fd_lenet'
  text = json.dumps({'recipe': recipe, 'rows': rows})
  (workdir / 'elastic.json').write_text(text)
"""


def stub(command, path):
  """In place of train_command or evaluate_command."""

  def of(job, num=0):
    values = (
      job.workdir,
      job.run.loops,
      num,
      json.dumps(job.config.to_dict()),
    )
    return [sys.executable, '-S', path, command, *map(str, values)]

  return of


# The sweep as it is, but for its evaluation: trainings alone take long enough.
DRIVER = """
import pathlib, sys
sys.path[:0] = {paths}
import sweep_stubs
from launch import sweep, sweep_runs, sweep_tpu
sweep.evaluate_command = sweep_stubs.stub('evaluate', {stub!r})
{more}
try:
  sweep.command()
finally:
  # The devices are for the runs.
  from jax._src import xla_bridge
  assert not xla_bridge.backends_are_initialized()
"""


def write_driver(path: pathlib.Path, text: str, more: str = '') -> list[str]:
  """The command line of a sweep of the file `text`."""
  (path / 'stub.py').write_text(STUB)
  (path / 'sweep.py').write_text(text)
  paths = [str(ROOT), str(ROOT / 'tests')]
  (path / 'driver.py').write_text(
    DRIVER.format(paths=paths, stub=str(path / 'stub.py'), more=more)
  )
  return [sys.executable, f'{path}/driver.py', f'--sweep={path}/sweep.py']
