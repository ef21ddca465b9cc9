"""Checks across fields, JSON, and workdirs that belong to another config."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

from configs.base import get_base
from elt_jax import config as config_lib
from elt_jax import validation

MASKED = {
  'model.family': 'masked',
  'sample.method': 'confidence',
  'data.image_size': 32,
}
ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.parametrize(
  'changes,message',
  [
    (
      {'model.width': 18, 'model.num_heads': 4},
      '18 must be a multiple of model.num_heads = 4',
    ),
    ({'model.width': 18, 'model.num_heads': 2}, 'multiple of 4, got 18'),
    (
      {'data.image_size': 30, 'model.patch_size': 4},
      '30 must be a multiple of model.patch_size = 4',
    ),
    ({'data.num_frames': 3, 'model.patch_frames': 2}, 'data.num_frames = 3'),
    (
      {'objective.min_loops': 4, 'model.max_loops': 4},
      '1 <= objective.min_loops < model.max_loops, got 4 and 4',
    ),
    (
      {'objective.min_loops': 0, 'objective.exits': 'none'},
      'config.objective.min_loops must be at least 1, got 0',
    ),
    ({'optim.b2': 1.0}, r'optim.b2 must be in \[0.0, 0.999999\], got 1.0'),
    (
      {'objective.sigmoid_bias': float('nan')},
      r'in \[-100.0, 100.0\], got nan',
    ),
    ({'model.mlp_ratio': -1.0}, 'model.mlp_ratio must be at least 0.25'),
    ({'model.max_loops': 1}, "objective.exits = 'none'"),
    (
      {'objective.exits': 'some'},
      r"exits must be one of \('ilsd', 'none', 'all'\), got 'some'",
    ),
    ({'objective.logsnr_min': 20.0}, 'logsnr_min must be below'),
    ({'objective.label_dropout': 1.5}, r'in \[0.0, 1.0\], got 1.5'),
    (
      {'train.accumulate_steps': 3},
      '64 must be a multiple of train.accumulate_steps = 3',
    ),
    (
      {'train.num_steps': 0},
      'config.train.num_steps must be at least 1, got 0',
    ),
    ({'sample.guidance_low': 0.9, 'sample.guidance_high': 0.1}, 'low <= high'),
    (
      {'model.family': 'masked', 'sample.method': 'ddim'},
      r"must be one of \('confidence', 'halton'\), got 'ddim'",
    ),
    (
      {**MASKED, 'objective.mask_schedule': 'sine'},
      "objective.mask_schedule must be .*'pow2.5'; got 'sine'",
    ),
    ({**MASKED, 'sample.guidance_schedule': 'pow2'}, "powcosP.*got 'pow2'"),
    ({**MASKED, 'sample.mask_schedule': 'pow0'}, "got 'pow0'"),
    ({**MASKED, 'data.flip': True}, 'mirrors images'),
    ({'objective.commit': True}, "masked models, got model.family 'diff"),
    (
      {**MASKED, 'model.vocabulary': 'codebook|classes|mask'},
      'needs a null class',
    ),
    (
      {
        'model.family': 'tokenizer',
        'tokenizer.perceptual': 0.1,
        'data.image_size': 32,
        'data.num_channels': 4,
      },
      'compares images of',
    ),
    (
      {
        'model.family': 'tokenizer',
        'tokenizer.perceptual': 0.1,
        'data.image_size': 32,
      },
      'needs tokenizer.perceptual_weights',
    ),
    (
      {'optim.learning_rate': float('nan')},
      'learning_rate must be at least 0.0, got nan',
    ),
  ],
)
def test_values_that_do_not_fit_are_named(changes, message):
  config = get_base()
  for key, value in changes.items():
    config.update_from_flattened_dict({key: value})
  with pytest.raises(ValueError, match=message):
    validation.validate(config)


def test_unlooped_baseline_is_one_loop_without_exits():
  config = get_base()
  config.model.max_loops, config.objective.exits = 1, 'none'
  assert validation.validate(config).is_locked


def test_every_checked_key_exists():
  config = get_base()
  for key in (*validation.CHOICES, *validation.RANGES):
    validation.lookup(config, key)
  for key in config_lib.RESUMABLE:
    validation.lookup(config, key.removesuffix('.'))


def test_workdir_remembers_its_config_and_refuses_another(tmp_path, config):
  config_lib.claim_workdir(config, tmp_path)
  (tmp_path / 'checkpoints' / '5').mkdir(parents=True)
  assert config_lib.to_json(config_lib.load(tmp_path)) == config_lib.to_json(
    config
  )
  config.checkpoint.every_steps = 7
  config.mesh.data = 4
  config_lib.claim_workdir(config, tmp_path)  # Changes no number of the run.
  assert config_lib.load(tmp_path).checkpoint.every_steps == 7
  config.model.width, config.train.seed = 32, 5
  with pytest.raises(ValueError) as error:
    config_lib.claim_workdir(config, tmp_path)
  assert 'model.width: 16 there, 32 here' in str(error.value)
  assert 'train.seed: 0 there, 5 here' in str(error.value)
  assert 'every_steps' not in str(error.value)


def test_not_a_workdir(tmp_path):
  with pytest.raises(ValueError, match='has no config.json'):
    config_lib.load(tmp_path)
  (tmp_path / 'config.json').write_text('{"model": ')
  with pytest.raises(ValueError, match='not a config of this version'):
    config_lib.load(tmp_path)
  for wrong in ({'model': {'wdith': 8}}, {'model': {'width': 'x'}}, [1]):
    (tmp_path / 'config.json').write_text(json.dumps(wrong))
    with pytest.raises(ValueError, match='not a config of this version'):
      config_lib.load(tmp_path)


def test_configs_of_before_have_the_defaults_of_later_keys(tmp_path, config):
  values = config.to_dict()
  del values['sample']['guidance_mode']
  (tmp_path / 'config.json').write_text(json.dumps(values))
  assert config_lib.load(tmp_path).sample.guidance_mode == 'cfg'
  assert config_lib.load(tmp_path).model.width == config.model.width


def experiments() -> list:
  found = []
  for path in sorted((ROOT / 'configs').glob('*.py')):
    if path.stem == 'base':
      continue
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for variant in ('', *getattr(module, 'VARIANTS', ())):
      found.append(pytest.param(module, variant, id=f'{path.stem}:{variant}'))
  return found


@pytest.mark.parametrize('module,variant', experiments())
def test_every_experiment_is_valid_and_says_how_to_run_it(module, variant):
  config = validation.validate(module.get_config(variant))
  keys = lambda c: set(c.to_dict() | dict(config_lib._flat(c)))
  assert keys(config) == keys(get_base())
  assert f'configs/{module.__name__}.py' in module.__doc__


@pytest.mark.parametrize('module,_', experiments())
def test_unknown_variants_raise(module, _):
  with pytest.raises(ValueError, match="no variant 'nonsense'"):
    module.get_config('nonsense')


def test_modules_import_only_from_those_before_them():
  """Data flows one way: config, data, model, objective, step, evaluation."""
  order = [
    'files',
    'unpickling',
    'torch_files',
    'pickled_arrays',
    'validation',
    'config',
    'mesh',
    'sharding',
    'keys',
    'hosts',
    'tokenizers',
    'data',
    'edit',
    'models',
    'objectives',
    'optim',
    'train_state',
    'train_step',
    'checkpoint',
    'viz',
    'video',
    'writers',
    'progress',
    'samplers',
    'flops',
    'collectives',
    'roofline',
    'ahead_of_time',
    'evals',
    'cli',
    'preview',
    'rows',
    'interop',
    'sample',
    'film',
    'train',
    'show',
    'prepare',
    'tokenize',
    'evaluate',
    'calibrate',
    'frontier',
    'bench',
    'bench_images',
    'notebook',
    'panel',
  ]
  import ast

  for path in (ROOT / 'elt_jax').rglob('*.py'):
    name = path.relative_to(ROOT / 'elt_jax').parts[0].removesuffix('.py')
    if name == '__init__':
      continue
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.ImportFrom) and (node.module or '').startswith(
        'elt_jax'
      ):
        base = node.module.split('.')[1:]
        targets = [base[0]] if base else [alias.name for alias in node.names]
        for target in targets:
          assert order.index(target) <= order.index(name), (path, target)
      if isinstance(node, ast.Import):
        assert not any(a.name.split('.')[0] == 'tensorflow' for a in node.names)


def test_workdir_without_checkpoints_takes_the_corrected_config(
  tmp_path, config
):
  config_lib.claim_workdir(config, tmp_path)
  config.model.width = 32
  config_lib.claim_workdir(config, tmp_path)
  assert config_lib.load(tmp_path).model.width == 32


def test_a_misspelt_key_in_a_config_file_raises():
  with pytest.raises(KeyError, match='Did you mean "width"'):
    get_base().model.update({'wdith': 8})


def test_no_entry_point_imports_tensorflow():
  modules = 'train, sample, prepare, tokenize, evaluate, frontier, show, bench'
  code = f'import sys; from elt_jax import {modules}; print(*sys.modules)'
  loaded = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, check=True
  ).stdout.split()
  assert b'elt_jax.train' in loaded and b'tensorflow' not in loaded
