"""Compiles a config for a TPU slice, with no TPU: does it fit, what is sent?

    pip install "jax[tpu]"
    python launch/compile_check.py --topology=v6e:2x4 \\
        --config=configs/imagenet256_masked.py:XL_7Nx4L [--config.key=value] \\
        [--json] [--find_batch] [--loops=4,1] [--nosampler]

The real train step and the real sampler, through the compiler of the TPU.
Printed for each chip: its memory; what it receives from others in a step; the
FLOPs, without recomputation, by formula (of tokenizers by XLA's count); and
the least time of a step with every peak reached and everything overlapping, of
which a real step takes a multiple. --find_batch looks for the largest batch
that fits; --loops compiles the same depth as N = depth / L layers looped L
times for each L. A compilation takes minutes.
"""

import json
import pathlib
import sys
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from absl import flags

from elt_jax import ahead_of_time as aot
from elt_jax import cli, collectives, flops, roofline, train_state
from elt_jax import mesh as mesh_lib
from elt_jax.models import build_model
from elt_jax.validation import validate

# The exit code where a program does not fit.
TOO_LARGE = 3


def check(config: Any, topology: str, sampler: bool = True) -> dict[str, Any]:
  """The report of one config: 'train_step' and, of looped models, 'sampler'.

  A sampler that does not fit has an 'error' there.

  Raises:
    ValueError: on a config or topology that does not fit the other.
    DoesNotFit: if the train step needs too much memory.
  """
  chip, devices = _chips(topology)
  mesh = mesh_lib.build_mesh(config.mesh, devices)
  params, _ = train_state.param_specs(build_model(config, mesh), mesh)
  report = {
    'topology': topology,
    'chips': len(devices),
    'mesh': dict(mesh.shape),
    'batch_size': config.train.batch_size,
    'batch_per_chip': config.train.batch_size / len(devices),
    'parameters': flops.count_params(params),
    'hbm_limit': chip.hbm_bytes,
  }
  step = _program(aot.lower_train_step(config, devices), len(devices))
  report['hbm_bytes_per_chip'] = step['memory']['total']
  report['collectives'] = step['collectives']
  looped = config.model.family != 'tokenizer'
  count = flops.flops_per_step if looped else aot.count_flops
  report['flops'] = count(config)
  report['floor'] = roofline.floor(
    chip,
    report['flops'] / len(devices),
    # The state is read and written; activations are left out.
    2 * step['memory']['arguments'],
    sum(of['bytes'] for of in step['collectives'].values()),
  )
  report['train_step'] = step
  if sampler and looped:
    try:
      lowered = aot.lower_sampler(config, devices)
      report['sampler'] = _program(lowered, len(devices))
    except aot.DoesNotFit as e:
      error = f'Does not fit {topology}: {e} Lower sample.batch_size.'
      report['sampler'] = {'error': error}
  return report


def _remedies(config: Any) -> str:
  """What makes a train step smaller."""
  text = 'Lower train.batch_size or raise train.accumulate_steps'
  if config.model.family == 'tokenizer':
    return f'{text}; model.remat=layer.'
  return (
    f'{text}; model.remat=layer or loop; a larger mesh.fsdp; mesh.gather=use.'
  )


def _chips(topology: str) -> tuple[roofline.Chip, list[Any]]:
  devices = aot.tpu_devices(topology)
  generation = topology.partition(':')[0]
  if generation not in roofline.CHIPS:
    raise ValueError(
      f'--topology={topology}: the peaks of {generation} are not known; '
      f'known are {sorted(roofline.CHIPS)}.'
    )
  return roofline.CHIPS[generation], devices


def _program(lowered: Any, num_devices: int) -> dict[str, Any]:
  began = time.monotonic()
  compiled = aot.compile_program(lowered)
  found = collectives.read(compiled.as_text(), num_devices)
  return {
    'memory': aot.memory(compiled),
    'collectives': collectives.totals(found),
    'compile_seconds': round(time.monotonic() - began, 1),
  }


def find_batch(
  config: Any, topology: str, needed: int | None
) -> dict[str, Any]:
  """What --find_batch adds to a report; `needed` of the config as it is."""
  chip, devices = _chips(topology)
  largest, tried = aot.largest_batch(config, devices, chip.hbm_bytes, needed)
  return {'largest_batch_per_chip': largest, 'tried': tried}


