"""The autoencoder at its real size, with random weights, beside diffusers."""

import diffusers
import numpy as np
import pytest
import torch

from elt_jax.tokenizers import sd_vae


@pytest.fixture(scope='module')
def both(tmp_path_factory):
  """diffusers' module, and what `sd_vae.load` reads of its files."""
  torch.manual_seed(0)
  levels = 4
  vae = diffusers.AutoencoderKL(
    block_out_channels=(128, 256, 512, 512),
    down_block_types=('DownEncoderBlock2D',) * levels,
    up_block_types=('UpDecoderBlock2D',) * levels,
    layers_per_block=2,
    latent_channels=4,
  ).eval()
  path = tmp_path_factory.mktemp('vae')
  vae.save_pretrained(path)
  return vae, sd_vae.load(path)


def last(x):
  return np.moveaxis(x.numpy(), 1, -1)


def test_encoding_and_decoding_are_those_of_diffusers(both):
  vae, read = both
  pixels = torch.rand(2, 3, 64, 96) * 2 - 1
  with torch.no_grad():
    latents = vae.encode(pixels).latent_dist
    decoded = vae.decode(latents.mean).sample
  mean, std = sd_vae.encode(*read, last(pixels))
  assert mean.shape == (2, 8, 12, 4)
  np.testing.assert_allclose(mean, last(latents.mean), atol=1e-3)
  np.testing.assert_allclose(std, last(latents.std), rtol=1e-3)
  got = sd_vae.decode(*read, last(latents.mean))
  np.testing.assert_allclose(got, last(decoded), atol=1e-3)
