"""Measures speed on this machine: make bench.

Every claim is a ratio of things timed in turn in one run: the train step
against the machine's own matrix product, ILSD against vanilla looping, one
loop count against another. Nothing else should run meanwhile.
"""

from collections.abc import Callable
import time
from typing import Any

from absl import flags
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from configs import mnist_masked
from configs.base import get_base
from elt_jax import cli, flops, optim, sharding, train_state
from elt_jax import mesh as mesh_lib
from elt_jax.data import pipeline, sources
from elt_jax.keys import per_example
from elt_jax.models import build_model
from elt_jax.objectives import build_objective
from elt_jax.samplers import build_sampler
from elt_jax.samplers.draw import Draw
from elt_jax.samplers.plan import build_plan
from elt_jax.train_step import build_train_step


def in_turn(
  calls: dict[str, Callable[[], Any]], rounds: int
) -> dict[str, np.ndarray]:
  """Seconds of each call, [rounds] each, the calls taking turns."""
  for call in calls.values():  # Compiles, warms up.
    jax.block_until_ready(call())
  seconds = {name: [] for name in calls}
  for _ in range(rounds):
    for name, call in calls.items():
      began = time.perf_counter()
      jax.block_until_ready(call())
      seconds[name].append(time.perf_counter() - began)
  return {name: np.array(values) for name, values in seconds.items()}


class Step:
  """The training step of a config, called again and again on one batch."""

  def __init__(self, config: Any):
    config = config.copy_and_resolve_references()
    config.data.source = 'synthetic'
    self.flops = flops.flops_per_step(config)
    mesh = mesh_lib.build_mesh(config.mesh)
    model = build_model(config, mesh)
    optimizer = optim.build_optimizer(config)
    _, specs = train_state.state_specs(model, optimizer, mesh)
    shardings = sharding.to_shardings(specs, mesh)
    self._state = train_state.create_state(
      config.train.seed, model, optimizer, shardings
    )
    source = sources.load_source(config, 'train')
    batch = next(iter(pipeline.build_dataset(config, source)))
    self._batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    self._step = build_train_step(
      config, build_objective(config, model), optimizer, mesh, shardings
    )

  def __call__(self) -> jax.Array:
    self._state, metrics = self._step(self._state, self._batch)
    return metrics['loss']

  def compile_seconds(self) -> float:
    """Lowering and compiling, without running."""
    began = time.perf_counter()
    self._step.lower(self._state, self._batch).compile()
    return time.perf_counter() - began


def random_params(model: Any) -> Any:
  """Initial parameters of a model or tokenizer, on the first device."""
  init = lambda key: nn.unbox(model.init(key, *model.example_inputs()))
  return jax.jit(init)(jax.random.key(0))


def gemm(size: int) -> Callable[[], jax.Array]:
  a = jnp.ones((size, size))
  product = jax.jit(lambda a: a @ a)
  return lambda: product(a)


def report_steps(config: Any, rounds: int) -> None:
  """GEMM peak, GFLOP/s and share of the train step, ILSD over vanilla."""
  sizes = (1024, 2048)
  vanilla = config.copy_and_resolve_references()
  vanilla.objective.exits = 'none'
  steps = {'ilsd': Step(config), 'vanilla': Step(vanilla)}
  seconds = in_turn(steps | {n: gemm(n) for n in sizes}, rounds)
  peak = max(2 * n**3 / np.median(seconds[n]) for n in sizes) / 1e9
  print(f'  GEMM peak, f32: {peak:.0f} GFLOP/s')
  for name, step in steps.items():
    rate = step.flops / np.median(seconds[name]) / 1e9
    print(
      f'  {name} step: {1e3 * np.median(seconds[name]):.1f} ms, '
      f'{rate:.1f} GFLOP/s, {100 * rate / peak:.0f}% of the peak'
    )
  ratio = seconds['ilsd'] / seconds['vanilla']
  low, high = np.quantile(ratio, [0.25, 0.75])
  print(
    f'  ilsd / vanilla: {np.median(ratio):.3f} '
    f'(quartiles {low:.3f}..{high:.3f}, {rounds} pairs)'
  )


def report_sampling(config: Any, rounds: int) -> None:
  """Seconds of a batch at each loop count, and the cost of a loop."""
  mesh = mesh_lib.build_mesh(config.mesh)
  model = build_model(config, mesh)
  optimizer = optim.build_optimizer(config)
  _, specs = train_state.state_specs(model, optimizer, mesh)
  state = train_state.create_state(
    config.train.seed, model, optimizer, sharding.to_shardings(specs, mesh)
  )
  n = 48  # Enough to fill two cores, few enough to wait for.
  draw = Draw(config, model, mesh, batch_size=n)
  labels = np.arange(n) % config.data.num_classes
  loops = range(1, 2 * config.model.max_loops + 1)
  call = lambda count: lambda: draw(state.ema, labels, count, seed=0)
  seconds = in_turn({count: call(count) for count in loops}, rounds)
  medians = np.array([np.median(seconds[count]) for count in loops])
  slope, start = np.polyfit(list(loops), medians, 1)
  for count, median in zip(loops, medians, strict=True):
    print(f'  L = {count}: {1e3 * median / n:.2f} ms a sample')
  print(
    f'  slope {1e3 * slope / n:.2f} ms a loop over {1e3 * start / n:.2f} ms; '
    f'a loop costs {slope / medians[0]:.2f} of a sample at L = 1'
  )