def at_depth(config: Any, loops: int) -> Any:
  """`config` with its depth N L as N' unique layers looped `loops` times."""
  depth = config.model.num_layers * config.model.max_loops
  if loops < 1 or depth % loops:
    raise ValueError(
      f'--loops: {loops} does not divide the depth {depth} of the config.'
    )
  c = config.copy_and_resolve_references()
  c.model.update({'num_layers': depth // loops, 'max_loops': loops})
  if loops == 1:
    c.objective.update({'exits': 'none', 'randomize_max_loops': 0})
    c.sample.update({'guidance_mode': 'cfg'})
  return validate(c)


def text(report: dict[str, Any]) -> str:
  """The report to read."""
  largest = []
  if 'largest_batch_per_chip' in report:
    largest = [
      f'largest batch that fits: {report["largest_batch_per_chip"]} a chip'
    ]
  if 'error' in report:
    return '\n'.join([report['error'], *largest])
  gib = lambda n: f'{n / roofline.GIB:.2f}'
  lines = [
    f'{report["chips"]} chips of {report["topology"]}, mesh '
    f'{report["mesh"]}, batch {report["batch_size"]} '
    f'({report["batch_per_chip"]:g} a chip), '
    f'{report["parameters"] / 1e6:.1f}M parameters'
  ]
  for name in ('train_step', 'sampler'):
    if name not in report:
      continue
    program = report[name]
    if 'error' in program:
      lines.append(f'{name}: {program["error"]}')
      continue
    memory = program['memory']
    parts = ', '.join(
      f'{k} {gib(v)}' for k, v in memory.items() if k != 'total'
    )
    lines += [
      f'{name}: compiled in {program["compile_seconds"]:.0f} s',
      f'  HBM of a chip: {gib(memory["total"])} of '
      f'{gib(report["hbm_limit"])} GiB ({parts})',
    ]
    for kind, sums in program['collectives'].items():
      lines.append(
        f'  {kind}: {sums["count"]:,} a run, {sums["bytes"] / 1e6:,.1f} MB '
        'received by a chip'
      )
  floor = report['floor']
  ms = {k: f'{1e3 * v:.2f}' for k, v in floor.items() if k != 'mfu'}
  lines.append(
    f'a step: {report["flops"] / 1e12:.2f} TFLOPs, at least {ms["seconds"]} '
    f'ms (compute {ms["compute"]}, HBM {ms["hbm"]}, links {ms["links"]}): '
    f'at most {report["batch_size"] / floor["seconds"]:,.0f} examples a '
    f'second, MFU at most {100 * floor["mfu"]:.0f}%'
  )
  return '\n'.join(lines + largest)


def main(args: flags.FlagValues) -> None:
  config = validate(cli.required(args, 'config'))
  topology = cli.required(args, 'topology')
  configs = {'': config}
  if args.loops:
    most = config.model.num_layers * config.model.max_loops
    wanted = cli.parse_integers('loops', args.loops, 1, most)
    configs = {f'L = {n}': at_depth(config, n) for n in wanted}
  reports = {}
  for name, config in configs.items():
    try:
      report = check(config, topology, args.sampler)
    except aot.DoesNotFit as e:
      remedies = _remedies(config)
      report = {'error': f'Does not fit {topology}: {e} {remedies}'}
    if args.find_batch:
      report |= find_batch(config, topology, report.get('hbm_bytes_per_chip'))
    reports[name] = report
    if not args.json:
      print(f'{name}\n{text(report)}'.strip(), flush=True)
  if args.json:
    print(json.dumps(reports if args.loops else reports[''], indent=2))
  if any('error' in r | r.get('sampler', {}) for r in reports.values()):
    raise SystemExit(TOO_LARGE)


def _define(values: flags.FlagValues) -> None:
  cli.add_config(values)
  flags.DEFINE_string(
    'topology', None, 'Generation and shape, as v6e:2x4.', flag_values=values
  )
  flags.DEFINE_string(
    'loops',
    None,
    'Loop counts that share the depth of the config, as 4,1.',
    flag_values=values,
  )
  flags.DEFINE_boolean('json', False, 'Print JSON alone.', flag_values=values)
  flags.DEFINE_boolean(
    'find_batch', False, 'Look for the largest batch.', flag_values=values
  )
  flags.DEFINE_boolean('sampler', True, 'The sampler too.', flag_values=values)


if __name__ == '__main__':
  cli.run(main, _define, __doc__)
