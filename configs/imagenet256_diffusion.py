"""Diffusion ELT on ImageNet 256 x 256, in the latents of an image autoencoder.

    python -m elt_jax.tokenize --sd_vae=DIR --source=folder:/data/imagenet \\
        --out=data/imagenet256_latents
    python -m elt_jax.train --config=configs/imagenet256_diffusion.py:8Nx4L \\
        --workdir=runs/8Nx4L

DIR has the files of stabilityai/sd-vae-ft-mse. Latents of 32 x 32 x 4, patches
of 2: 256 tokens. {N}Nx{L}L is N unique layers looped L times, {N}N the unlooped
baseline. Nobody has trained them with this code yet; the paper (arXiv
2604.09168, Table 2) reports, with 512 steps of DDPM at guidance 3:

    16Nx2L  1.1B  FID 2.83      32N  2.1B  FID 3.43
    8Nx4L   539M  FID 3.16      16N  1.1B  FID 3.87
    4Nx8L   271M  FID 3.96
    1Nx32L   69M  FID 10.30

On a v6e:2x4 a chip needs 5 to 10 of its 31 GiB, by the compiler, and the
training would take 25 hours (16N 12) if every peak were reached, of which a
real run takes a multiple (launch/README.md).

Given by the paper: depths, loops, batch, steps of training and sampling,
optimizer, learning rate, guidance, a shifted cosine schedule and the sigmoid
weighting. Guesses: the width, 2048 after its parameter counts (a layer here
has 18 d^2 = 75.5M parameters, there 67M), heads, patch, v-prediction, no shift,
bias 0, warm-up, clipping and averaging.
"""

import ml_collections

from configs.base import get_base

# Variant: (N, L).
MODELS = {
  '16Nx2L': (16, 2),
  '8Nx4L': (8, 4),
  '4Nx8L': (4, 8),
  '1Nx32L': (1, 32),
  '16N': (16, 1),
  '32N': (32, 1),
}
VARIANTS = tuple(MODELS)


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  """The config of one of `VARIANTS`; '' is 8Nx4L."""
  variant = variant or '8Nx4L'
  if variant not in MODELS:
    raise ValueError(
      f'configs/imagenet256_diffusion.py has no variant {variant!r}; it has '
      f'{VARIANTS}.'
    )
  num_layers, max_loops = MODELS[variant]
  c = get_base()
  c.model.update(
    {
      'width': 2048,
      'num_heads': 16,
      'num_layers': num_layers,
      'max_loops': max_loops,
      'patch_size': 2,
      'dtype': 'bfloat16',
      'scan_layers': True,
      'remat': 'layer',
    }
  )
  c.objective.update(
    {
      'exits': 'ilsd' if max_loops > 1 else 'none',
      'prediction': 'v',
      'weighting': 'sigmoid',
    }
  )
  c.data.update(
    {
      'source': 'latents:data/imagenet256_latents',
      'image_size': 32,
      'num_channels': 4,
      'num_classes': 1000,
      'num_threads': 16,
    }
  )
  c.optim.update({'learning_rate': 1e-4, 'warmup_steps': 5000})
  c.train.update(
    {'num_steps': 500_000, 'batch_size': 512, 'log_every_steps': 100}
  )
  c.checkpoint.update({'every_steps': 5000, 'keep_every_steps': 50_000})
  # 16 layers whole on every chip are too much for a v5e.
  gather = 'use' if variant == '16Nx2L' else 'step'
  c.mesh.update({'data': 1, 'fsdp': -1, 'gather': gather})
  c.sample.update(
    {
      'method': 'ddpm',
      'num_steps': 512,
      'guidance': 3.0,
      'clip': False,
      'batch_size': 64,
    }
  )
  return c
