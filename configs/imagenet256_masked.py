"""Masked ELT on ImageNet 256 x 256: the paper's main image models.

    python -m elt_jax.tokenize --maskgit=DIR --source=folder:/data/imagenet \\
        --out=data/imagenet256_tokens
    python -m elt_jax.train --config=configs/imagenet256_masked.py:XL_7Nx4L \\
        --workdir=runs/XL_7Nx4L

The tokens are those of the public MaskGIT tokenizer, as in the paper, or of a
run of configs/imagenet256_tokenizer.py (--workdir in place of --maskgit); of
images as they are, not mirrored.

Variants are SCALE_{N}Nx{L}L, N unique layers looped L times, and SCALE_{N}N,
the unlooped baseline of the same depth. For a TPU slice: 270 epochs at batch
512. Nobody has trained them with this code yet; the paper (arXiv 2604.09168,
Table 1) reports, with 24 steps:

    L_8Nx3L  101M  FID 2.2      L_24N   303M  FID 2.1
    L_12Nx2L 152M  FID 2.1      XL_28N  446M  FID 2.0
    XL_7Nx4L 111M  FID 2.0

On a v6e:2x4, memory of a chip by the compiler, of 31 GiB, and hours if every
peak were reached, of which a real run takes a multiple (launch/README.md):

    B    3 GiB         1.9 h        H_8Nx4L  5 GiB  13 h
    L    5 to 9 GiB    6.5 h        G_8Nx6L  7 GiB  28 h
    XL   6 to 12 GiB   9.5 h

Given by the paper: widths, depths and loops of L, XL and G, heads of L and XL,
batch, optimizer, learning rate, epochs, label dropout, steps and token
temperature. Guesses: heads of B, H and G; depths of B and H; warm-up, cosine
decay, clipping, dropout and smoothing (as in MaskGIT), averaging, and the
guidance, which the paper sweeps.
"""

import ml_collections

from configs.base import get_base

# Scale: (width, heads).
SCALES = {
  'B': (768, 12),
  'L': (1024, 16),
  'XL': (1152, 16),
  'H': (1280, 16),
  'G': (1536, 16),
}
# Variant: (scale, N, L).
MODELS = {
  'B_6Nx2L': ('B', 6, 2),
  'B_12N': ('B', 12, 1),
  'L_8Nx3L': ('L', 8, 3),
  'L_12Nx2L': ('L', 12, 2),
  'L_24N': ('L', 24, 1),
  'XL_7Nx4L': ('XL', 7, 4),
  'XL_28N': ('XL', 28, 1),
  'H_8Nx4L': ('H', 8, 4),
  'H_32N': ('H', 32, 1),
  'G_8Nx6L': ('G', 8, 6),
  'G_48N': ('G', 48, 1),
}
VARIANTS = tuple(MODELS)

_EPOCHS, _BATCH_SIZE, _IMAGES = 270, 512, 1_281_167


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  """The config of one of `VARIANTS`; '' is XL_7Nx4L."""
  variant = variant or 'XL_7Nx4L'
  if variant not in MODELS:
    raise ValueError(
      f'configs/imagenet256_masked.py has no variant {variant!r}; it has '
      f'{VARIANTS}.'
    )
  scale, num_layers, max_loops = MODELS[variant]
  width, num_heads = SCALES[scale]
  c = get_base()
  c.model.update(
    {
      'family': 'masked',
      'width': width,
      'num_heads': num_heads,
      'num_layers': num_layers,
      'max_loops': max_loops,
      'dropout': 0.1,
      'dtype': 'bfloat16',
      'scan_layers': True,
      'remat': 'layer',
    }
  )
  c.objective.exits = 'ilsd' if max_loops > 1 else 'none'
  c.data.update(
    {
      'source': 'tokens:data/imagenet256_tokens',
      'image_size': 256,
      'num_channels': 3,
      'num_classes': 1000,
      'num_threads': 16,
    }
  )
  c.optim.update(
    {
      'learning_rate': 1e-4,
      'warmup_steps': 5000,
      'schedule': 'cosine',
      'b2': 0.96,
      # Five times larger from scale H on.
      'weight_decay': 0.225 if scale in 'HG' else 0.045,
    }
  )
  c.train.update(
    {
      'num_steps': _EPOCHS * _IMAGES // _BATCH_SIZE,
      'batch_size': _BATCH_SIZE,
      'log_every_steps': 100,
      'sample_every_steps': 10_000,
    }
  )
  c.checkpoint.update({'every_steps': 5000, 'keep_every_steps': 100_000})
  # Up to XL the state of the unlooped baseline fits a chip whole.
  sharded = scale in 'HG'
  c.mesh.update({'data': 1 if sharded else -1, 'fsdp': -1 if sharded else 1})
  c.sample.update(
    {
      'method': 'confidence',
      'num_steps': 24,
      'guidance': 3.0,
      'guidance_schedule': 'linear',
      'batch_size': 64,
    }
  )
  return c
