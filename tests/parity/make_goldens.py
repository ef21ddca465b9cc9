"""Small files in the formats of other libraries, and what those make of them.

    make goldens

Writes tests/goldens/. Weights are random.
"""

import pathlib

import diffusers
import numpy as np
import torch

GOLDENS = pathlib.Path(__file__).resolve().parent.parent / 'goldens'


def sd_vae() -> None:
  """sd_vae/: an autoencoder of two levels, and its outputs of two images."""
  torch.manual_seed(0)
  levels = 2
  vae = diffusers.AutoencoderKL(
    block_out_channels=(8, 16),
    down_block_types=('DownEncoderBlock2D',) * levels,
    up_block_types=('UpDecoderBlock2D',) * levels,
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=4,
  ).eval()
  # As made, norms and biases are ones and zeros, which hide mistakes.
  for parameter in vae.parameters():
    if parameter.ndim == 1:
      torch.nn.init.normal_(parameter, 0.5, 0.5)
  directory = GOLDENS / 'sd_vae'
  vae.save_pretrained(directory)
  pixels = torch.rand(2, 3, 16, 24) * 2 - 1
  with torch.no_grad():
    latents = vae.encode(pixels).latent_dist
    decoded = vae.decode(latents.mean).sample
  last = lambda x: np.moveaxis(x.numpy(), 1, -1)
  np.savez(
    directory / 'outputs.npz',
    pixels=last(pixels),
    mean=last(latents.mean),
    std=last(latents.std),
    decoded=last(decoded),
  )


if __name__ == '__main__':
  sd_vae()
