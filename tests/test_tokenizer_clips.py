"""The VQ-GAN with three axes: shapes, patches, convolution, inflation."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft

from elt_jax.models import build_model
from elt_jax.tokenizers import layers, vqgan
from elt_jax.tokenizers.inflate import inflate
from elt_jax.validation import validate
from tests.helpers import initial, noisy
from tests.test_tokenizer import tokenizer_config


def test_three_axes_are_a_config_away():
  config = tokenizer_config()
  config.data.num_frames = 4
  config.tokenizer.temporal_downsample = (True, False)
  config = validate(config)
  model = build_model(config)
  assert model.grid == vqgan.token_grid(config) == (2, 4, 4)

  def there_and_back(key, x):
    params = nn.unbox(model.init(key, x))
    return model.encode(params, x), model.decode(
      params, model.tokens(params, x)
    )

  x = jnp.zeros((2, 4, 16, 16, 1))
  z, y = jax.eval_shape(there_and_back, jax.random.key(0), x)
  assert z.shape == (2, 2, 4, 4, 4) and y.shape == x.shape


def test_patches_take_the_place_of_strides():
  config = tokenizer_config()
  config.data.num_frames = 4
  config.tokenizer.update({'patch_size': 2, 'patch_frames': 4})
  config.tokenizer.channel_multipliers = (1, 2)
  config.tokenizer.temporal_downsample = (False,)
  model = build_model(validate(config))
  assert model.grid == vqgan.token_grid(config) == (1, 4, 4)
  x = np.random.default_rng(0).random((2, 4, 6, 8, 3), np.float32)
  deep = layers.space_to_depth(x, (2, 3, 4))
  assert deep.shape == (2, 2, 2, 2, 72)
  # A position's channels are the pixels of its patch, frame by frame.
  np.testing.assert_array_equal(
    deep[1, 1, 0, 1], x[1, 2:4, 0:3, 4:8].reshape(-1)
  )
  np.testing.assert_array_equal(layers.depth_to_space(deep, (2, 3, 4)), x)
  images = x[:, 0]
  there = layers.space_to_depth(images, (3, 2))
  np.testing.assert_array_equal(layers.depth_to_space(there, (3, 2)), images)
  np.testing.assert_array_equal(layers.patches_to_waves(x, (1, 1, 1)), x)
  config.tokenizer.patch_frames = 3
  with pytest.raises(ValueError, match='= 4 must be a multiple of 3'):
    validate(config)


def test_channels_of_a_patch_are_its_weighted_cosines():
  x = np.random.default_rng(0).random((2, 4, 6, 8, 3), np.float32)
  waves = layers.patches_to_waves(x, (2, 3, 4))
  patch = x[1, 2:4, 0:3, 4:8]
  want = scipy.fft.dctn(patch, axes=(0, 1, 2), norm='ortho')
  weight = 1 + np.indices((2, 3, 4)).sum(0)[..., None]
  np.testing.assert_allclose(
    waves[1, 1, 0, 1], (weight * want).reshape(-1), atol=1e-5
  )
  np.testing.assert_allclose(
    layers.waves_to_patches(waves, (2, 3, 4)), x, atol=1e-6
  )


@pytest.mark.slow
def test_networks_see_waves_and_draw_them():
  """As networks without patches, of the waves themselves."""
  model = build_model(clips_config(patch_size=2, patch_frames=2))
  params, patch, ones = initial(model), (2, 2, 2), (1, 1, 1)
  x = np.random.default_rng(0).random((1, 4, 16, 16, 1), np.float32)
  z = model.encode(params, x)
  plain = model.encoder.clone(patch=ones)
  waves = layers.patches_to_waves(x, patch)
  want = plain.apply({'params': params['encoder']}, waves)
  np.testing.assert_allclose(z, want, atol=1e-5)
  plain = model.decoder.clone(patch=ones, channels=8)
  drawn = plain.apply({'params': params['decoder']}, z)
  np.testing.assert_allclose(
    model.decode_vectors(params, z),
    layers.waves_to_patches(drawn, patch),
    atol=1e-5,
  )


@pytest.mark.parametrize('local', [True, False])
def test_a_local_encoder_sees_one_patch(local):
  config = tokenizer_config()
  config.data.num_frames = 4
  config.tokenizer.update({'patch_size': 4, 'patch_frames': 2})
  config.tokenizer.update({'channel_multipliers': (1,)})
  config.tokenizer.local_encoder = local
  model = build_model(validate(config))
  assert model.grid == (2, 4, 4)
  x = np.random.default_rng(0).random((1, 4, 16, 16, 1), np.float32)
  params = initial(model)
  other = x.copy()
  other[:, :2, 4:8, 8:12] = 0
  encode = jax.jit(model.encode)
  differ = (encode(params, x) != encode(params, other)).any(-1)
  assert differ[0, 0, 1, 2] and differ.sum() == (1 if local else 32)


def clips_config(**tokenizer):
  config = tokenizer_config()
  config.data.num_frames = 4
  config.tokenizer.temporal_downsample = (False, False)
  config.tokenizer.update(tokenizer)
  return validate(config)


@pytest.mark.parametrize('kernel', [(3, 3, 3), (1, 1, 1), (5, 3, 1)])
def test_convolution_by_frames_is_the_convolution(kernel):
  rng = np.random.default_rng(0)
  x = rng.standard_normal((2, 5, 6, 7, 3), np.float32)
  k = rng.standard_normal((*kernel, 3, 4), np.float32)
  whole = lambda x, k: jax.lax.conv_general_dilated(
    x, k, (1, 1, 1), 'SAME', dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC')
  )
  loss = lambda conv: lambda x, k: jnp.sum(jnp.sin(conv(x, k)))
  for got, want in zip(
    (
      layers.conv_by_frames(x, k),
      *jax.grad(loss(layers.conv_by_frames), (0, 1))(x, k),
    ),
    (whole(x, k), *jax.grad(loss(whole), (0, 1))(x, k)),
  ):
    np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize('mode', ['central', 'average'])
def test_an_inflated_tokenizer_sees_a_still_clip_as_its_frame(mode):
  images, clips = build_model(tokenizer_config()), build_model(clips_config())
  flat = jax.tree.map(np.asarray, noisy(initial(images)))
  params = inflate(flat, jax.eval_shape(lambda: initial(clips)), mode)
  kernel = params['encoder']['Conv_0']['kernel']
  assert kernel.shape == (3, 3, 3, 1, 8)
  np.testing.assert_allclose(
    kernel.sum(0), flat['encoder']['Conv_0']['kernel'], rtol=1e-6
  )
  x = np.random.default_rng(0).random((2, 16, 16, 1), np.float32)
  still = x[:, None].repeat(4, 1)
  if mode == 'central':
    z, of_frame = clips.encode(params, still), images.encode(flat, x)
    y = clips.decode_vectors(params, z)
    frame = images.decode_vectors(flat, of_frame)
    for i in range(4):
      np.testing.assert_allclose(z[:, i], of_frame, atol=1e-3)
      np.testing.assert_allclose(y[:, i], frame, atol=1e-3)
  else:  # One layer: beyond the ends of a clip there are zeros.
    convolve = lambda x, kernel, axes: jax.lax.conv_general_dilated(
      x, kernel, (1,) * (x.ndim - 2), 'SAME', dimension_numbers=axes
    )
    frames = convolve(still, kernel, ('NDHWC', 'DHWIO', 'NDHWC'))
    flat_kernel = flat['encoder']['Conv_0']['kernel']
    frame = convolve(x, flat_kernel, ('NHWC', 'HWIO', 'NHWC'))
    np.testing.assert_allclose(frames[:, 1], frame, atol=1e-4)
    np.testing.assert_allclose(frames[:, 0], 2 / 3 * frame, atol=1e-4)


def test_tokenizers_that_do_not_inflate():
  images, clips = build_model(tokenizer_config()), build_model(clips_config())
  flat, like = initial(images), initial(clips)
  wider = flat | {'quantizer': {'codebook': np.zeros((32, 4), np.float32)}}
  with pytest.raises(ValueError, match=r'codebook is \(32, 4\) in the'):
    inflate(wider, like, 'central')
  with pytest.raises(ValueError, match='is nothing in the tokenizer of im'):
    inflate({'encoder': flat['encoder']}, like, 'central')
  config = tokenizer_config()
  config.tokenizer.inflate_from = 'somewhere'
  with pytest.raises(ValueError, match='is for clips, and data.num_frames is'):
    validate(config)
