"""Masked ELT on UCF-101: class-conditional video, the paper's main result.

    python -m elt_jax.tokenize --workdir=runs/ucf101_tokenizer \\
        --ucf_split=all --out=data/ucf101_tokens
    python -m elt_jax.train --config=configs/ucf101_masked.py:6Nx4L \\
        --workdir=runs/ucf101_6Nx4L
    python -m elt_jax.sample --workdir=runs/ucf101_6Nx4L --loops=1,2,4,6 \\
        --labels=0,1,2,3 --num=4 --out=clips.mp4

Clips of 16 x 128 x 128 pixels as 4 x 16 x 16 = 1024 tokens of MAGVIT's 3-D
tokenizer (configs/ucf101_tokenizer.py). {N}Nx{L}L is N unique layers looped L
times; 24N, the unlooped baseline, is MAGVIT-L. Nobody has trained them with
this code yet; the paper (arXiv 2604.09168, Table 4) reports, unguided:

    6Nx4L   76M  12 steps   4.3k GMACs  FVD 72.8
    6Nx6L   76M  24 steps  13.0k GMACs  FVD 60.8
    24N    306M  12 steps   4.3k GMACs  FVD 76     (MAGVIT-L)

6Nx6L trains as 6Nx4L does, L_max 4, and differs in its 24 sampling steps; its
six loops are asked for with --loops=6, as the paper samples beyond L_max. 76M
counts the transformer layers of 6Nx4L alone (75.6M). 306M is all of 24N: its
layers are 302.3M, token table, positions and head 3.3M.

On a v6e:2x4 a chip needs 9 of its 31 GiB (24N 14), by the compiler, and the
training would take 20 minutes if every peak were reached, of which a real run
takes a multiple (launch/README.md).

Given by the paper: width, depth, loops, tokens, codebook, steps, no guidance,
270 epochs, and all 13,320 clips, test clips too. Guesses, after its image
models and MAGVIT: optimizer, learning rate, batch, warm-up, cosine decay,
clipping, dropout, smoothing, averaging, and that only masked tokens count in
the loss: --config.objective.unmasked_weight=1 counts all, as MAGVIT does.
"""

import ml_collections

from configs import ucf101_tokenizer
from configs.base import get_base

# Variant: (N, L_max, sampling steps).
MODELS = {'6Nx4L': (6, 4, 12), '6Nx6L': (6, 4, 24), '24N': (24, 1, 12)}
VARIANTS = tuple(MODELS)

_EPOCHS, _BATCH_SIZE, _CLIPS = 270, 512, 13_320


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  """The config of one of `VARIANTS`; '' is 6Nx4L."""
  variant = variant or '6Nx4L'
  if variant not in MODELS:
    raise ValueError(
      f'configs/ucf101_masked.py has no variant {variant!r}; it has {VARIANTS}.'
    )
  num_layers, max_loops, num_steps = MODELS[variant]
  c = get_base()
  c.tokenizer.update(ucf101_tokenizer.get_config().tokenizer)
  c.model.update(
    {
      'family': 'masked',
      'width': 1024,
      'num_heads': 16,
      'num_layers': num_layers,
      'max_loops': max_loops,
      'dropout': 0.1,
      'dtype': 'bfloat16',
      'scan_layers': True,
      'remat': 'layer',
    }
  )
  c.objective.update(
    {
      'exits': 'ilsd' if max_loops > 1 else 'none',
      'label_dropout': 0.0,
    }
  )
  c.data.update(
    {
      'source': 'tokens:data/ucf101_tokens',
      'image_size': 128,
      'num_frames': 16,
      'num_channels': 3,
      'num_classes': 101,
      'num_threads': 16,
    }
  )
  c.optim.update(
    {
      'learning_rate': 1e-4,
      'warmup_steps': 1000,
      'schedule': 'cosine',
      'b2': 0.96,
      'weight_decay': 0.045,
    }
  )
  c.train.update(
    {
      'num_steps': _EPOCHS * _CLIPS // _BATCH_SIZE,
      'batch_size': _BATCH_SIZE,
      # In halves, for chips of 16 GiB.
      'accumulate_steps': 2,
      'log_every_steps': 50,
      'sample_every_steps': 1000,
    }
  )
  c.checkpoint.update({'every_steps': 1000})
  c.sample.update(
    {
      'method': 'confidence',
      'num_steps': num_steps,
      'guidance': 1.0,
      'batch_size': 16,
    }
  )
  return c
