"""Every key of an experiment with its default. Experiments start from here.

from configs.base import get_base
config = get_base()
config.model.width = 384
"""

import ml_collections


def get_base() -> ml_collections.ConfigDict:
  """A fresh config with every key; locked: experiments change values only."""
  c = ml_collections.ConfigDict()

  c.model = m = ml_collections.ConfigDict()
  m.family = 'diffusion'  # diffusion | masked | tokenizer
  m.width = 384  # d
  m.num_layers = 4  # N, unique layers
  m.max_loops = 4  # L_max, loops of the teacher in training
  m.num_heads = 6  # must divide width
  m.mlp_ratio = 4.0  # MLP hidden size / width
  m.patch_size = 4  # pixels of a token's side
  m.patch_frames = 1  # frames of a token
  m.time_scale = 1000.0  # diffusion: of t in its embedding; DiT 1000, SiT 1
  m.dtype = 'float32'  # of the computation; parameters are float32
  m.scan_layers = False  # scan over the N layers: small programs, for TPU
  m.unroll_loops = False  # unroll the training loop: faster on CPU
  m.remat = 'none'  # none | layer | loop | dots: what backward recomputes
  m.input_injection = False  # add the embedded input before every later loop
  m.loop_embedding = False  # learned embedding of the loop index
  m.residual_scale = False  # residual updates times 1 / max_loops
  m.vocabulary = 'codebook|classes|null|mask'  # masked: the order of its ids
  m.norm = 'post'  # masked: post | pre
  m.dropout = 0.0  # masked: of attention weights and updates

  c.objective = o = ml_collections.ConfigDict()
  o.exits = 'ilsd'  # ilsd | none (vanilla looping) | all (deep supervision)
  o.min_loops = 1  # L_min: earliest exit of the student
  o.randomize_max_loops = 0  # lowest teacher, drawn up to max_loops; 0: off
  o.schedule = 'cosine'  # cosine | linear_beta (DDPM, DiT) | interpolant (SiT)
  # What the network's output means: v | x0 | eps | velocity (eps - x).
  o.prediction = 'v'
  # sigmoid | v | x0 | eps | velocity: plain mean squared error of one of these.
  o.weighting = 'sigmoid'
  o.sigmoid_bias = 0.0  # b of the sigmoid weighting
  # Of cosine and interpolant; linear_beta has its own.
  o.logsnr_min = -15.0  # log-SNR of pure noise
  o.logsnr_max = 15.0  # log-SNR of data
  o.logsnr_shift = 0.0  # 2 log(base side / side)
  o.label_dropout = 0.1  # share of examples trained without their class
  o.mask_schedule = 'cosine'  # masked: cosine | arccos | linear | powP
  o.label_smoothing = 0.1  # masked: of the ground truth, not of distillation
  o.reduction = 'sample'  # masked: sample | batch (of each accumulated part)
  o.unmasked_weight = 0.0  # masked: of known tokens; MAGVIT 1, TiTok 0.1
  o.commit = False  # masked: conditions in place of masks (MAGVIT's COMMIT)

  c.data = d = ml_collections.ConfigDict()
  # mnist | moving_mnist | moving_mnist:2 (of two digits) | synthetic |
  # npz:FILE (arrays image, label) | folder:DIR (images in class folders) |
  # tfds:NAME[/CONFIG][:VERSION] (images or videos in TFDS_DATA_DIR) |
  # records:DIR (images, made by elt_jax.prepare) |
  # clips:DIR (videos in class folders) | ucf101:DIR (as it is distributed) |
  # tokens:DIR, latents:DIR (made by elt_jax.tokenize, for masked models and
  # for diffusion)
  d.source = 'mnist'
  d.image_size = 28  # pixels of a side
  d.num_channels = 1
  d.num_frames = 1  # 1 is an image
  d.windows = 1  # fixed clips of a video, or motions of a digit
  d.frame_stride = 1  # videos: frames from one of a clip to the next
  d.ucf_split = 'all'  # ucf101: 1 | 2 | 3 | all (trains on test clips too)
  d.skip_unreadable = False  # files: the next stands in for a damaged one
  d.num_classes = 10
  d.flip = False  # mirror at random
  d.num_threads = 1  # readers ahead of the step
  d.seed = 0  # of the order of examples

  c.tokenizer = z = ml_collections.ConfigDict()
  # Its shape; a masked model has those of the tokenizer that made its tokens.
  z.patch_size = 1  # pixels of a side that enter as channels, to be faster
  z.patch_frames = 1  # and frames
  z.local_encoder = False  # a token depends on its own pixels alone
  z.filters = 128  # width of the first level
  z.channel_multipliers = (1, 1, 2, 2, 4)  # levels; each but the last halves
  z.temporal_downsample = ()  # video: whether each halving halves frames too
  z.num_res_blocks = 2  # of a level
  z.norm_groups = 32
  z.codebook_size = 1024
  z.embedding_dim = 256  # width of a code
  # Its training.
  z.inflate_from = ''  # video: workdir of a tokenizer of images to start from
  z.inflate = 'central'  # central | average: its kernels along time
  z.reconstruction = 'l2'  # l2 | l1
  z.commitment = 0.25
  z.entropy = 0.1  # 0 is off
  z.entropy_temperature = 0.01
  z.restart_every_steps = 0  # unused codes become vectors of the batch; 0: off
  z.perceptual = 0.0  # weight; 0 is off
  z.perceptual_weights = ''  # VGG-16 of torchvision, .safetensors or .npz
  z.adversarial = 0.0  # weight; 0 is off
  z.r1 = 10.0  # gamma of gamma / 2 |grad D|^2
  z.discriminator_filters = 64
  z.discriminator_multipliers = (2, 4, 8, 8, 8)
  z.discriminator_learning_rate = 1.0  # times optim.learning_rate

  c.optim = p = ml_collections.ConfigDict()
  p.learning_rate = 1e-4  # peak
  p.warmup_steps = 0  # linear from 0
  p.schedule = 'constant'  # constant | cosine | linear | rsqrt, after warm-up
  p.b1 = 0.9
  p.b2 = 0.99
  p.eps = 1e-8
  p.weight_decay = 0.01  # on kernels only
  p.clip_norm = 1.0  # global norm; 0 is off
  p.ema_decay = 0.9999  # of the weights that are sampled

  c.train = t = ml_collections.ConfigDict()
  t.num_steps = 100_000
  t.batch_size = 64  # global
  t.accumulate_steps = 1  # parts of a batch, one after the other
  t.log_every_steps = 50
  t.sample_every_steps = 0  # grid of samples to samples/; 0 is off
  t.telemetry_every_steps = 500  # what each loop does, to 2 L_max; 0 is off
  t.seed = 0  # of parameters, noise, exits and dropout

  c.checkpoint = k = ml_collections.ConfigDict()
  k.every_steps = 1000
  k.keep = 2  # newest ones
  k.keep_every_steps = 0  # besides, every multiple of this; 0 is off

  c.profile = f = ml_collections.ConfigDict()
  f.steps = ()  # first and last step of a trace, as in 10,20; () is off

  c.mesh = h = ml_collections.ConfigDict()
  h.data = -1  # -1 takes the devices the others leave
  h.fsdp = 1  # shards parameters and batch
  h.tensor = 1  # shards heads and MLP
  h.gather = 'step'  # step | use: gather the layers once, or at every loop

  c.sample = s = ml_collections.ConfigDict()
  s.method = 'ddim'  # ddim | ddpm; masked: confidence | halton
  s.num_steps = 25  # K
  s.guidance = 1.5  # s, as in u + s (c - u); 1 is off
  s.guidance_mode = 'cfg'  # cfg | cfg_shallow | exit | cfg+exit
  s.weak_loops = 1  # of cfg_shallow's unconditional pass; the exit of exit
  s.exit_guidance = 1.5  # scale of the exit in cfg+exit
  s.guidance_schedule = 'constant'  # constant | linear | powcosP, over steps
  s.guidance_low = 0.0  # guidance acts at times in [low, high]
  s.guidance_high = 1.0
  s.watch = 'output'  # output | state: whose change ends converging loops
  s.clip = True  # data estimate to [-1, 1]: pixels yes, latents no
  s.batch_size = 250
  s.mask_schedule = 'cosine'  # masked: cosine | arccos | linear | powP
  s.temperature_bias = 0.5  # masked: tokens are drawn at bias + scale (1 - r)
  s.temperature_scale = 0.8
  s.choice_temperature = 4.5  # masked: Gumbel noise of the confidence

  return c.lock()
