"""Shows what a config means, without training it.

    python -m elt_jax.show --config=configs/mnist_diffusion.py

Prints the resolved config, the parameter table with shardings, parameters in
the transformer layers alone (the paper's convention) and in all, multiply-adds
per pass at each loop count, the mesh and the batch.
"""

from absl import flags
from clu import parameter_overview
import jax

from elt_jax import cli, flops, optim, sharding, train_state
from elt_jax import config as config_lib
from elt_jax import mesh as mesh_lib
from elt_jax.models.elt import build_model


def show(config: config_lib.ConfigDict) -> str:
  """The report, as text; nothing is allocated on a device."""
  config = config_lib.validate(config)
  mesh = mesh_lib.build_mesh(config.mesh)
  mesh_lib.check_batch(config, mesh)
  model = build_model(config, mesh)
  optimizer = optim.build_optimizer(config)
  abstract, specs = train_state.state_specs(config, model, optimizer, mesh)
  shardings = sharding.to_shardings(specs, mesh)
  m, t = config.model, config.train
  layers = flops.count_params(abstract.params['layers'])
  total = flops.count_params(abstract.params)
  largest = 2 * m.max_loops
  examples = t.batch_size // mesh_lib.batch_shards(mesh)
  lines = [
    config_lib.to_json(config),
    parameter_overview.get_parameter_overview(
      sharding.with_shardings(abstract.params, shardings.params),
      include_stats='sharding',
    ),
    '',
    f'{m.num_layers}N x {m.max_loops}L, width {m.width}, '
    f'{flops.num_tokens(config)} tokens',
    f'parameters: {layers:,} in the transformer layers, {total:,} in all',
    f'state: {100 * sharding.replicated_share(abstract, shardings):.1f}% of '
    'the bytes replicated on every device',
    f'mesh: {dict(mesh.shape)} on {mesh.size} {jax.devices()[0].platform} '
    'devices',
    f'batch: image {(t.batch_size, *config_lib.sample_shape(config))}, label '
    f'({t.batch_size},), {sharding.logical_to_spec(("batch",))}: '
    f'{examples} examples a device',
    f'train step: {flops.flops_per_step(config) / 1e9:,.2f} GFLOPs',
    '',
    f'loops   GMACs per pass   GFLOPs per sample ({config.sample.num_steps} '
    f'steps, {flops.guided_steps(config)} guided)',
  ]
  for loops in range(1, largest + 1):
    note = '' if loops <= m.max_loops else '   beyond L_max'
    lines.append(
      f'{loops:5d}   {flops.macs_per_pass(config, loops) / 1e9:14.4f}   '
      f'{flops.flops_per_sample(config, loops) / 1e9:17.2f}{note}'
    )
  return '\n'.join(lines)


def main(args: flags.FlagValues) -> None:
  print(show(cli.required(args, 'config')))


if __name__ == '__main__':
  cli.run(main, cli.add_config, __doc__)
