"""The real train step and sampler, compiled for devices that are not here.

Everything is abstract: shapes, dtypes and shardings. The compiler of a TPU
comes with the package libtpu and runs on any machine.
"""

import contextlib
import importlib.util
import logging
import os
from typing import Any

import jax
from jax.experimental import topologies
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from elt_jax import config as config_lib
from elt_jax import mesh as mesh_lib
from elt_jax import optim, sharding, train_state
from elt_jax.models import build_model, grid
from elt_jax.objectives import build_objective
from elt_jax.samplers import build_sampler
from elt_jax.samplers.plan import build_plan
from elt_jax.train_step import build_train_step
from elt_jax.validation import is_latents

log = logging.getLogger(__name__)

# Of one chip, where larger batches are not looked for.
_MOST = 2**16


class DoesNotFit(Exception):
  """The program needs more memory than a chip has."""


def tpu_devices(topology: str) -> list[Any]:
  """The chips of a slice, as 'v6e:2x4'; call it before JAX is used.

  Raises:
    ValueError: if there is no such topology, or libtpu is not installed.
  """
  if importlib.util.find_spec('libtpu') is None:
    raise ValueError(
      f'Compiling for {topology} needs the package libtpu: pip install '
      '"jax[tpu]". No TPU is needed.'
    )
  jax.config.update('jax_platforms', 'cpu')
  # Else libtpu looks for the metadata of the machine it is on.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v6e-8')
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  # No device is used: other processes may compile, or train, meanwhile.
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  try:
    return list(
      topologies.get_topology_desc(
        platform='tpu', topology_name=topology
      ).devices
    )
  except jax.errors.JaxRuntimeError as e:
    raise ValueError(
      f'There is no TPU topology {topology!r}: a generation and a shape, as '
      f'v6e:2x4, v5e:16x16 or v5p:2x2x2. ({str(e).splitlines()[0]})'
    ) from None


def lower_train_step(config: Any, devices: list[Any]) -> jax.stages.Lowered:
  """The step of `config` on a mesh over `devices`, its batch as the loader's.

  Raises:
    ValueError: if mesh, batch or parameters do not divide.
  """
  mesh = mesh_lib.build_mesh(config.mesh, devices)
  mesh_lib.check_config(config, mesh)
  model = build_model(config, mesh)
  optimizer = optim.build_optimizer(config)
  abstract, specs = train_state.state_specs(model, optimizer, mesh)
  shardings = sharding.to_shardings(specs, mesh)
  objective = build_objective(config, model)
  step = build_train_step(config, objective, optimizer, mesh, shardings)
  state = sharding.with_shardings(abstract, shardings)
  return step.lower(state, _batch(config, mesh))


def count_flops(config: Any) -> float:
  """FLOPs of a training step as XLA counts them, where there is no formula.

  Of the program for one example before it is compiled, times the batch; what
  is elementwise counts too. XLA counts the body of a loop once, so this is of
  tokenizers, which have none but over the parts of a batch.
  """
  c = config.copy_and_resolve_references()
  c.train.update({'batch_size': 1, 'accumulate_steps': 1})
  c.mesh.update({'data': 1, 'fsdp': 1, 'tensor': 1})
  c.model.remat = 'none'
  analysis = lower_train_step(c, jax.local_devices()[:1]).cost_analysis()
  return config.train.batch_size * analysis['flops']


