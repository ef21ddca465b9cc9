"""The losses of a VQ-GAN: reconstruct through the codebook, fool a critic.

Terms and weights as MaskGIT's tokenizer (arXiv 2202.04200) after VQ-GAN
(Esser et al., arXiv 2012.09841). Generator and critic are two parts of one
parameter tree: each term stops the gradient of the part it does not train, so
one backward pass serves both, in the train step of every other model.
"""

import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from elt_jax.data.transforms import to_zero_one
from elt_jax.objectives.ilsd import Metrics
from elt_jax.tokenizers import perceptual
from elt_jax.tokenizers.vqgan import VQGAN, distances

Array = jax.Array
stop = jax.lax.stop_gradient


def entropy_loss(affinity: Array, temperature: float) -> Array:
  """Mean entropy of each vector's code minus entropy of the mean code.

  Low when every vector is sure of its code and all codes are in use
  (MaskGIT). `affinity` is [n, v]: minus squared distances.
  """
  log_p = jax.nn.log_softmax(affinity / temperature)
  p = jnp.exp(log_p)
  mean = jnp.mean(p, 0)
  return -jnp.mean(jnp.sum(p * log_p, 1)) + jnp.sum(mean * jnp.log(mean + 1e-5))


def usage(tokens: Array, codebook_size: int) -> Metrics:
  """Share of the codes in use and perplexity of their use, in a batch."""
  count = jnp.bincount(tokens.reshape(-1), length=codebook_size)
  p = count / jnp.sum(count)
  entropy = -jnp.sum(p * jnp.log(jnp.maximum(p, 1e-10)))
  return {'codes_used': jnp.mean(count > 0), 'perplexity': jnp.exp(entropy)}


def psnr(x: Array, y: Array) -> Array:
  """Peak signal-to-noise ratio of images in [0, 1], in dB."""
  mse = jnp.mean(jnp.square(x - jnp.clip(y, 0, 1)))
  return -10 * jnp.log10(jnp.maximum(mse, 1e-10))


@dataclasses.dataclass(frozen=True)
class TokenizerObjective:
  """Weights of the terms.

  Entropy, perceptual and adversarial terms of weight 0 are not computed.

  Attributes:
    model: the tokenizer, and its critic if it has one.
    vgg: weights of the perceptual distance, or None.
    reconstruction: 'l2' or 'l1', of pixels; weight 1.
    commitment: of vectors to their codes; the codes follow with weight 1.
    entropy: of `entropy_loss`.
    entropy_temperature: of its softmax.
    perceptual: of `perceptual.distance`.
    adversarial: of the non-saturating loss of the generator.
    r1: gamma of gamma / 2 |grad D(real)|^2 (Mescheder et al., arXiv
      1801.04406).
    restart_every_steps: codes that a batch does not use are set to vectors of
      that batch, every so many steps; 0 is never.
  """

  model: VQGAN
  vgg: dict[str, Any] | None
  reconstruction: str
  commitment: float
  entropy: float
  entropy_temperature: float
  perceptual: float
  adversarial: float
  r1: float
  restart_every_steps: int

  def loss(
    self, params: Any, batch: dict[str, Array], key: Array, step: Array
  ) -> tuple[Array, Metrics]:
    """Sum of the weighted terms.

    Args:
      params: {'encoder', 'quantizer', 'decoder'[, 'discriminator']}.
      batch: 'image' uint8 [b, (f,) h, w, c], or float in [-1, 1].
      key: not used: nothing here is drawn.
      step: not used.

    Returns:
      (loss, metrics): the terms before weighting, PSNR in dB of the batch,
      share and perplexity of the codes it uses.
    """
    del key, step
    x = to_zero_one(batch['image'])
    z = self.model.encode(params, x)
    tokens = self.model.quantize(params, z)
    codes = self.model.lookup(params, tokens)
    # Straight through: the decoder's gradient goes to the encoder as it is.
    y = self.model.decode_vectors(params, z + stop(codes - z))

    error = {'l2': jnp.square, 'l1': jnp.abs}[self.reconstruction]
    terms = {
      'reconstruction': (1.0, jnp.mean(error(x - y))),
      'codebook': (1.0, jnp.mean(jnp.square(stop(z) - codes))),
      'commitment': (self.commitment, jnp.mean(jnp.square(z - stop(codes)))),
    }
    if self.entropy:
      affinity = -distances(z, params['quantizer']['codebook'])
      terms['entropy'] = (
        self.entropy,
        entropy_loss(affinity, self.entropy_temperature),
      )
    if self.perceptual:
      terms['perceptual'] = (
        self.perceptual,
        perceptual.distance(self.vgg, x, y),
      )
    if self.model.discriminator:
      terms |= self._adversarial(params['discriminator'], x, y)
    loss = sum(weight * value for weight, value in terms.values())
    metrics = {name: value for name, (_, value) in terms.items()}
    metrics |= usage(tokens, self.model.codebook_size) | {'psnr': psnr(x, y)}
    return loss, metrics

  def _adversarial(
    self, params: Any, x: Array, y: Array
  ) -> dict[str, tuple[float, Array]]:
    """The generator's term, and the critic's two."""
    critic = lambda p, x: self.model.discriminator.apply({'params': p}, x)
    real, backward = jax.vjp(lambda x: critic(params, x), x)
    (slope,) = backward(jnp.ones_like(real))
    slope = jnp.sum(jnp.square(slope), axis=tuple(range(1, x.ndim)))
    return {
      'adversarial': (
        self.adversarial,
        jnp.mean(nn.softplus(-critic(stop(params), y))),
      ),
      'critic': (
        1.0,
        jnp.mean(nn.softplus(-real))
        + jnp.mean(nn.softplus(critic(params, stop(y)))),
      ),
      'r1': (self.r1 / 2, jnp.mean(slope)),
    }

  def after_update(
    self, params: Any, batch: dict[str, Array], key: Array, step: Array
  ) -> Any:
    """Sets codes that `batch` does not use to vectors of it, when it is time.

    A code left behind by the encoder gets no gradient and never comes back by
    itself (Jukebox, arXiv 2005.00341, restarts them so). The batch should hold
    several times as many tokens as there are codes; the optimizer's moments of
    a code are kept.
    """
    if not self.restart_every_steps:
      return params

    def restart(codebook: Array) -> Array:
      z = self.model.encode(params, to_zero_one(batch['image']))
      tokens = self.model.quantize(params, z).reshape(-1)
      z = z.reshape(-1, z.shape[-1])
      count = jnp.bincount(tokens, length=len(codebook))
      pick = jax.random.randint(
        jax.random.fold_in(key, step), (len(codebook),), 0, len(z)
      )
      return jnp.where(count[:, None] > 0, codebook, z[pick])

    codebook = jax.lax.cond(
      (step + 1) % self.restart_every_steps == 0,
      restart,
      lambda codebook: codebook,
      params['quantizer']['codebook'],
    )
    return params | {'quantizer': {'codebook': codebook}}


def build_objective(config: Any, model: VQGAN) -> TokenizerObjective:
  """The objective of an experiment config.

  Raises:
    ValueError: if the weights of the perceptual term cannot be read.
  """
  t = config.tokenizer
  return TokenizerObjective(
    model=model,
    vgg=perceptual.load_vgg16(t.perceptual_weights) if t.perceptual else None,
    reconstruction=t.reconstruction,
    commitment=t.commitment,
    entropy=t.entropy,
    entropy_temperature=t.entropy_temperature,
    perceptual=t.perceptual,
    adversarial=t.adversarial,
    r1=t.r1,
    restart_every_steps=t.restart_every_steps,
  )
