"""DiT's network and samplers beside diffusers', with random weights.

The state dict is diffusers' by the names of facebookresearch/DiT, saved by
torch and read back as a public one would be.
"""

import diffusers
import jax
import jax.numpy as jnp
from make_goldens import (
  dit_output,
  guided_dit,
  names_of_dit,
  random_dit,
  sample_dit,
  sample_sit,
)
import numpy as np
import pytest
import torch

from elt_jax.interop import dit_format
from elt_jax.models import build_model
from elt_jax.samplers.diffusion import (
  DiffusionSampler,
  SamplerState,
  build_sampler,
)
from elt_jax.samplers.plan import build_plan
from elt_jax.torch_files import read_state_dict


class Given(DiffusionSampler):
  """Starts from given noise."""

  def start(self, keys, noise):
    return SamplerState(noise, noise)


@pytest.fixture(scope='module', params=['S/2', 'S/4', 'S/8'])
def both(request, tmp_path_factory):
  """diffusers' network, and the arrays of its file."""
  patch = int(request.param[2:])
  torch.manual_seed(patch)
  model = random_dit(
    num_attention_heads=6,
    attention_head_dim=64,
    num_layers=12,
    sample_size=32,
    patch_size=patch,
    num_embeds_ada_norm=1000,
  )
  path = tmp_path_factory.mktemp('dit') / 'DiT.pt'
  torch.save(names_of_dit(model), path)
  return model, read_state_dict(path)


def last(x):
  return np.moveaxis(x.numpy(), 1, -1)


@pytest.mark.parametrize('kind', ['dit', 'sit'])
def test_outputs_are_those_of_diffusers(both, kind):
  theirs, tensors = both
  config, params = dit_format.convert('DiT.pt', tensors, kind)
  model = build_model(config)
  apply = jax.jit(lambda *x: model.apply(*x, num_loops=1))
  z, labels = torch.randn(4, 4, 32, 32), torch.tensor([0, 207, 999, 1000])
  t, scale, sign = {
    'dit': (torch.tensor([0, 1, 500, 999]), 1000, 1),
    'sit': (torch.tensor([0.0, 0.1, 0.5, 0.999]), 1, -1),
  }[kind]
  want = sign * last(dit_output(theirs, z, t, labels))
  told = np.float32(t.numpy()) / scale
  got, _ = apply(params, last(z), told, labels.numpy().astype(np.int32))
  print(f'{kind}: {np.abs(got - want).max():.1e} of {np.abs(want).max():.2f}')
  np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize('both', ['S/8'], indirect=True)
@pytest.mark.parametrize(
  'kind,sample', [('dit', sample_dit), ('sit', sample_sit)]
)
def test_samples_are_those_of_their_samplers(both, kind, sample):
  """20 guided steps from the same noise.

  A network of random weights denoises nothing, and DDIM divides its first
  output by an alpha of 0.0064: what float32 leaves differs relative to that.
  """
  theirs, tensors = both
  config, params = dit_format.convert('DiT.pt', tensors, kind)
  config.sample.update({'method': 'ddim', 'num_steps': 20, 'guidance': 1.5})
  sampler = Given(**vars(build_sampler(config, build_model(config))))
  noise, labels = torch.randn(2, 4, 32, 32), torch.tensor([207, 360])
  want = last(sample(theirs, noise, labels, 20, 1.5))
  got, _ = jax.jit(sampler.__call__)(
    params,
    jax.random.key(0),
    jnp.asarray(labels.numpy(), jnp.int32),
    build_plan(config, 1),
    noise=last(noise),
  )
  error = np.linalg.norm(got - want) / np.linalg.norm(want)
  print(f'{kind}: relative error {error:.1e}, size {np.abs(want).max():.1f}')
  assert error < 1e-4


@pytest.mark.parametrize('both', ['S/8'], indirect=True)
@pytest.mark.parametrize('step', [999, 479, 19])
def test_a_step_of_ddpm_is_that_of_diffusers(both, step):
  """With the variance of the posterior, and its noise given."""
  theirs, tensors = both
  config, _ = dit_format.convert('DiT.pt', tensors, 'dit')
  sampler = build_sampler(config, build_model(config))
  scheduler = diffusers.DDIMScheduler(
    beta_start=1e-4, beta_end=0.02, clip_sample=False
  )
  scheduler.set_timesteps(50)
  z, noise = torch.randn(2, 2, 4, 32, 32)
  t, labels = torch.tensor(step), torch.tensor([1, 2])
  eps = guided_dit(theirs, z, t, labels, 1.5)
  want = scheduler.step(eps, t, z, eta=1.0, variance_noise=noise)
  now, then = (np.float32(s + 1) / 1000 for s in (step, step - 20))
  x0 = last(want.pred_original_sample)
  got = sampler._move(last(z), x0, now, then, lambda: last(noise))
  # After the last step nothing is moved on: the estimate is the result.
  if step > 19:
    np.testing.assert_allclose(
      got, last(want.prev_sample), rtol=1e-4, atol=1e-4
    )
  else:
    np.testing.assert_allclose(x0, last(want.prev_sample), atol=1e-4)
