"""The VQ-GAN: its shapes, its losses, and who trains whom."""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import mnist_tokenizer
from elt_jax import optim
from elt_jax.models import build_model
from elt_jax.objectives import build_objective, tokenizer
from elt_jax.tokenizers import perceptual, pretrained
from elt_jax.tokenizers.discriminator import blur_down
from elt_jax.validation import validate
from tests.conftest import tiny_config
from tests.helpers import initial, make_batch, masked_config


def tokenizer_config():
  c = masked_config(tiny_config())
  c.model.family, c.data.source = 'tokenizer', 'synthetic'
  c.train.batch_size = 8
  return c


@pytest.fixture(scope='module')
def trained():
  """(objective, parameters, batch), with a critic."""
  config = tokenizer_config()
  config.tokenizer.adversarial = 0.1
  config.tokenizer.discriminator_filters = 4
  config.tokenizer.discriminator_multipliers = (2, 2)
  model = build_model(config)
  objective = build_objective(config, model)
  return objective, initial(model), make_batch(config, 4)


def test_fingerprints_are_what_they_were():
  """Made before tokenizers had patches: caches of then are still read."""
  config = mnist_tokenizer.get_config()
  assert pretrained._fingerprint(config, {}) == 'eb59e3f599a75871'
  for key, value in (('patch_size', 2), ('local_encoder', True)):
    config = mnist_tokenizer.get_config()
    config.tokenizer[key] = value
    assert pretrained._fingerprint(config, {}) != 'eb59e3f599a75871'


@pytest.mark.parametrize(
  'changes,message',
  [
    ({'tokenizer.norm_groups': 5}, 'must be a multiple of tokenizer.norm'),
    ({'data.image_size': 18}, '18 must be a multiple of 4'),
    ({'tokenizer.channel_multipliers': ()}, 'positive integers'),
    ({'data.num_frames': 4}, 'must say of each of the 2 halvings'),
    ({'tokenizer.codebook_size': 1}, 'codebook_size must be at least 2'),
    ({'model.remat': 'dots'}, "'dots' is of looped models; of a tokenizer"),
  ],
)
def test_shapes_that_do_not_fit(changes, message):
  config = tokenizer_config()
  config.update_from_flattened_dict(changes)
  with pytest.raises(ValueError, match=message):
    validate(config)


def test_the_nearest_code_is_taken(trained):
  objective, params, _ = trained
  rng = np.random.default_rng(0)
  z = rng.standard_normal((2, 4, 4, 4), np.float32) / 4
  codebook = np.asarray(params['quantizer']['codebook'])
  want = ((z[..., None, :] - codebook) ** 2).sum(-1).argmin(-1)
  got = objective.model.quantize(params, z)
  np.testing.assert_array_equal(got, want)
  np.testing.assert_array_equal(
    objective.model.lookup(params, got), codebook[want]
  )


def test_pixels_of_another_shape_are_refused(trained):
  objective, params, _ = trained
  with pytest.raises(ValueError, match=r'examples \(16, 16, 1\), got \(8, 8'):
    objective.model.encode(params, np.zeros((1, 8, 8, 1), np.float32))


def test_entropy_loss():
  rng = np.random.default_rng(0)
  affinity = rng.standard_normal((6, 5)).astype(np.float32)
  p = np.exp(affinity / 0.5)
  p /= p.sum(1, keepdims=True)
  want = (
    -(p * np.log(p)).sum(1).mean()
    + (p.mean(0) * np.log(p.mean(0) + 1e-5)).sum()
  )
  np.testing.assert_allclose(tokenizer.entropy_loss(affinity, 0.5), want, 1e-5)
  # Least, minus log 5, where vectors are sure and use all codes alike.
  sure = 100 * np.eye(5, dtype=np.float32)
  np.testing.assert_allclose(
    tokenizer.entropy_loss(sure, 1.0), -np.log(5), rtol=1e-3
  )


def test_usage():
  got = tokenizer.usage(np.array([[0, 0], [3, 3]]), 8)
  assert got['codes_used'] == 0.25
  np.testing.assert_allclose(got['perplexity'], 2, rtol=1e-6)


def test_losses_by_hand(trained):
  objective, params, batch = trained
  loss, terms = jax.jit(objective.loss)(params, batch, None, 0)
  model = objective.model
  x = batch['image'] / np.float32(255)
  z = model.encode(params, x)
  codes = model.lookup(params, model.quantize(params, z))
  y = model.decode_vectors(params, codes)
  mse = np.mean((x - y) ** 2)
  np.testing.assert_allclose(terms['reconstruction'], mse, rtol=1e-4)
  gap = np.mean((np.asarray(z) - codes) ** 2)
  np.testing.assert_allclose(terms['codebook'], gap, rtol=1e-4)
  np.testing.assert_allclose(terms['commitment'], gap, rtol=1e-4)
  mse = np.mean((x - np.clip(y, 0, 1)) ** 2)
  np.testing.assert_allclose(terms['psnr'], -10 * np.log10(mse), rtol=1e-4)
  weights = {
    'reconstruction': 1.0,
    'codebook': 1.0,
    'commitment': 0.25,
    'entropy': 0.1,
    'adversarial': 0.1,
    'critic': 1.0,
    'r1': 5.0,
  }
  want = sum(weight * terms[name] for name, weight in weights.items())
  np.testing.assert_allclose(loss, want, rtol=1e-5)


