"""The public MaskGIT format, against outputs of the original code.

tests/goldens/maskgit_*.npz hold inputs and outputs of google-research/maskgit
(commit 1db2359, Apache-2.0), run once on CPU at tiny sizes; the weights follow
from the seeds and shapes in the .json files beside them, by `seeded`.
"""

import json
import pathlib

from flax import serialization, traverse_util
import jax
import numpy as np
import pytest

from elt_jax import sample
from elt_jax.interop import maskgit, maskgit_write
from elt_jax.mesh import build_mesh
from elt_jax.models import build_model
from elt_jax.samplers.draw import Draw

GOLDENS = pathlib.Path(__file__).parent / 'goldens'
FILES = {
  'maskgit_transformer': 'maskgit_imagenet256_checkpoint',
  'maskgit_vqgan': 'tokenizer_imagenet256_checkpoint',
}


def seeded(name):
  """{path: array}, drawn in the order of the sorted paths."""
  spec = json.loads((GOLDENS / f'{name}.json').read_text())
  rng = np.random.default_rng(spec['seed'])
  arrays = {}
  for path in sorted(spec['shapes']):
    shape = spec['shapes'][path]
    n = rng.standard_normal(shape).astype(np.float32)
    kind = path.split('/')[-1]
    arrays[path] = {
      'scale': lambda n: 1 + 0.1 * n,
      'bias': lambda n: 0.1 * n,
      'kernel': lambda n: n / np.sqrt(np.prod(n.shape[:-1])),
    }.get(kind, lambda n: 0.5 * n)(n).astype(np.float32)
  return arrays


def write(directory, name, arrays):
  tree = {'params': traverse_util.unflatten_dict(arrays, sep='/')}
  path = directory / FILES[name]
  path.write_bytes(serialization.to_bytes(tree))
  return path


@pytest.fixture
def released(tmp_path):
  """A directory of both files, as the public ones are."""
  for name in FILES:
    write(tmp_path, name, seeded(name))
  return tmp_path


@pytest.fixture(scope='module')
def loaded(tmp_path_factory):
  directory = tmp_path_factory.mktemp('maskgit')
  for name in FILES:
    write(directory, name, seeded(name))
  return maskgit.load(directory)


def golden(name):
  with np.load(GOLDENS / f'{name}.npz') as arrays:
    return dict(arrays)


def test_transformer_gives_the_logits_of_the_original(loaded):
  config, params, _ = loaded
  assert (config.model.num_layers, config.model.max_loops) == (3, 1)
  want = golden('maskgit_transformer')
  # There the mask id is -1, which indexes the table's last row.
  ids = np.where(want['input_ids'] < 0, 74, want['input_ids'])
  model = build_model(config)
  got, _ = jax.jit(lambda p, x: model.apply(p, x, num_loops=1))(params, ids)
  np.testing.assert_allclose(got, want['logits'], atol=1e-4)


def test_tokenizer_gives_the_tokens_and_images_of_the_original(loaded):
  config, _, tokenizer = loaded
  assert tuple(config.tokenizer.channel_multipliers) == (1, 1, 2)
  assert config.tokenizer.num_res_blocks == 2
  want = golden('maskgit_vqgan')
  config = tokenizer.config.copy_and_resolve_references()
  config.data.image_size = 32  # The network is convolutional.
  model = build_model(config)
  z = jax.jit(model.encode)(tokenizer.params, want['image'])
  np.testing.assert_allclose(z, want['encoded'], atol=1e-4)
  tokens = model.quantize(tokenizer.params, z)
  np.testing.assert_array_equal(tokens, want['indices'])
  codes = model.lookup(tokenizer.params, tokens)
  x = jax.jit(model.decode_vectors)(tokenizer.params, codes)
  np.testing.assert_allclose(x, want['decoded'], atol=1e-4)


def test_sizes_come_from_the_shapes(loaded):
  config, _, tokenizer = loaded
  assert config.model.vocabulary == 'codebook|classes|mask'
  assert config.data.num_classes == 10
  assert config.tokenizer.codebook_size == 64
  assert config.data.image_size == 16 and tokenizer.grid == (4, 4)
  assert config.sample.guidance == 1


def test_a_truncated_file_is_named(released):
  path = released / FILES['maskgit_transformer']
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(ValueError, match=r'maskgit_imagenet256.*not a whole'):
    maskgit.load(released)


def test_a_file_of_something_else_is_refused(released):
  path = released / FILES['maskgit_vqgan']
  path.write_bytes(b'PK\x03\x04 not msgpack at all')
  with pytest.raises(ValueError, match='tokenizer_imagenet256_checkpoint'):
    maskgit.load(released)
  path.write_bytes(serialization.to_bytes({'weights': np.ones(3)}))
  with pytest.raises(ValueError, match="no 'params'"):
    maskgit.load(released)


def test_arrays_of_unknown_dtype_are_refused(released):
  path = released / FILES['maskgit_vqgan']
  path.write_bytes(path.read_bytes().replace(b'float32', b'float3\x012', 1))
  with pytest.raises(ValueError, match='not a whole flax-msgpack file'):
    maskgit.load(released)


def test_released_models_cannot_be_guided(loaded):
  config, params, tokenizer = loaded
  mesh = build_mesh({'data': 1, 'fsdp': 1, 'tensor': 1}, jax.devices()[:1])
  draw = Draw(config, build_model(config), mesh, 1, tokenizer)
  with pytest.raises(ValueError, match='needs objective.label_dropout > 0'):
    draw(params, [0], 1, seed=0, guidance=3)


