"""Trains any experiment, and resumes it by itself.

    python -m elt_jax.train --config=configs/mnist_diffusion.py \\
        --workdir=runs/mnist [--config.optim.learning_rate=1e-3]

The workdir receives config.json, checkpoints/, logs/ (metrics.jsonl and
TensorBoard events) and samples/. Running the same command again continues
from the newest checkpoint, bit for bit. SIGTERM and Ctrl-C save and stop; the
exit code is then 143, and 0 at the end of the training alone.

With --multihost every host of a slice runs this command, on a workdir that all
of them see; see `elt_jax.hosts`. SIGTERM on one saves and stops all.
"""

from collections.abc import Callable
import logging
import time

from absl import flags
from etils import epath
import jax
import numpy as np

from elt_jax import (
  checkpoint,
  cli,
  flops,
  hosts,
  optim,
  roofline,
  sample,
  sharding,
  train_state,
  viz,
  writers,
)
from elt_jax import config as config_lib
from elt_jax import mesh as mesh_lib
from elt_jax.data import pipeline, sources
from elt_jax.models import build_model
from elt_jax.objectives import build_objective
from elt_jax.preview import build_preview
from elt_jax.progress import Progress, Trace, Window
from elt_jax.tokenizers import autoencoder
from elt_jax.tokenizers.autoencoder import Autoencoder
from elt_jax.tokenizers.inflate import inflate
from elt_jax.tokenizers.pretrained import Tokenizer
from elt_jax.train_step import build_telemetry, build_train_step
from elt_jax.validation import validate

log = logging.getLogger('elt_jax.train')


def train(
  config: config_lib.ConfigDict,
  workdir: str,
  on_log: Callable[[int, dict[str, float]], None] | None = None,
) -> bool:
  """Trains `config` to train.num_steps in `workdir`.

  Args:
    config: of the run.
    workdir: of the run.
    on_log: called on every host with each (step, metrics) that is logged; its
      time does not count as that of the steps.

  Returns:
    Whether it got there: False if it was told to stop before.

  Raises:
    ValueError: on a config, data source or workdir that does not fit.
    FloatingPointError: on a loss, term or norm that is not finite.
  """
  config = validate(config)

  # ---- Mesh, model, data -----------------------------------------------------
  mesh = mesh_lib.build_mesh(config.mesh)
  mesh_lib.check_config(config, mesh)
  model = build_model(config, mesh)
  objective = build_objective(config, model)
  optimizer = optim.build_optimizer(config)
  source = sources.load_source(config, 'train')
  tokenizer = getattr(source, 'tokenizer', None)  # Of tokens or latents.
  looped = config.model.family != 'tokenizer'
  place = sharding.batch_sharding(mesh)
  batch_size = config.train.batch_size
  dataset = pipeline.build_dataset(
    config, source, pipeline.local_places(place, batch_size)
  )

  # ---- State: abstract first, so that nothing is ever on one device ----------
  abstract, specs = train_state.state_specs(model, optimizer, mesh)
  shardings = sharding.to_shardings(specs, mesh)
  log.info(
    'Mesh %s; %d parameters; %.1f%% of the bytes of the state replicated.',
    dict(mesh.shape),
    flops.count_params(abstract.params),
    100 * sharding.replicated_share(abstract, shardings),
  )

  def claim() -> None:
    config_lib.claim_workdir(config, workdir)
    if tokenizer:
      keep_tokenizer(tokenizer, workdir)

  hosts.once('claim', claim)
  k = config.checkpoint
  with (
    hosts.Interrupt() as interrupt,
    checkpoint.Checkpoints(workdir, k.keep, k.keep_every_steps) as checkpoints,
  ):
    # ---- Restore the newest checkpoint, or start from scratch ----------------
    like = sharding.with_shardings(abstract, shardings)
    if restored := checkpoints.restore(like):
      state, start = restored
      log.info('Resumed %s at step %d.', workdir, start)
    else:
      state = train_state.create_state(
        config.train.seed, model, optimizer, shardings
      )
      if config.model.family == 'tokenizer' and config.tokenizer.inflate_from:
        state = from_images(state, config.tokenizer, shardings)
      start = 0

    # ---- Loop ----------------------------------------------------------------
    num_steps = config.train.num_steps
    if start >= num_steps:
      log.info('Already trained to step %d.', start)
      return True
    train_step = build_train_step(config, objective, optimizer, mesh, shardings)
    batches = pipeline.batches(
      dataset, place, batch_size, start, config.data.num_threads
    )
    telemetry = None
    if looped and config.train.telemetry_every_steps:
      telemetry = build_telemetry(config, objective, mesh, shardings)
    preview = None
    if config.train.sample_every_steps:
      preview = build_preview(config, model, mesh, tokenizer)
    window = Window(start)
    with (
      writers.MetricWriter(workdir, start) as writer,
      Progress(num_steps, start) as progress,
      Trace(config.profile.steps, writer.logs) as trace,
    ):
      for step in range(start + 1, num_steps + 1):
        batch = next(batches)
        trace.begin(step)
        with (
          jax.profiler.StepTraceAnnotation('train', step_num=step),
          jax.transfer_guard('disallow'),
        ):
          state, metrics = train_step(state, batch)
        if step == start + 1:
          progress.restart(metrics)
        trace.end(step, metrics)
        window.add(metrics)
        progress.step()
        stop = interrupt.asks(step)  # Once: it may change at any time.
        last = stop or step == num_steps
        look = telemetry and step % config.train.telemetry_every_steps == 0
        if last or look or step % config.train.log_every_steps == 0:
          means = window.read()
          if look:
            began = time.monotonic()
            means |= by_loop(telemetry(state, batch))
            progress.skip_time(time.monotonic() - began)
          progress.report(step, {'loss': means['train/loss']})
          means['train/steps_per_second'] = progress.rate
          means |= roofline.memory()
          if looped and progress.rate:
            means |= roofline.reached(config, progress.rate)
          writer.write_scalars(step, means)
          if on_log:
            began = time.monotonic()
            on_log(step, means)
            progress.skip_time(time.monotonic() - began)
        if last or step % k.every_steps == 0:
          window.read()  # A state that is not finite is never saved.
          writer.copy()
          checkpoints.save(state)
        if preview and not stop and step % config.train.sample_every_steps == 0:
          began = time.monotonic()
          picture = preview(state.ema)
          if jax.process_index() == 0:
            save_preview(workdir, step, picture)
          writer.write_images(step, {'samples': picture})
          progress.skip_time(time.monotonic() - began)
        if stop:
          log.warning('Stopping at step %d of %d: saved.', step, num_steps)
          return step == num_steps
  return True


