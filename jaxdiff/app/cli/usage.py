"""What `jaxdiff` says of itself."""

USAGE = """jaxdiff: diffusion models on JAX. A first command, which ends with pictures:

  jaxdiff train configs/digits.py --workdir runs/digits

runs
  train CONFIG      train a recipe such as configs/digits.py, or go on with its run
  ladder CONFIG     train students of a model, compare all at equal network calls
  sample RUN        draw images, as .png or .npz; --labels 0..9 --steps 50
  evaluate RUN ...  FID, KID, precision, recall of samples; --likelihood: bits
  report RUN        one HTML page: curves, samples, quality, nearest training images
  latents RUN       encode a data set once, by an autoencoder's run

before and beside them
  plan CONFIG       would it fit on TPUs that need not be there, and how fast
  verify SAMPLER    hold a sampler to data whose denoiser is known exactly
  data NAME         prepare mnist or cifar10
  doctor            versions, devices, directories, and what is wrong with them
  completion SHELL  let bash, zsh or fish complete commands, flags and paths

with every command
  --help            its flags, with an example; of a recipe's: train --help model
  --device gpu      where it runs: cpu, gpu or tpu
  --quiet           no progress bars and no log, but results and errors
jaxdiff --version   the version

exit status: 0 done; 1 a line says what is wrong, or plan, verify or doctor say
no; 2 wrong arguments; 130 Ctrl-C
"""