KEYS = 'TransformerLayer_0/Attention_0/self_attention/key/kernel'
X = np.ones((2, 2), np.float32)


def changed(name, change):
  arrays = seeded(name)
  change(arrays)
  return arrays


@pytest.mark.parametrize(
  'name,change,message',
  [
    (
      'maskgit_transformer',
      lambda a: a.pop('MlmLayer_0/mlm_ln/scale'),
      'lacks MlmLayer_0/mlm_ln/scale',
    ),
    (
      'maskgit_transformer',
      lambda a: a.update({'Extra_0/kernel': np.ones((2, 2), np.float32)}),
      r"no known use: \['Extra_0/kernel'\]",
    ),
    (
      'maskgit_transformer',
      lambda a: a.update(
        {'MlmLayer_0/mlm_dense/kernel': np.ones((48, 47), np.float32)}
      ),
      r'head/dense/kernel is \(48, 47\), expected \(48, 48\)',
    ),
    (
      'maskgit_transformer',
      lambda a: a.update({k: X for k in a if k.endswith('key/kernel')}),
      r'kernels of query, key, value are \[.*, \(2, 2\), ',
    ),
    (
      'maskgit_transformer',
      lambda a: a.update(
        {KEYS.replace('key', 'query'): np.ones((48, 48), np.float32)}
      ),
      r'query/kernel is \(48, 48\), expected 3 axes',
    ),
    (
      'maskgit_transformer',
      lambda a: a.update({KEYS.replace('Layer_0', 'Layer_1'): X}),
      r'TransformerLayer_1/.*key/kernel is \(2, 2\), TransformerLayer_0/',
    ),
    (
      'maskgit_vqgan',
      lambda a: a.update({'encoder/Conv_0/kernel': X}),
      r'encoder/Conv_0/kernel is \(2, 2\), expected 4 axes',
    ),
    (
      'maskgit_vqgan',
      lambda a: a.update(
        {'encoder/Conv_0/kernel': np.ones((3, 3, 3, 0), np.float32)}
      ),
      r'encoder/Conv_0/kernel is \(3, 3, 3, 0\), expected 4 axes',
    ),
    (
      'maskgit_vqgan',
      lambda a: a.pop('decoder/GroupNorm_0/bias'),
      'decoder/GroupNorm_0/bias is nothing',
    ),
    (
      'maskgit_vqgan',
      lambda a: a.update({'quantizer/codebook': np.ones((64, 8), np.float32)}),
      r'decoder/Conv_0/kernel is \(3, 3, 16, 64\), expected \(3, 3, 8, 64\)',
    ),
    (
      'maskgit_vqgan',
      lambda a: a.update({'quantizer/codebook': np.ones((64, 16), np.int32)}),
      'quantizer/codebook is not an array of floats',
    ),
  ],
)
def test_arrays_that_do_not_fit_are_named(released, name, change, message):
  write(released, name, changed(name, change))
  with pytest.raises(ValueError, match=message):
    maskgit.load(released)


def test_which_file_is_meant(released):
  path = released / FILES['maskgit_transformer']
  other = released / 'maskgit_imagenet512_checkpoint'
  other.write_bytes(path.read_bytes())
  with pytest.raises(ValueError, match='must hold one maskgit_'):
    maskgit.load(released)
  config, _, _ = maskgit.load(path)
  assert config.model.width == 48
  with pytest.raises(ValueError, match='tokenizer_imagenet512_checkpoint'):
    maskgit.load(other)
  with pytest.raises(ValueError, match='found none'):
    maskgit.load(released.parent)


def test_what_is_written_is_what_was_read(loaded, tmp_path):
  """Both trees, to the last bit, and the model the files make."""
  config, params, tokenizer = loaded
  path = maskgit_write.save(tmp_path, config, params, tokenizer)
  assert path.name == 'maskgit_imagenet16_checkpoint'
  for name, file in zip(sorted(FILES), sorted(tmp_path.iterdir()), strict=True):
    got, want = maskgit.read(file), seeded(name)
    assert got.keys() == want.keys()
    for key, value in want.items():
      np.testing.assert_array_equal(got[key], value)
  again, _, _ = maskgit.load(tmp_path)
  assert again.to_dict() == config.to_dict()
  with pytest.raises(ValueError, match='exists already'):
    maskgit_write.save(tmp_path, config, params, tokenizer)


@pytest.mark.parametrize(
  'key,value,message',
  [
    ('max_loops', 2, 'max_loops 2'),
    ('norm', 'pre', "norm 'pre'"),
    ('vocabulary', 'codebook|classes|null|mask', 'null'),
  ],
)
def test_a_model_the_format_cannot_say_is_refused(
  loaded, tmp_path, key, value, message
):
  config, params, tokenizer = loaded
  config = config.copy_and_resolve_references()
  config.model[key] = value
  with pytest.raises(ValueError, match=message):
    maskgit_write.save(tmp_path, config, params, tokenizer)
  assert not list(tmp_path.iterdir())


def test_random_weights_follow_from_the_seed_and_can_be_drawn_from(tmp_path):
  paths = [
    maskgit_write.save_random(tmp_path / name, seed)
    for name, seed in (('a', 0), ('b', 0), ('c', 1))
  ]
  first, again, other = (path.read_bytes() for path in paths)
  assert first == again != other
  draw, params, _ = sample.load_maskgit(str(tmp_path / 'a'), 2)
  assert draw.tokenizer.grid == (8, 8)
  images = draw.with_steps(2)(params, [0, 9], 1, seed=0)
  assert images.shape == (2, 32, 32, 3) and images.std() > 0.1
