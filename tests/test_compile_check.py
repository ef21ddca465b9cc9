"""Compiling ahead of time: on fake devices here, for TPU where libtpu is."""

import importlib.util
import json
import os
import subprocess
import sys
import types

from absl import flags
import jax
import pytest

from elt_jax import ahead_of_time as aot
from elt_jax import flops, roofline
from elt_jax.models import build_model
from elt_jax.validation import validate
from launch import compile_check, compile_table
from tests.conftest import tiny_config
from tests.helpers import initial, masked_config

CHIP = roofline.Chip(1e12, 1e11, 1e10, 2**30)
HAS_LIBTPU = importlib.util.find_spec('libtpu') is not None


@pytest.fixture
def eight(monkeypatch):
  """The fake devices of the tests stand in for a slice."""
  chips = lambda topology: (CHIP, jax.devices())
  monkeypatch.setattr(compile_check, '_chips', chips)


def sharded(config):
  config.model.update({'width': 32, 'num_heads': 4})
  config.mesh.update({'data': 1, 'fsdp': 8})
  config.train.batch_size = 16
  return validate(config)


def test_flops_of_a_tokenizer_are_those_of_its_convolutions():
  """Of one level, where every kernel is used at every position alike."""
  config = masked_config(tiny_config())
  config.model.family, config.data.source = 'tokenizer', 'synthetic'
  config.model.remat = 'layer'
  config.train.update({'batch_size': 8, 'accumulate_steps': 2})
  config.tokenizer.update({'channel_multipliers': (2,), 'filters': 32})
  config = validate(config)
  kernels = [
    x.size
    for path, x in jax.tree_util.tree_leaves_with_path(
      initial(build_model(config))
    )
    if 'kernel' in str(path)
  ]
  t, positions = config.tokenizer, config.data.image_size**2
  codes = t.codebook_size * t.embedding_dim
  forward = 2 * positions * (sum(kernels) + codes)
  # Kernels reach over the edges, where nothing is multiplied; norms and the
  # like are counted.
  assert aot.count_flops(config) == pytest.approx(8 * 3 * forward, rel=0.1)


@pytest.mark.parametrize(
  'make', [tiny_config, lambda: masked_config(tiny_config())]
)
def test_a_report_holds_what_the_compiler_says(eight, make):
  config = sharded(make())
  report = compile_check.check(config, 'v6e:2x4')
  memory = report['train_step']['memory']
  # Parameters, two moments and the average, in float32, over eight chips.
  state = 4 * 4 * report['parameters']
  assert state / 8 < memory['arguments'] < state / 4
  assert memory['temporaries'] > 0
  assert (
    report['hbm_bytes_per_chip']
    == memory['total']
    == sum(
      memory[k] for k in ('arguments', 'outputs', 'temporaries', 'program')
    )
  )
  assert report['batch_per_chip'] == 2 and report['chips'] == 8
  sent = report['collectives']
  assert sent['all-gather']['bytes'] > 0 and sent['reduce-scatter']['count'] > 0
  assert report['flops'] == flops.flops_per_step(config)
  floor = report['floor']
  assert floor['compute'] == report['flops'] / 8 / CHIP.flops
  assert floor['links'] == sum(x['bytes'] for x in sent.values()) / 1e10
  assert floor['seconds'] == max(floor[k] for k in ('compute', 'hbm', 'links'))
  assert floor['mfu'] == floor['compute'] / floor['seconds'] < 1
  # Samplers split samples, and send nothing between them.
  assert report['sampler']['collectives'] == {}
  assert 'GiB' in compile_check.text(report)
  json.dumps(report)


@pytest.mark.slow
def test_fewer_unique_layers_at_one_depth_need_less(eight):
  config = sharded(tiny_config())
  depth = config.model.num_layers * config.model.max_loops
  reports = {
    n: compile_check.check(compile_check.at_depth(config, n), 'v6e:2x4', False)
    for n in (depth, 1)
  }
  looped, unique = reports[depth], reports[1]
  assert looped['parameters'] < unique['parameters']
  arguments = lambda report: report['train_step']['memory']['arguments']
  assert arguments(looped) < arguments(unique)
  assert 'sampler' not in looped
  with pytest.raises(ValueError, match='2 does not divide the depth 3'):
    compile_check.at_depth(config, 2)