def save_preview(workdir: str, step: int, picture: np.ndarray) -> None:
  """Writes samples/STEP.png, or warns: the run is worth more than a picture."""
  path = epath.Path(workdir) / 'samples' / f'{step:08d}.png'
  try:
    viz.save_png(path, picture, scale=2)
  except OSError as e:
    log.warning('No picture of step %d: %s', step, e)


def from_images(
  state: train_state.TrainState,
  t: config_lib.ConfigDict,
  shardings: train_state.TrainState,
) -> train_state.TrainState:
  """A state at step 0 with the weights of a tokenizer of images, inflated."""
  tokenizer, step = sample.load_tokenizer(t.inflate_from)
  if (frames := tokenizer.config.data.num_frames) != 1:
    raise ValueError(
      f'tokenizer.inflate_from = {t.inflate_from} is a tokenizer of clips of '
      f'{frames} frames; expected one of images.'
    )
  weights = inflate(tokenizer.params, state.params, t.inflate)
  log.info('Inflated %s, step %d (%s).', t.inflate_from, step, t.inflate)
  # Each of its own memory: the step donates both.
  params, ema = (
    jax.device_put(old | jax.tree.map(np.copy, weights), place)
    for old, place in (
      (state.params, shardings.params),
      (state.ema, shardings.ema),
    )
  )
  return state.replace(params=params, ema=ema)


def by_loop(telemetry: dict[str, jax.Array]) -> dict[str, float]:
  """{'loss': [0.3, 0.1]} -> {'loop_1/loss': 0.3, 'loop_2/loss': 0.1}."""
  return {
    f'loop_{i + 1}/{name}': float(value)
    for name, values in jax.device_get(telemetry).items()
    for i, value in enumerate(values)
  }


def keep_tokenizer(tokenizer: Tokenizer | Autoencoder, workdir: str) -> None:
  """Copies what made a cache of tokens or latents to workdir/tokenizer.

  Raises:
    ValueError: if the run was begun with another one.
  """
  directory = epath.Path(workdir) / 'tokenizer'
  if not (directory / 'config.json').exists():  # It is written last.
    tokenizer.save(directory)
  elif (begun := autoencoder.load_kept(directory)).fingerprint != (
    tokenizer.fingerprint
  ):
    raise ValueError(
      f'{workdir} was trained on what tokenizer {begun.fingerprint} made, '
      f'the cache was made by {tokenizer.fingerprint}. Use another --workdir, '
      'or the cache of the first run.'
    )


def _define(values: flags.FlagValues) -> None:
  cli.add_config(values)
  flags.DEFINE_string(
    'workdir', None, 'Directory of the run.', flag_values=values
  )
  cli.add_multihost(values)


def main(args: flags.FlagValues) -> None:
  cli.join_hosts(args, saves=True)
  if not train(cli.required(args, 'config'), cli.workdir(args)):
    raise SystemExit(cli.STOPPED)


if __name__ == '__main__':
  cli.run(main, _define, __doc__)
