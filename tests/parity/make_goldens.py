"""Small files in the formats of other libraries, and what those make of them.

    make goldens

Writes tests/goldens/. Weights are random.
"""

import collections
import importlib.util
import pathlib
import sys
import types

from cdfvd.third_party.i3d.pytorch_i3d import InceptionI3d
from cdfvd.third_party.i3d.utils import preprocess_i3d
import diffusers
import numpy as np
import torch

TESTS = pathlib.Path(__file__).resolve().parent.parent
GOLDENS = TESTS / 'goldens'
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

from helpers import i3d_weights, inception_weights  # noqa: E402  Beside this.


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


def random_dit(**sizes: int) -> diffusers.DiTTransformer2DModel:
  """The network of DiT with random weights, zeros among them filled in.

  As diffusers makes it, waves of the time fall to 1 / 10000 itself, and the
  second norm of a block adds 1e-5: here both are those of
  facebookresearch/DiT.
  """
  model = diffusers.DiTTransformer2DModel(
    in_channels=4, out_channels=8, norm_eps=1e-6, **sizes
  ).eval()
  shared = model.transformer_blocks[0].norm1.emb
  shared.time_proj.downscale_freq_shift = 0
  for block in model.transformer_blocks:
    block.norm1.emb = shared
  for name, parameter in model.named_parameters():
    std = 0.5 if 'class_embedder' in name else 0.1
    if parameter.ndim > 1 and 'class_embedder' not in name:
      std = parameter[0].numel() ** -0.5
    torch.nn.init.normal_(parameter, std=std)
  return model


def names_of_dit(
  model: diffusers.DiTTransformer2DModel,
) -> collections.OrderedDict[str, torch.Tensor]:
  """Its state dict by the names of facebookresearch/DiT."""
  theirs = {
    'x_embedder.proj': ('pos_embed.proj',),
    't_embedder.mlp.0': ('emb.timestep_embedder.linear_1',),
    't_embedder.mlp.2': ('emb.timestep_embedder.linear_2',),
    'final_layer.adaLN_modulation.1': ('proj_out_1',),
    'final_layer.linear': ('proj_out_2',),
  }
  for n in range(len(model.transformer_blocks)):
    ours, block = f'blocks.{n}', f'transformer_blocks.{n}'
    theirs |= {
      f'{ours}.attn.qkv': [f'{block}.attn1.to_{x}' for x in 'qkv'],
      f'{ours}.attn.proj': (f'{block}.attn1.to_out.0',),
      f'{ours}.mlp.fc1': (f'{block}.ff.net.0.proj',),
      f'{ours}.mlp.fc2': (f'{block}.ff.net.2',),
      f'{ours}.adaLN_modulation.1': (f'{block}.norm1.linear',),
    }
  first = 'transformer_blocks.0.norm1.'
  state = model.state_dict()
  get = lambda name: state[name if name in state else f'{first}{name}']
  found = collections.OrderedDict(pos_embed=model.pos_embed.pos_embed)
  table = 'emb.class_embedder.embedding_table.weight'
  found['y_embedder.embedding_table.weight'] = get(table)
  for name, parts in theirs.items():
    for kind in ('weight', 'bias'):
      joined = torch.cat([get(f'{part}.{kind}') for part in parts])
      found[f'{name}.{kind}'] = joined
  return found


def dit() -> None:
  """dit/: a state dict of DiT and SiT, and what both make of it."""
  torch.manual_seed(0)
  model = random_dit(
    num_attention_heads=2,
    attention_head_dim=8,
    num_layers=2,
    sample_size=8,
    patch_size=2,
    num_embeds_ada_norm=4,
  )
  directory = GOLDENS / 'dit'
  directory.mkdir(exist_ok=True)
  torch.save(names_of_dit(model), directory / 'weights.pt')
  z, labels = torch.randn(3, 4, 8, 8), torch.tensor([0, 3, 4])
  steps, times = torch.tensor([0, 421, 999]), torch.tensor([0.0, 0.3, 0.9])
  last = lambda x: np.moveaxis(x.numpy(), 1, -1)
  np.savez(
    directory / 'outputs.npz',
    z=last(z),
    labels=labels.numpy(),
    steps=steps.numpy(),
    eps=last(dit_output(model, z, steps, labels)),
    times=times.numpy(),
    velocity=last(dit_output(model, z, times, labels)),
    ddim=last(sample_dit(model, z, labels % 4, 10, 1.5)),
    euler=last(sample_sit(model, z, labels % 4, 10, 1.5)),
  )


@torch.no_grad()
def dit_output(
  model: torch.nn.Module, z: torch.Tensor, t: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
  """The first half of the channels: the prediction."""
  t = t.expand(len(z))
  return model(z, timestep=t, class_labels=labels).sample[:, :4]


def guided_dit(
  model: torch.nn.Module,
  z: torch.Tensor,
  t: torch.Tensor,
  labels: torch.Tensor,
  guidance: float,
) -> torch.Tensor:
  """The prediction, guided on all channels as in diffusers' pipeline."""
  null = torch.full_like(labels, model.config.num_embeds_ada_norm)
  uncond = dit_output(model, z, t, null)
  return uncond + guidance * (dit_output(model, z, t, labels) - uncond)


def sample_dit(
  model: torch.nn.Module,
  z: torch.Tensor,
  labels: torch.Tensor,
  steps: int,
  guidance: float,
) -> torch.Tensor:
  """DDIM of DiT as diffusers' pipeline makes it, at trailing steps."""
  scheduler = diffusers.DDIMScheduler(
    beta_schedule='linear',
    beta_start=1e-4,
    beta_end=0.02,
    clip_sample=False,
    timestep_spacing='trailing',
  )
  scheduler.set_timesteps(steps)
  for t in scheduler.timesteps:
    eps = guided_dit(model, z, t, labels, guidance)
    z = scheduler.step(eps, t, z).prev_sample
  return z


def sample_sit(
  model: torch.nn.Module,
  y: torch.Tensor,
  labels: torch.Tensor,
  steps: int,
  guidance: float,
) -> torch.Tensor:
  """Euler's method on SiT's ODE, from noise at t = 0 to data at t = 1."""
  for k in range(steps):
    t = torch.tensor(k / steps)
    y = y + guided_dit(model, y, t, labels, guidance) / steps
  return y


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


def i3d() -> None:
  """i3d.npz: logits of two clips by cd-fvd's network, and its arrays' names."""
  clips = np.random.default_rng(0).integers(
    0, 256, (2, 10, 20, 28, 3), np.uint8
  )
  network = cdfvd_i3d(i3d_weights())
  with torch.no_grad():
    logits = network(preprocess_i3d(clips))
  names = [
    f'{name} {tuple(value.shape)}'
    for name, value in network.state_dict().items()
    if not name.endswith('num_batches_tracked')
  ]
  np.savez_compressed(
    GOLDENS / 'i3d.npz', clips=clips, logits=logits.numpy(), names=names
  )


def cdfvd_i3d(weights: dict[str, np.ndarray]) -> torch.nn.Module:
  """cd-fvd's network of these weights, with TensorFlow's eps."""
  network = InceptionI3d(400, in_channels=3).eval()
  tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
  missing, unknown = network.load_state_dict(tensors, strict=False)
  assert not unknown
  assert all(name.endswith('num_batches_tracked') for name in missing)
  for module in network.modules():
    if isinstance(module, torch.nn.BatchNorm3d):
      module.eps = 1e-3
  return network


if __name__ == '__main__':
  sd_vae()
  state_dicts()
  inception()
  dit()
  i3d()
