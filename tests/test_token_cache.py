"""Token caches: whole or refused, resumed, and of one tokenizer."""

import json
import shutil

from flax import linen as nn
import jax
import numpy as np
import pytest

from elt_jax import tokenize
from elt_jax.data import pipeline, shards, sources, token_cache
from elt_jax.models import build_model
from elt_jax.tokenizers import pretrained
from elt_jax.train import keep_tokenizer
from elt_jax.validation import validate
from tests.conftest import tiny_config
from tests.helpers import masked_config


def make_tokenizer(seed=0):
  config = masked_config(tiny_config())
  config.model.family, config.data.source = 'tokenizer', 'npz:'
  model = build_model(config)
  init = lambda key: nn.unbox(model.init(key, *model.example_inputs()))
  params = jax.jit(init)(jax.random.key(seed))
  return pretrained.Tokenizer(validate(config), params)


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  """A tokenizer, untrained, of 50 + 20 images."""
  made = make_tokenizer()
  rng = np.random.default_rng(0)
  path = tmp_path_factory.mktemp('data') / 'images.npz'
  images = rng.integers(0, 256, (70, 16, 16, 1), np.uint8)
  labels = np.arange(70) % 4
  np.savez(
    path,
    image=images[:50],
    label=labels[:50],
    test_image=images[50:],
    test_label=labels[50:],
  )
  with made.config.unlocked():
    made.config.data.source = f'npz:{path}'
  return made


@pytest.fixture(scope='module')
def whole(tokenizer, tmp_path_factory):
  out = tmp_path_factory.mktemp('cache') / 'tokens'
  tokenize.tokenize(tokenizer, out, batch_size=16, per_shard=20)
  return out


@pytest.fixture
def cache(whole, tmp_path):
  return shutil.copytree(whole, tmp_path / 'tokens')


def config_of(cache):
  config = masked_config(tiny_config())
  config.data.source = f'tokens:{cache}'
  return config


def test_the_cache_holds_the_tokens_of_every_example(tokenizer, whole):
  assert sorted(path.name for path in whole.iterdir()) == [
    'metadata.json',
    'test-00000.array_record',
    'tokenizer',
    'train-00000.array_record',
    'train-00001.array_record',
    'train-00002.array_record',
  ]
  for split, count in (('train', 50), ('test', 20)):
    source = sources.load_source(config_of(whole), split)
    images = sources.load_source(tokenizer.config, split)
    assert len(source) == len(images) == count
    tokens = tokenizer.encode(images.images / np.float32(255))
    for i in (0, 19, 20, count - 1, 7):
      if i < count:
        np.testing.assert_array_equal(source[i]['tokens'], tokens[i])
        assert source[i]['label'] == images.labels[i]


def test_batches_of_tokens(whole):
  config = config_of(whole)
  source = sources.load_source(config, 'train')
  batch = pipeline.build_dataset(config, source)[0]
  assert batch['tokens'].shape == (16, 4, 4)
  assert batch['tokens'].dtype == batch['label'].dtype == np.int32
  np.testing.assert_array_equal(batch['index'], np.arange(16))


def test_a_whole_cache_is_left_alone(tokenizer, cache):
  before = {p: p.stat().st_mtime_ns for p in cache.rglob('*') if p.is_file()}
  tokenize.tokenize(tokenizer, cache, batch_size=16, per_shard=20)
  after = {p: p.stat().st_mtime_ns for p in cache.rglob('*') if p.is_file()}
  assert before == after


def test_an_interrupted_cache_is_refused_and_completed(
  tokenizer, whole, tmp_path, monkeypatch
):
  cache = tmp_path / 'tokens'
  write, calls = token_cache.write_shard, []

  def fail_at_third(*args):
    calls.append(args)
    if len(calls) == 3:
      raise KeyboardInterrupt
    write(*args)

  monkeypatch.setattr(token_cache, 'write_shard', fail_at_third)
  with pytest.raises(KeyboardInterrupt):
    tokenize.tokenize(tokenizer, cache, batch_size=16, per_shard=20)
  with pytest.raises(ValueError, match='unfinished; run the same'):
    sources.load_source(config_of(cache), 'train')
  first = (cache / 'train-00000.array_record').stat().st_mtime_ns
  monkeypatch.setattr(token_cache, 'write_shard', write)
  tokenize.tokenize(tokenizer, cache, batch_size=16, per_shard=20)
  assert (cache / 'train-00000.array_record').stat().st_mtime_ns == first
  names = lambda root: sorted(str(p.relative_to(root)) for p in root.rglob('*'))
  assert names(cache) == names(whole)
  for split in sources.SPLITS:
    there, want = (
      sources.load_source(config_of(c), split) for c in (cache, whole)
    )
    for i in range(len(want)):
      np.testing.assert_array_equal(there[i]['tokens'], want[i]['tokens'])