def report_guidance(config: Any, rounds: int) -> None:
  """What each mode of guidance adds to sampling with L_max loops."""
  mesh = mesh_lib.build_mesh(config.mesh)
  model = build_model(config, mesh)
  params = random_params(model)
  n, most = 48, config.model.max_loops
  draw = Draw(config, model, mesh, batch_size=n)
  labels = np.arange(n) % config.data.num_classes
  scales = {'none': 1.0, 'exit': 2.0, 'cfg_shallow': 2.0, 'cfg': 2.0}

  def call(mode: str) -> Callable[[], np.ndarray]:
    changes = {'guidance': scales[mode], 'weak_loops': 1}
    changes['guidance_mode'] = 'cfg' if mode == 'none' else mode
    return lambda: draw(params, labels, most, seed=0, **changes)

  seconds = in_turn({mode: call(mode) for mode in scales}, rounds)
  for mode, base in (('exit', 'none'), ('cfg_shallow', 'cfg')):
    ratio = seconds[mode] / seconds[base]
    low, high = np.quantile(ratio, [0.25, 0.75])
    print(
      f'  {mode} / {base} at L = {most}, weak output at 1: '
      f'{np.median(ratio):.3f} (quartiles {low:.3f}..{high:.3f})'
    )


def report_decoding(rounds: int) -> None:
  """One compiled decode against a compiled step called K times from Python.

  The shape of the released MaskGIT, 24 layers over 256 tokens, at a reduced
  width: 12 steps, one image.
  """
  config = get_base()
  config.model.update(
    {
      'family': 'masked',
      'width': 192,
      'num_heads': 16,
      'num_layers': 24,
      'max_loops': 1,
    }
  )
  config.objective.exits = 'none'
  config.data.update({'image_size': 256, 'num_classes': 1000})
  config.sample.update(
    {'method': 'confidence', 'num_steps': 12, 'guidance': 1.0}
  )
  model = build_model(config)
  sampler = build_sampler(config, model)
  params = random_params(model)
  key, labels = jax.random.key(1), jnp.zeros(1, jnp.int32)
  keys = per_example(key, jnp.arange(1))
  decode, step = jax.jit(sampler.__call__), jax.jit(sampler.step)
  plan = build_plan(config, 1)
  steps = plan, jax.device_get(sampler.schedule())
  masked = sampler.start(keys)

  def in_python():
    state = masked
    for k in range(12):
      of_step = jax.tree.map(lambda x, k=k: x[k], steps)
      state, _ = step(params, keys, labels, state, *of_step)
    return state

  seconds = in_turn(
    {
      'compiled': lambda: decode(params, key, labels, plan),
      'python': in_python,
    },
    rounds,
  )
  ratio = seconds['compiled'] / seconds['python']
  print(
    f'  12 steps of 24 layers, width 192: {np.median(seconds["compiled"]):.2f} '
    f's in one program, {np.median(ratio):.3f} of a Python loop over its step'
  )


def report_compile(config: Any) -> None:
  """Compile time of the train step at L = 4 and 32, scan not unrolled."""
  seconds = {}
  for loops in (4, 32, 4, 32):
    config = config.copy_and_resolve_references()
    config.model.unroll_loops = False
    config.model.max_loops = loops
    seconds.setdefault(loops, []).append(Step(config).compile_seconds())
  first, second = (min(seconds[loops]) for loops in (4, 32))
  print(
    f'  train step: L = 4 {first:.2f} s, L = 32 {second:.2f} s, '
    f'ratio {second / first:.2f}'
  )


def main(args: flags.FlagValues) -> None:
  config = args.config
  wide = config.copy_and_resolve_references()
  wide.model.width, wide.model.num_heads = 512, 8
  print('Train step of the config', flush=True)
  report_steps(config, rounds=30)
  print('Train step at d = 512', flush=True)
  report_steps(wide, rounds=5)
  print('Sampling', flush=True)
  report_sampling(config, rounds=3)
  print('Guidance', flush=True)
  report_guidance(config, rounds=7)
  print('Guidance of a masked model', flush=True)
  report_guidance(mnist_masked.get_config(), rounds=5)
  print('Masked decoding', flush=True)
  report_decoding(rounds=5)
  print('Compiling', flush=True)
  report_compile(config)


def _define(values: flags.FlagValues) -> None:
  cli.add_config(values)
  values.set_default('config', 'configs/mnist_diffusion.py')


if __name__ == '__main__':
  cli.run(main, _define, __doc__)