@pytest.mark.parametrize('parts', [1, 2])
@pytest.mark.parametrize(
  'needs,fits,most',
  [
    (lambda n: 1000 + 100 * n, 37, 4),
    # As it is it does not fit.
    (lambda n: 4000 + 500 * n, 1, 4),
    (lambda n: 6000, 0, 2),
    # More than in proportion, and not at all.
    (lambda n: 1000 + 3 * n**2, 35, 10),
    (lambda n: 1000 if n < 300 else 9000, 299, 13),
  ],
)
def test_the_largest_batch_is_looked_for(monkeypatch, needs, fits, most, parts):
  """Against a compiler for 4,750 bytes that refuses in two ways."""
  tried = []

  def compiled(config):
    tried.append(config.train.batch_size // 8 // parts)
    if (needed := needs(tried[-1])) > 5500:
      raise aot.DoesNotFit('RESOURCE_EXHAUSTED')
    return needed

  monkeypatch.setattr(aot, 'lower_train_step', lambda c, devices: c)
  monkeypatch.setattr(aot, 'compile_program', compiled)
  monkeypatch.setattr(aot, 'memory', lambda needed: {'total': needed})
  config = sharded(tiny_config())
  config.train.update({'batch_size': 16 * parts, 'accumulate_steps': parts})
  found, by_batch = aot.largest_batch(config, jax.devices(), 4750)
  assert fits * 15 // 16 <= found // parts <= fits and found % parts == 0
  assert len(tried) == len(set(tried)) <= most
  if found:
    assert by_batch[str(found)] == needs(found // parts) <= 4750
    tried.clear()
    known = needs(2) if needs(2) <= 4750 else None
    again, _ = aot.largest_batch(config, jax.devices(), 4750, known)
    assert again == found and (2 in tried) == (known is None)


# How ml_collections loads the file of --config.
loads_a_config = pytest.mark.filterwarnings(
  'ignore:.*load_module.*:DeprecationWarning'
)


@loads_a_config
def test_what_does_not_fit_says_what_to_change(eight, monkeypatch, capsys):
  class Lowered:
    def compile(self):
      raise jax.errors.JaxRuntimeError(
        'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used '
        '40.50G of 31.25G hbm. Exceeded hbm capacity by 9.25G.'
      )

  with pytest.raises(aot.DoesNotFit, match='40.50G'):
    aot.compile_program(Lowered())
  monkeypatch.setattr(aot, 'lower_train_step', lambda *_: Lowered())
  with pytest.raises(SystemExit, match='3'):
    run('--topology=v6e:2x4', '--config=configs/mnist_diffusion.py')
  assert 'Does not fit v6e:2x4: RESOURCE_EXHAUSTED' in capsys.readouterr().out
  # Which one would fit is asked of a config that does not fit, above all.
  with pytest.raises(SystemExit, match='3'):
    run(
      '--topology=v6e:2x4',
      '--config=configs/mnist_diffusion.py',
      '--find_batch',
    )
  assert 'largest batch that fits: 0 a chip' in capsys.readouterr().out


@loads_a_config
def test_a_sampler_that_does_not_fit_takes_nothing_from_the_report(
  eight, monkeypatch, capsys
):
  def refuses(config, devices):
    raise aot.DoesNotFit('RESOURCE_EXHAUSTED')

  monkeypatch.setattr(aot, 'lower_sampler', refuses)
  report = compile_check.check(sharded(tiny_config()), 'v6e:2x4')
  assert report['floor']['seconds'] > 0
  text = compile_check.text(report)
  assert (
    'sampler: Does not fit v6e:2x4: RESOURCE_EXHAUSTED Lower sample' in text
  )
  monkeypatch.setattr(compile_check, 'check', lambda *_: report)
  with pytest.raises(SystemExit, match='3'):
    run('--topology=v6e:2x4', '--config=configs/mnist_diffusion.py')


def run(*args):
  values = flags.FlagValues()
  compile_check._define(values)
  values(['compile_check', *args])
  compile_check.main(values)


@pytest.mark.parametrize(
  'changes,message',
  [
    ({'mesh.fsdp': 3}, 'does not fit 8 devices'),
    ({'train.batch_size': 12}, 'must be a multiple'),
    ({'mesh.fsdp': 1, 'mesh.tensor': 8}, '4 does not divide'),
  ],
)
def test_what_does_not_divide_is_refused(changes, message):
  config = sharded(tiny_config()).copy_and_resolve_references()
  config.update_from_flattened_dict(changes)
  with pytest.raises(ValueError, match=message):
    aot.lower_train_step(config, jax.devices())


@pytest.mark.skipif(HAS_LIBTPU, reason='libtpu is installed')
def test_without_libtpu_the_command_says_what_to_install():
  with pytest.raises(ValueError, match=r'pip install "jax\[tpu\]"'):
    aot.tpu_devices('v6e:2x4')


def tpu_command(*args):
  """The command as a user runs it: JAX must not have begun on CPU devices."""
  env = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  return subprocess.run(
    [sys.executable, 'launch/compile_check.py', *args],
    capture_output=True,
    text=True,
    env=env,
  )


needs_libtpu = pytest.mark.skipif(
  not HAS_LIBTPU, reason='NOT COMPILED FOR TPU: pip install "jax[tpu]"'
)


@needs_libtpu
def test_a_slice_may_be_split_along_any_axis():
  """16 chips as 4 x 4: an axis of 8 takes one and a half of its sides."""
  code = (
    'from elt_jax import ahead_of_time as aot, mesh\n'
    "devices = aot.tpu_devices('v6e:4x4')\n"
    "mesh.build_mesh({'data': 2, 'fsdp': 8, 'tensor': 1}, devices)"
  )
  env = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  subprocess.run([sys.executable, '-c', code], env=env, check=True)


@needs_libtpu
def test_a_small_model_compiles_for_a_tpu():
  done = tpu_command(
    '--topology=v6e:2x4',
    '--config=configs/mnist_diffusion.py',
    '--config.mesh.fsdp=8',
    '--config.model.unroll_loops=False',
    '--json',
    '--nosampler',
  )
  assert done.returncode == 0, done.stderr
  report = json.loads(done.stdout)
  assert report['chips'] == 8 and report['collectives']['all-gather']['count']


@needs_libtpu
def test_an_unknown_topology_is_one_line():
  done = tpu_command(
    '--topology=v6e:3x3', '--config=configs/mnist_diffusion.py'
  )
  assert done.returncode == 2 and 'There is no TPU topology' in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1


def test_the_table_is_made_of_reports(eight, monkeypatch, tmp_path, capsys):
  """A finished report is kept; one that does not fit has its cells too."""
  report = compile_check.check(sharded(tiny_config()), 'v6e:2x4', False)
  calls = []

  def fake(command, **kwargs):
    calls.append(command)
    fits = '--topology=v6e:2x4' in command
    out = report if fits else {'error': 'Does not fit v5e:2x4: ...'}
    if '--find_batch' in command:
      out = out | {'largest_batch_per_chip': 37}
    return types.SimpleNamespace(
      returncode=0 if fits else 3, stdout=json.dumps(out), stderr=''
    )

  monkeypatch.setattr(compile_table.subprocess, 'run', fake)
  name = 'imagenet256_masked.py:XL_7Nx4L'
  args = ['compile_table', f'--out={tmp_path}', f'--configs={name}']
  for _ in range(2):
    monkeypatch.setattr(sys, 'argv', args)
    compile_table.main()
  assert len(calls) == 2
  rate = f'{16 / report["floor"]["seconds"]:,.0f}'
  row = f'| imagenet256_masked:XL_7Nx4L | does not fit |  | 0.0 | {rate} |\n'
  assert (tmp_path / 'table.md').read_text().endswith(row)
  for _ in range(2):
    monkeypatch.setattr(sys, 'argv', [*args, '--find_batch'])
    compile_table.main()
  assert len(calls) == 4
  table = (tmp_path / 'table.md').read_text()
  assert f'| does not fit |  | 37 | 0.0 | {rate} | 37 |' in table
  # What fails does not take the others with it, nor stays.
  other = f'{name},imagenet256_masked.py:XL_28N'
  monkeypatch.setattr(sys, 'argv', [*args[:2], f'--configs={other}'])
  crash = types.SimpleNamespace(returncode=1, stdout='', stderr='a crash')
  monkeypatch.setattr(compile_table.subprocess, 'run', lambda *_, **__: crash)
  for _ in range(2):
    with pytest.raises(SystemExit, match='--topology=v6e:2x4'):
      compile_table.main()
    rows = (tmp_path / 'table.md').read_text()
    assert '| 0.0 |' in rows and '| failed |  |  | failed |  |  |' in rows
  assert 'a crash' in capsys.readouterr().err
  monkeypatch.setattr(sys, 'argv', [*args[:2], '--configs=nothing.py'])
  with pytest.raises(SystemExit, match='nothing.py'):
    compile_table.main()
  assert len(compile_table.variants()) > 20
