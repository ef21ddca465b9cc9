"""What notebooks need beside the commands: training that shows itself.

The notebooks of launch/colab/ call the functions of the commands; here is what
only a notebook has, a page that pictures appear on while something runs.
IPython is imported where it is used: nothing else of the project needs it.
"""

import datetime
import io
import logging
import os
import pathlib
import shutil
import tempfile
import time

from etils import epath
import jax
import numpy as np

from elt_jax import cli, video, viz, writers
from elt_jax import config as config_lib
from elt_jax import train as train_lib

# Drawing the loss takes a fifth of a second of the training's time.
_SECONDS_BETWEEN_PLOTS = 3.0


def start() -> None:
  """Says what the notebook runs on; keeps libraries quiet."""
  cli.set_up_libraries()
  logging.getLogger('elt_jax').setLevel(logging.WARNING)
  print(runtime())


def runtime() -> str:
  """The devices in words, and what to do if there could be better ones."""
  devices = jax.devices()
  kind, platform = devices[0].device_kind, devices[0].platform
  text = f'{platform.upper()}: {len(devices)} x {kind}; jax {jax.__version__}.'
  if platform != 'cpu':
    return text
  text = f'CPU of {os.cpu_count()} cores; jax {jax.__version__}.'
  if shutil.which('nvidia-smi'):
    return text + (
      ' There is an NVIDIA GPU that this jax does not see: install '
      'jax[cuda13] (or jax[cuda12], for a driver older than 580) and restart.'
    )
  if 'COLAB_RELEASE_TAG' in os.environ:
    text += ' Runtime > Change runtime type has GPUs and TPUs.'
  return text


def shrink(
  config: config_lib.ConfigDict, num_steps: int
) -> config_lib.ConfigDict:
  """A copy that trains for `num_steps` steps, and saves at the last alone."""
  config = config.copy_and_resolve_references()
  t = config.train
  t.num_steps, t.sample_every_steps = num_steps, 0
  t.log_every_steps = max(1, min(t.log_every_steps, num_steps // 20))
  config.optim.warmup_steps = min(config.optim.warmup_steps, num_steps // 5)
  config.checkpoint.every_steps = num_steps
  return config


def train(config: config_lib.ConfigDict, workdir: str) -> None:
  """Trains as `elt_jax.train` does, and draws the loss while it runs.

  To stop, interrupt the kernel: the training saves, and goes on from there
  when it is called again. Of a run that is finished only the plot is drawn.

  Args, errors: as of `elt_jax.train.train`.
  """
  from IPython import display

  records = writers.read(epath.Path(workdir) / 'logs')
  num_steps, last = config.train.num_steps, time.monotonic()
  words = display.display(display.Markdown('Compiling ...'), display_id=True)
  plot = display.display(display.Markdown(''), display_id=True)

  def draw() -> None:
    picture = io.BytesIO()
    viz.loss_figure(records, num_steps, picture)
    plot.update(display.Image(picture.getvalue()))
    words.update(display.Markdown(progress(records, num_steps)))

  def on_log(step: int, metrics: dict[str, float]) -> None:
    nonlocal last
    # A resumed run logs again what came after its checkpoint.
    records[:] = [r for r in records if r['step'] < step]
    records.append({'step': step} | metrics)
    if time.monotonic() - last > _SECONDS_BETWEEN_PLOTS:
      draw()
      last = time.monotonic()

  finished = train_lib.train(config, workdir, on_log)
  draw()
  if not finished:
    print(f'Stopped, and saved in {workdir}. Run this cell again to go on.')


def progress(records: list[dict[str, float]], num_steps: int) -> str:
  """'Step 50 of 600, loss 0.231, 7.2 steps a second, 0:01:16 left.'"""
  if not records:
    return 'Nothing was logged.'
  now = records[-1]
  text = f'Step {now["step"]} of {num_steps}, loss {now["train/loss"]:.3g}'
  rate, left = now.get('train/steps_per_second'), num_steps - now['step']
  if rate and left:
    ends = datetime.timedelta(seconds=round(left / rate))
    text += f', {rate:.1f} steps a second, {ends} left'
  return text + '.'


def show(picture: np.ndarray, fps: int = 8) -> None:
  """Displays uint8 [H, W, 3], or [f, H, W, 3], which plays."""
  from IPython import display

  display.display(display.Image(encode(picture, fps)))


def show_file(path: str | os.PathLike) -> None:
  """Displays a .png or .gif."""
  from IPython import display

  display.display(display.Image(epath.Path(path).read_bytes()))


def encode(picture: np.ndarray, fps: int = 8) -> bytes:
  """A .png of uint8 [H, W, 3], a .gif of [f, H, W, 3]."""
  name = 'picture.png' if picture.ndim == 3 else 'picture.gif'
  with tempfile.TemporaryDirectory() as directory:
    path = pathlib.Path(directory) / name
    video.save(path, picture, fps)
    return path.read_bytes()
