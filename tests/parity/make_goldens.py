"""Small files in the formats of other libraries, and what those make of them.

    make goldens

Writes tests/goldens/. Weights are random.
"""

import importlib.util
import pathlib
import sys
import types

import diffusers
import numpy as np
import torch

TESTS = pathlib.Path(__file__).resolve().parent.parent
GOLDENS = TESTS / 'goldens'
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

from helpers import inception_weights  # noqa: E402  It is beside this one.


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


def state_dicts() -> None:
  """torch/: one state dict in both layouts of torch.save, and its arrays."""
  base = torch.arange(24.0).reshape(4, 6)
  tensors = {
    'a.weight': base,
    'a.transposed': base.T,
    'a.part': base[1:3, ::2],
    'half': torch.randn(3).half(),
    'whole': torch.tensor(7),
    'none': torch.zeros(0, 2),
    'flags': torch.tensor([True, False]),
    'parameter': torch.nn.Parameter(torch.ones(2, dtype=torch.float64)),
  }
  directory = GOLDENS / 'torch'
  directory.mkdir(exist_ok=True)
  torch.save(tensors, directory / 'zip.pth')
  torch.save(
    tensors,
    directory / 'stream.pth',
    _use_new_zipfile_serialization=False,
  )
  arrays = {name: x.detach().numpy() for name, x in tensors.items()}
  np.savez(directory / 'arrays.npz', **arrays)


def inception() -> None:
  """inception.npz: features of two images by torch-fidelity's network."""
  images = np.random.default_rng(0).integers(0, 256, (2, 40, 56, 3), np.uint8)
  weights = {
    name: torch.from_numpy(value) for name, value in inception_weights().items()
  }
  path = GOLDENS / 'inception.pth'
  torch.save(weights | {'fc.bias': torch.zeros(1008)}, path)
  extractor = fidelity_inception(path)
  path.unlink()
  spatial = []
  extractor.Mixed_6d.branch1x1.register_forward_hook(
    lambda module, inputs, output: spatial.append(output[:, :7])
  )
  with torch.no_grad():
    pool, logits = extractor(torch.from_numpy(np.moveaxis(images, -1, 1)))
  np.savez(
    GOLDENS / 'inception.npz',
    images=images,
    pool=pool.numpy(),
    logits=logits.numpy(),
    spatial=np.moveaxis(spatial[0].numpy(), 1, -1),
  )


def fidelity_inception(path: pathlib.Path) -> torch.nn.Module:
  """torch-fidelity's network; its package as a whole needs torchvision."""
  package = types.ModuleType('torch_fidelity')
  origin = pathlib.Path(importlib.util.find_spec('torch').origin)
  package.__path__ = [str(origin.parent.parent / 'torch_fidelity')]
  sys.modules['torch_fidelity'] = package
  from torch_fidelity.feature_extractor_inceptionv3 import (
    FeatureExtractorInceptionV3,
  )

  return FeatureExtractorInceptionV3(
    'inception', ['2048', 'logits_unbiased'], str(path)
  ).eval()


if __name__ == '__main__':
  sd_vae()
  state_dicts()
  inception()
