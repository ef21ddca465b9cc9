"""Makes a workdir of the public weights of DiT or SiT.

    python -m elt_jax.interop.dit --weights=DiT-XL-2-256x256.pt \\
        --sd_vae=data/sd-vae-ft-ema --workdir=runs/DiT-XL-2

The file is a state dict of facebookresearch/DiT (weights of licence CC BY-NC
4.0) or willisma/SiT (MIT), of any of their sizes S, B, L and XL and patches 2,
4 and 8; of a checkpoint of their training, save the state dict 'ema' alone.
--sd_vae is a directory of stabilityai/sd-vae-ft-ema or -mse. `sample` and
`evaluate` then take the workdir like any other: a model of N layers and one
loop. It holds no state of an optimizer, so training cannot go on from it.

Both networks are the same and have the same names. DiT is told the step 0..999
of DDPM's linear betas and predicts noise; SiT is told the share of data on a
straight line to noise and predicts velocity. Which it is the name of the file
says, DiT... or SiT..., or --model=dit or sit.

What differs from the scripts of these projects:
- They guide the first 3 of a latent's 4 channels, here all are guided, by 1.375
  in place of 1.5: the authors of DiT report FID 2.27 of the one and 2.23 of the
  other (pull request 12 of their repository).
- The variances that DiT learned, and what SiT has in their place and never
  uses, are left out: `ddpm` adds the variance of the posterior.
- 250 steps of DiT are 3, 7, ... 999 here, and there spread from 0 to 999.
- SiT integrates its ODE by an adaptive method, or an SDE of a noise of its own
  choice. Here `ddim` is Euler's method on that ODE.
"""

import pathlib
import re

from absl import flags
from etils import epath
import ml_collections

from elt_jax import checkpoint, cli
from elt_jax import config as config_lib
from elt_jax.interop import dit_format
from elt_jax.tokenizers import autoencoder, sd_vae
from elt_jax.torch_files import read_state_dict


def kind_of(path: str, model: str | None) -> str:
  """'dit' or 'sit': `model` if given, else by the name of the file.

  Raises:
    ValueError: if neither says which.
  """
  name = re.match('dit|sit', pathlib.Path(path).name, re.IGNORECASE)
  if model is None and name is None:
    raise ValueError(
      f'{path} may be of DiT or of SiT, whose files are alike: give '
      '--model=dit or --model=sit.'
    )
  return model or name[0].lower()


def load_autoencoder(
  directory: str, config: ml_collections.ConfigDict
) -> autoencoder.Autoencoder:
  """The autoencoder in `directory`, for images of the model's latents.

  Raises:
    ValueError: as `sd_vae.load`, or if its latents have other channels.
  """
  d = config.data
  vae, _ = sd_vae.load(directory)
  if vae['latent_channels'] != d.num_channels:
    raise ValueError(
      f'{directory} makes latents of {vae["latent_channels"]} channels, the '
      f'model takes {d.num_channels}.'
    )
  factor = 2 ** (len(vae['block_out_channels']) - 1)
  found = autoencoder.of_images(directory, factor * d.image_size, d.num_classes)
  found.config.data.source = ''  # The images it saw are not here.
  return found


def main(args: flags.FlagValues) -> None:
  path, vae = cli.required(args, 'weights'), cli.required(args, 'sd_vae')
  workdir = epath.Path(cli.workdir(args))
  kind = kind_of(path, args.model)
  if workdir.exists() and any(workdir.iterdir()):
    raise ValueError(
      f'{workdir} is not empty, and nothing is written over: give another '
      '--workdir.'
    )
  config, params = dit_format.convert(
    path, read_state_dict(path), kind, args.num_heads
  )
  kept = load_autoencoder(vae, config)
  kept.save(workdir / 'tokenizer')
  with checkpoint.Checkpoints(workdir) as checkpoints:
    checkpoints.save_ema(params)
  config_lib.claim_workdir(config, workdir)
  m, size = config.model, kept.config.data.image_size
  print(
    f'{workdir}: {kind}, {m.num_layers} layers of width {m.width}, patches of '
    f'{m.patch_size}, {config.data.num_classes} classes, images of '
    f'{size} x {size}'
  )


def _define(values: flags.FlagValues) -> None:
  string = flags.DEFINE_string
  string('weights', None, 'Public checkpoint, .pt.', flag_values=values)
  string('sd_vae', None, 'Directory of an autoencoder.', flag_values=values)
  string('workdir', None, 'Directory to write.', flag_values=values)
  flags.DEFINE_enum(
    'model',
    None,
    dit_format.KINDS,
    'Default: as the name of the file.',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'num_heads',
    None,
    'Of a model of none of the published widths.',
    lower_bound=1,
    flag_values=values,
  )


if __name__ == '__main__':
  cli.run(main, _define, __doc__)
