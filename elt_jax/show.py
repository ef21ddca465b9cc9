"""Shows what a config means, without training it.

    python -m elt_jax.show --config=configs/mnist_diffusion.py

Prints the resolved config, the parameter table with shardings, parameters in
the transformer layers alone (what the paper's tables count) and in all, the
mesh and the batch, and the cost at each loop count: multiply-adds of the
layers on the grid's tokens, for a pass and for all steps (the paper's
"GFLOPs"), of a whole pass with embedding, class token and head, and FLOPs of a
sample in each mode of guidance.
"""

from typing import Any

from absl import flags
from clu import parameter_overview
import jax

from elt_jax import cli, flops, optim, sharding, train_state
from elt_jax import config as config_lib
from elt_jax import mesh as mesh_lib
from elt_jax.models import build_model, grid
from elt_jax.samplers.plan import build_plan
from elt_jax.validation import CHOICES, validate


def show(config: config_lib.ConfigDict) -> str:
  """The report, as text; nothing is allocated on a device."""
  config = validate(config)
  mesh = mesh_lib.build_mesh(config.mesh)
  mesh_lib.check_config(config, mesh)
  model = build_model(config, mesh)
  optimizer = optim.build_optimizer(config)
  abstract, specs = train_state.state_specs(model, optimizer, mesh)
  shardings = sharding.to_shardings(specs, mesh)
  t = config.train
  examples = t.batch_size // mesh_lib.batch_shards(mesh)
  if config.model.family == 'masked':
    example = f'tokens {(t.batch_size, *grid(config))}'
  else:
    example = f'image {(t.batch_size, *config_lib.sample_shape(config))}'
  looped = config.model.family != 'tokenizer'
  lines = [
    config_lib.to_json(config),
    parameter_overview.get_parameter_overview(
      sharding.with_shardings(abstract.params, shardings.params),
      include_stats='sharding',
    ),
    '',
    *(_loops(config) if looped else [f'tokens: {model.grid}']),
    f'parameters: {_parameters(abstract.params)}',
    f'state: {100 * sharding.replicated_share(abstract, shardings):.1f}% of '
    'the bytes replicated on every device',
    f'mesh: {dict(mesh.shape)} on {mesh.size} {jax.devices()[0].platform} '
    'devices',
    f'batch: {example}, label ({t.batch_size},), '
    f'{sharding.logical_to_spec(("batch",))}: {examples} examples a device',
    *(_cost(config) if looped else []),
  ]
  return '\n'.join(lines)


def _loops(config: config_lib.ConfigDict) -> list[str]:
  m = config.model
  return [
    f'{m.num_layers}N x {m.max_loops}L, width {m.width}, '
    f'{flops.num_tokens(config)} tokens'
  ]


def _parameters(params: Any) -> str:
  """Per part of the tree, and in all."""
  parts = {name: flops.count_params(part) for name, part in params.items()}
  total = sum(parts.values())
  if 'layers' in parts:  # What the paper's tables count.
    parts = {'the transformer layers': parts['layers']}
  return ', '.join(
    [f'{count:,} in {name}' for name, count in parts.items()]
    + [f'{total:,} in all']
  )


def _cost(config: config_lib.ConfigDict) -> list[str]:
  """FLOPs of a training step; a table of passes and samples by loops."""
  m, s = config.model, config.sample
  modes = CHOICES['sample.guidance_mode']
  lines = [
    f'train step: {flops.flops_per_step(config) / 1e9:,.2f} GFLOPs',
    '',
    f'GFLOPs per sample: {s.num_steps} steps, weak_loops {s.weak_loops}, '
    'guided by each mode; this config: '
    + (f'{s.guidance_mode} at {s.guidance:g}' if s.guidance != 1 else 'off'),
    f'loops   GMACs in layers   times {s.num_steps} steps   GMACs per pass   '
    f'{"unguided":>11s}' + ''.join(f'{mode:>13s}' for mode in modes),
  ]
  width = len(f'times {s.num_steps} steps')
  for loops in range(1, 2 * m.max_loops + 1):
    note = '' if loops <= m.max_loops else '   beyond L_max'
    in_layers = flops.paper_macs_per_pass(config, loops) / 1e9
    samples = [_sample_gflops(config, loops, 'exit', 1.0)]
    samples += [_sample_gflops(config, loops, mode, 2.0) for mode in modes]
    lines.append(
      f'{loops:5d}   {in_layers:15.4f}   '
      f'{s.num_steps * in_layers:{width}.2f}   '
      f'{flops.macs_per_pass(config, loops) / 1e9:14.4f}   '
      + '  '.join(f'{gflops:>11s}' for gflops in samples)
      + note
    )
  return lines


def _sample_gflops(
  config: config_lib.ConfigDict, loops: int, mode: str, scale: float
) -> str:
  """'-' where the mode cannot be used."""
  try:
    plan = build_plan(
      config, loops, guidance_mode=mode, guidance=scale, exit_guidance=scale
    )
  except ValueError:  # No null class, or weak_loops above loops.
    return '-'
  return f'{flops.flops_per_sample(config, plan) / 1e9:.2f}'


def main(args: flags.FlagValues) -> None:
  print(show(cli.required(args, 'config')))


if __name__ == '__main__':
  cli.run(main, cli.add_config, __doc__)