def trained_parts(objective, params, batch, terms):
  """The parts of the model that each of some terms of the loss moves."""

  def of(params):
    found = objective.loss(params, batch, None, 0)[1]
    return jnp.stack([found[term] for term in terms])

  grads = jax.jit(jax.jacrev(of))(params)  # One program for all terms.
  moved = lambda tree, i: any(jnp.any(g[i]) for g in jax.tree.leaves(tree))
  return [
    {part for part, tree in grads.items() if moved(tree, i)}
    for i in range(len(terms))
  ]


def test_each_term_trains_its_part_alone(trained):
  encoder, codes, decoder, critic = (
    'encoder',
    'quantizer',
    'decoder',
    'discriminator',
  )
  trains = {
    'reconstruction': {encoder, decoder},
    'codebook': {codes},
    'commitment': {encoder},
    'adversarial': {encoder, decoder},
    'critic': {critic},
    'r1': {critic},
  }
  found = trained_parts(*trained, list(trains))
  assert dict(zip(trains, found)) == trains


def test_r1_of_a_linear_critic_is_the_norm_of_its_weights(trained):
  objective, params, batch = trained

  class Linear:
    def apply(self, variables, x):
      return x.reshape(len(x), -1) @ variables['params']

  weights = np.linspace(-1, 1, 256, dtype=np.float32)
  model = dataclasses.replace(objective.model, discriminator=Linear())
  linear = dataclasses.replace(objective, model=model)
  _, terms = linear.loss(params | {'discriminator': weights}, batch, None, 0)
  np.testing.assert_allclose(terms['r1'], np.sum(weights**2), rtol=1e-5)


def test_recomputed_blocks_change_no_number(trained):
  objective, params, batch = trained

  def gradients(remat):
    model = dataclasses.replace(
      objective.model,
      encoder=objective.model.encoder.clone(remat=remat),
      decoder=objective.model.decoder.clone(remat=remat),
    )
    other = dataclasses.replace(objective, model=model)
    loss = lambda params: other.loss(params, batch, None, 0)[0]
    return loss, jax.grad(loss)(params)

  loss, want = gradients(False)
  remat, got = gradients(True)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-6), got, want
  )
  saved = lambda loss: str(jax.make_jaxpr(jax.grad(loss))(params))
  blocks = sum('ResBlock' in name for name in params['encoder'])
  blocks += sum('ResBlock' in name for name in params['decoder'])
  assert 'remat' not in saved(loss) and saved(remat).count('remat') >= blocks


def test_what_blocks_give_is_split_over_examples(mesh):
  model = build_model(tokenizer_config(), mesh)
  inputs = model.example_inputs()
  params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), *inputs))
  program = jax.make_jaxpr(model.encode)(params, jnp.zeros((8, *model.shape)))
  blocks = [name for name in params['encoder'] if name.startswith('ResBlock')]
  assert str(program).count('sharding_constraint[') == len(blocks) > 0


def test_critic_has_its_own_optimizer():
  config = tokenizer_config()
  config.tokenizer.discriminator_learning_rate = 0.25
  config.optim.update({'clip_norm': 1.0, 'weight_decay': 0.0})
  optimizer = optim.build_optimizer(config)
  params = {'encoder': jnp.ones(3), 'discriminator': jnp.ones(3)}
  # Clipped together, the critic's huge gradient would leave the encoder none.
  grads = {'encoder': jnp.ones(3), 'discriminator': 1e6 * jnp.ones(3)}
  updates, _ = optimizer.update(grads, optimizer.init(params), params)
  lr = config.optim.learning_rate
  np.testing.assert_allclose(updates['encoder'], -lr, rtol=1e-4)
  np.testing.assert_allclose(updates['discriminator'], -lr / 4, rtol=1e-4)


def test_unused_codes_restart_from_the_batch(trained):
  objective, params, batch = trained
  objective = dataclasses.replace(objective, restart_every_steps=3)
  # Only code 5 can be the nearest of anything.
  codebook = np.full((16, 4), 1e3, np.float32)
  codebook[5] = 0
  params = params | {'quantizer': {'codebook': codebook}}
  update = jax.jit(objective.after_update)
  for step, restarts in ((0, False), (1, False), (2, True), (3, False)):
    after = update(params, batch, jax.random.key(0), jnp.int32(step))
    got = np.asarray(after['quantizer']['codebook'])
    if not restarts:
      np.testing.assert_array_equal(got, codebook)
      continue
    np.testing.assert_array_equal(got[5], codebook[5])
    z = objective.model.encode(params, batch['image'] / np.float32(255))
    z = np.asarray(z).reshape(-1, 4)
    for row in np.delete(got, 5, 0):
      assert np.abs(z - row).sum(1).min() < 1e-5
    np.testing.assert_array_equal(
      after['decoder']['Conv_0']['kernel'],
      params['decoder']['Conv_0']['kernel'],
    )
  off = dataclasses.replace(objective, restart_every_steps=0)
  assert off.after_update(params, batch, None, 2) is params