def test_another_tokenizer_is_refused_and_changes_nothing(tokenizer, cache):
  before = {p: p.read_bytes() for p in cache.rglob('*') if p.is_file()}
  other = make_tokenizer(seed=1)
  with other.config.unlocked():
    other.config.data.source = tokenizer.config.data.source
  with pytest.raises(ValueError, match=r'holds another cache \(tokenizer: '):
    tokenize.tokenize(other, cache, batch_size=16, per_shard=20)
  assert {p: p.read_bytes() for p in before} == before
  # Someone puts another tokenizer's weights into the cache.
  other.save(cache / 'tokenizer')
  with pytest.raises(ValueError, match='was made by tokenizer'):
    sources.load_source(config_of(cache), 'train')


def test_a_config_for_another_tokenizer_is_refused(cache):
  config = config_of(cache)
  config.tokenizer.codebook_size = 32
  with pytest.raises(ValueError, match='codebook_size: 16 in the .*, 32'):
    sources.load_source(config, 'train')
  config = config_of(cache)
  config.data.num_classes = 5
  with pytest.raises(ValueError, match='has 4 classes, data.num_classes is 5'):
    sources.load_source(config, 'train')
  config.data.source = 'mnist'
  with pytest.raises(ValueError, match="must be 'tokens:DIR', got 'mnist'"):
    sources.load_source(config, 'train')


def test_a_run_keeps_its_tokenizer(tokenizer, cache, tmp_path):
  keep_tokenizer(tokenizer, str(tmp_path / 'run'))
  kept = pretrained.load(tmp_path / 'run' / 'tokenizer')
  assert kept.fingerprint == tokenizer.fingerprint
  # Killed between the two files.
  (tmp_path / 'run' / 'tokenizer' / 'config.json').unlink()
  keep_tokenizer(tokenizer, str(tmp_path / 'run'))
  assert pretrained.load(tmp_path / 'run' / 'tokenizer')
  with pytest.raises(ValueError, match='was trained on what tokenizer'):
    keep_tokenizer(make_tokenizer(seed=1), str(tmp_path / 'run'))


def test_damage_is_named(cache):
  (cache / 'train-00001.array_record').unlink()
  with pytest.raises(ValueError, match=r'lacks shards: \[.train-00001'):
    sources.load_source(config_of(cache), 'train')
  metadata = json.loads((cache / 'metadata.json').read_text())
  metadata['examples']['test'] = 19
  (cache / 'metadata.json').write_text(json.dumps(metadata))
  with pytest.raises(ValueError, match='has 20 examples in test'):
    sources.load_source(config_of(cache), 'test')
  (cache / 'tokenizer' / 'weights.npz').write_bytes(b'PK')
  with pytest.raises(ValueError, match='not a readable .npz'):
    sources.load_source(config_of(cache), 'test')
  with pytest.raises(ValueError, match='is not there; make it with'):
    sources.load_source(config_of(cache / 'nowhere'), 'train')


def test_shards_of_nobody_are_not_adopted(cache):
  (cache / 'metadata.json').unlink()
  other = make_tokenizer(seed=1)
  with (
    pytest.raises(ValueError, match='no metadata.json to say whose'),
    shards.writing(cache, token_cache.describe(other, ['a'], {}, 20)),
  ):
    pass


@pytest.mark.parametrize('keep', [0.0, 0.5])
def test_a_truncated_shard_is_named(cache, keep):
  path = cache / 'train-00001.array_record'
  path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
  with pytest.raises(ValueError, match='is damaged|has 30 examples|has 40'):
    source = sources.load_source(config_of(cache), 'train')
    for i in range(len(source)):
      source[i]


def test_damaged_metadata_are_named(cache):
  path = cache / 'metadata.json'
  path.write_text(path.read_text()[:40])
  with pytest.raises(ValueError, match='metadata.json is not JSON'):
    sources.load_source(config_of(cache), 'train')
  path.write_text('{"format": 1}')
  with pytest.raises(ValueError, match=r"lacks \['tokenizer'"):
    sources.load_source(config_of(cache), 'train')


def test_conditions_are_of_a_cache_made_for_tasks(cache):
  config = config_of(cache)
  config.objective.commit = True
  with pytest.raises(ValueError, match='a cache made with --tasks'):
    sources.load_source(config, 'train')


def test_a_token_outside_the_codebook_is_named(cache):
  tokens, labels = np.full((20, 4, 4), 16), np.zeros(20, int)
  path = cache / 'test-00000.array_record'
  token_cache.write_shard(path, labels, tokens)
  source = sources.load_source(config_of(cache), 'test')
  with pytest.raises(ValueError, match=r'example 3 has tokens in 16..16'):
    source[3]


def test_tokens_and_pixels_out_of_range_are_named(tokenizer):
  with pytest.raises(ValueError, match=r'must be in 0..15, the codebook'):
    tokenizer.decode(np.full((1, 4, 4), 16))
  with pytest.raises(ValueError, match=r'pixels in \[0, 1\], got \[-1, 1\]'):
    tokenizer.encode(np.linspace(-1, 1, 256).reshape(1, 16, 16, 1))


def test_weights_of_another_shape_are_named(tokenizer):
  params = jax.tree.map(np.copy, tokenizer.params)
  params['quantizer']['codebook'] = np.zeros((16, 5), np.float32)
  with pytest.raises(
    ValueError, match=r'codebook is \(16, 5\), expected \(16, 4\)'
  ):
    pretrained.Tokenizer(tokenizer.config, params)