def largest_batch(
  config: Any, devices: list[Any], limit: int, needed: int | None = None
) -> tuple[int, dict[str, int | None]]:
  """The largest batch of a chip whose train step fits, to a sixteenth.

  Memory grows evenly with the batch: two compilations tell how fast, and
  another confirms it. Batches are those of a step, all its parts together.

  Args:
    config: of the model.
    devices: of the slice.
    limit: bytes of a chip.
    needed: bytes that the config needs as it is, where it is known to fit.

  Returns:
    (batch, {batch: bytes of a chip, None where it does not fit}).
  """
  parts = config.train.accumulate_steps

  def needs(part: int) -> int | None:
    c = config.copy_and_resolve_references()
    c.train.batch_size = part * len(devices) * parts
    total = limit + 1
    with contextlib.suppress(DoesNotFit):
      total = memory(compile_program(lower_train_step(c, devices)))['total']
    fits = total <= limit
    said = f'{total / 2**30:.2f} GiB' if fits else 'does not fit'
    log.info('Batch of %d a chip: %s.', part * parts, said)
    return total if fits else None

  start = max(1, config.train.batch_size // (len(devices) * parts))
  tried = {start: needs(start) if needed is None else needed}
  while guess := _next_batch(tried, limit):
    tried[guess] = needs(guess)
  largest = parts * max((b for b, n in tried.items() if n), default=0)
  return largest, {str(b * parts): tried[b] for b in sorted(tried)}


def _next_batch(tried: dict[int, int | None], limit: int) -> int | None:
  """The batch to try next; None once the largest is known to a sixteenth.

  Args:
    tried: bytes of each batch, None where it does not fit.
    limit: bytes of a chip.
  """
  fits = sorted(batch for batch, needed in tried.items() if needed)
  refused = min((b for b, needed in tried.items() if not needed), default=_MOST)
  if not fits:
    return refused // 2 or None
  *less, low = fits
  slope = (tried[low] - tried[less[-1]]) / (low - less[-1]) if less else 0
  guess = low + int((limit - tried[low]) / slope) if slope > 0 else 2 * low
  if guess >= refused:
    near = guess < refused * 17 // 16  # Of an estimate that is a little off.
    guess = refused * 15 // 16 if near else (low + refused) // 2
  return guess if guess > low + low // 16 else None


def lower_sampler(config: Any, devices: list[Any]) -> jax.stages.Lowered:
  """The sampler of a looped model, split over `devices` as `sample` does it.

  Its program serves every number of loops; the tokenizer is not in it.
  """
  mesh = mesh_lib.data_mesh(devices)
  model = build_model(config, mesh)
  params, specs = train_state.param_specs(model, mesh)
  params = sharding.with_shardings(params, sharding.to_shardings(specs, mesh))
  batch = -(-config.sample.batch_size // mesh.size) * mesh.size
  rows = lambda *shape: jax.ShapeDtypeStruct(
    (batch, *shape), jnp.int32, sharding=sharding.batch_sharding(mesh)
  )
  given = {'known': rows(*grid(config))} if _masked(config) else {}
  key = jax.eval_shape(lambda: jax.random.key(0))
  key = jax.ShapeDtypeStruct(
    key.shape, key.dtype, sharding=NamedSharding(mesh, P())
  )
  plan = build_plan(config, config.model.max_loops)
  program = jax.jit(build_sampler(config, model).__call__)
  return program.lower(params, key, rows(), plan=plan, index=rows(), **given)


def compile_program(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
  """Compiles.

  Raises:
    DoesNotFit: if a chip has too little memory.
  """
  try:
    return lowered.compile()
  except jax.errors.JaxRuntimeError as e:
    if 'RESOURCE_EXHAUSTED' not in str(e):
      raise
    raise DoesNotFit(str(e).splitlines()[0]) from None


def memory(compiled: jax.stages.Compiled) -> dict[str, int]:
  """Bytes on each device: {'arguments', 'outputs', 'temporaries', ...}.

  'outputs' are those that take no argument's place. 'temporaries' are those
  that are there at the worst moment, which is what has to fit: all of them
  together (`temp_size_in_bytes`) can be a third more.
  """
  stats = compiled.memory_analysis()
  found = {
    'arguments': stats.argument_size_in_bytes,
    'outputs': stats.output_size_in_bytes - stats.alias_size_in_bytes,
  }
  at_worst = max(stats.peak_memory_in_bytes, sum(found.values()))
  found['temporaries'] = at_worst - sum(found.values())
  found['program'] = stats.generated_code_size_in_bytes
  return found | {'total': sum(found.values())}


def _masked(config: Any) -> bool:
  return config.model.family == 'masked'


def _batch(config: Any, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
  rows = lambda shape, dtype: jax.ShapeDtypeStruct(
    (config.train.batch_size, *shape),
    dtype,
    sharding=sharding.batch_sharding(mesh),
  )
  if _masked(config):
    example = {'tokens': rows(grid(config), jnp.int32)}
  elif is_latents(config):
    latents = rows(config_lib.sample_shape(config), jnp.float16)
    example = {'image': latents, 'image_std': latents}
  else:
    example = {'image': rows(config_lib.sample_shape(config), jnp.uint8)}
  integer = rows((), jnp.int32)
  return example | {'label': integer, 'index': integer}
