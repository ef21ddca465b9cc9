"""Commands run as a user runs them, in real processes."""

import json
import os
import pathlib
import subprocess
import sys
import time

from absl import flags
from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent
TINY = [
  '--config=configs/mnist_diffusion.py',
  '--config.data.source=synthetic',
  '--config.data.image_size=8',
  '--config.model.width=16',
  '--config.model.num_heads=2',
  '--config.model.patch_size=4',
  '--config.model.max_loops=3',
  '--config.model.unroll_loops=False',
  '--config.train.batch_size=16',
  '--config.train.log_every_steps=4',
  '--config.checkpoint.every_steps=4',
  '--config.sample.num_steps=3',
  '--config.sample.batch_size=10',
]
# Runs commands one after the other, as `python -m` would, in one process: the
# imports of a command take far longer than its finding of a user's error.
IN_TURN = """
import contextlib, io, json, runpy, sys
for command, *args in json.load(sys.stdin):
  sys.argv, code = [command, *args], None
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    try:
      runpy.run_module(f'elt_jax.{command}', run_name='__main__')
    except SystemExit as e:
      code = e.code
  print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


def call(module, *args):
  """Runs a command as its `main` would, in this process."""
  values = flags.FlagValues()
  module._define(values)
  values(['command', *args])
  module.main(values)


def trained(experiment, changes, workdir):
  """Trains the config of a file with some values changed, in this process."""
  config = experiment.get_config()
  config.update_from_flattened_dict(changes)
  from elt_jax import train

  train.train(config, str(workdir))


def start(command, *args, env=None):
  return subprocess.Popen(
    [sys.executable, '-m', f'elt_jax.{command}', *args],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'} | (env or {}),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def run(command, *args, env=None, code=0):
  process = start(command, *args, env=env)
  out, err = process.communicate(timeout=180)
  assert process.returncode == code, err[-3000:]
  return out, err


def metrics(workdir):
  lines = (workdir / 'logs' / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def timeless(records):
  """Records of a log without what depends on the speed of the machine."""
  timed = ('train/steps_per_second', 'train/tflops_per_device')
  return [
    {name: value for name, value in record.items() if name not in timed}
    for record in records
  ]


def picture_size(path):
  with Image.open(path) as picture:
    return picture.size


def state_files(workdir, step):
  """Every stored array of a checkpoint, through the checkpoint's own reader."""
  import orbax.checkpoint as ocp

  manager = ocp.CheckpointManager(
    workdir / 'checkpoints',
    options=ocp.CheckpointManagerOptions(read_only=True),
  )
  items = manager.restore(
    step,
    args=ocp.args.Composite(
      state=ocp.args.StandardRestore(),
      ema=ocp.args.StandardRestore(),
      data=ocp.args.JsonRestore(),
    ),
  )
  manager.close()
  return {'state': items.state, 'ema': items.ema}, items.data


def wait_for_step(process, workdir, step):
  """Until the checkpoint of `step` is whole."""
  for _ in range(1200):
    if (workdir / 'checkpoints' / str(step)).exists():
      return
    assert process.poll() is None, process.communicate()[1][-3000:]
    time.sleep(0.05)
  raise AssertionError('The run did not get there in a minute.')