@pytest.mark.parametrize('shape', [(2, 6, 8, 3), (1, 5, 7, 1), (2, 4, 6, 6, 2)])
def test_blur_down_is_a_strided_convolution(shape):
  x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
  want = x
  for axis in range(1, x.ndim - 1):
    blurred = np.apply_along_axis(
      lambda row: np.convolve(np.pad(row, (1, 3)), [1, 3, 3, 1], 'valid'),
      axis,
      want,
    )
    half = -(-want.shape[axis] // 2)
    want = np.take(blurred / 8, np.arange(half) * 2, axis)
  np.testing.assert_allclose(blur_down(x), want, atol=1e-5)


SMALL = (((0, 4),), ((5, 6), (7, 6)))


def vgg_arrays(rng):
  arrays, channels = {}, 3
  for index, width in (layer for level in SMALL for layer in level):
    shape = (width, channels, 3, 3)
    arrays[f'features.{index}.weight'] = rng.standard_normal(shape, np.float32)
    arrays[f'features.{index}.bias'] = rng.standard_normal(width, np.float32)
    channels = width
  return arrays


def conv_reference(x, kernel, bias):
  """[n, h, w, c], [out, in, 3, 3]: zero-padded, then ReLU."""
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  h, w = x.shape[1:3]
  out = sum(
    padded[:, i : i + h, j : j + w] @ kernel[:, :, i, j].T
    for i in range(3)
    for j in range(3)
  )
  return np.maximum(out + bias, 0)


def test_vgg16_is_compared_before_each_pool():
  """torchvision's `features`: its pools are 4, 9, 16, 23 and 30."""
  flat = [layer for level in perceptual.LEVELS for layer in level]
  widths = [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
  convolutions = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
  assert flat == list(zip(convolutions, widths, strict=True))
  last = [level[-1][0] for level in perceptual.LEVELS]
  assert last == [pool - 2 for pool in (4, 9, 16, 23, 30)]


@pytest.mark.parametrize('suffix,channels', [('npz', 3), ('safetensors', 1)])
def test_perceptual_distance(tmp_path, monkeypatch, suffix, channels):
  import safetensors.numpy

  monkeypatch.setattr(perceptual, 'LEVELS', SMALL)
  rng = np.random.default_rng(0)
  arrays = vgg_arrays(rng)
  path = tmp_path / f'vgg.{suffix}'
  if suffix == 'npz':
    np.savez(path, **arrays)
  else:
    safetensors.numpy.save_file(arrays, path)
  weights = perceptual.load_vgg16(str(path))
  x, y = rng.random((2, 2, 8, 8, channels), np.float32)

  def reference(x):
    # Of ImageNet's pixels in [0, 1], red first.
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    x = (x - np.array(mean)) / np.array(std)
    found = []
    for level in SMALL:
      if found:
        x = x.reshape(2, 4, 2, 4, 2, -1).max((2, 4))
      for index, _ in level:
        x = conv_reference(
          x,
          arrays[f'features.{index}.weight'],
          arrays[f'features.{index}.bias'],
        )
      found.append(x / np.sqrt((x**2).sum(-1, keepdims=True) + 1e-12))
    return found

  want = sum(
    ((a - b) ** 2).sum(-1).mean()
    for a, b in zip(reference(x), reference(y), strict=True)
  )
  np.testing.assert_allclose(
    perceptual.distance(weights, x, y), want, rtol=1e-4
  )
  assert perceptual.distance(weights, x, x) == 0
  # Where every feature is zero too.
  dead = {name: -np.abs(value) for name, value in weights.items()}
  slope = jax.grad(lambda x: perceptual.distance(dead, x, y))(x)
  assert np.isfinite(slope).all()


def test_perceptual_weights_that_do_not_fit(tmp_path, monkeypatch):
  monkeypatch.setattr(perceptual, 'LEVELS', SMALL)
  with pytest.raises(ValueError, match='there is no file'):
    perceptual.load_vgg16(str(tmp_path / 'none.npz'))
  path = tmp_path / 'vgg.npz'
  path.write_bytes(b'nothing')
  with pytest.raises(ValueError, match='is not a .safetensors or .npz'):
    perceptual.load_vgg16(str(path))
  arrays = vgg_arrays(np.random.default_rng(0))
  del arrays['features.5.bias']
  np.savez(path, **arrays)
  with pytest.raises(ValueError, match=r'5.bias must be \(6,\), got nothing'):
    perceptual.load_vgg16(str(path))
