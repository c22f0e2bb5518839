"""What `jaxdiff` says of itself."""

USAGE = """jaxdiff: diffusion models on JAX

  jaxdiff train CONFIG [--workdir DIR] [--steps 500] [--optimizer.learning-rate 3e-4] ...
      train a recipe such as configs/digits.py, or go on with the run in DIR
  jaxdiff train CONFIG --with-stages
      train also, and first, what the recipe starts from: an autoencoder, the models before it in a cascade
  jaxdiff ladder CONFIG [--workdir DIR]
      train the students of a ladder such as configs/digits_ladder.py, and compare them with their teachers at equal network calls
  jaxdiff sample RUN [--labels 0..9] [--num 100] [--guidance 2] [--steps 50] [--out samples.png]
      draw images from a run, as .png or .npz
  jaxdiff sample RUN --classifier CLASSIFIER_RUN --classifier-scale 3 --guidance 0 [--labels 0..9] ...
      guide the unconditional model by a classifier of noised images, such as configs/digits_classifier.py trains
  jaxdiff evaluate RUN [--num 1000] [--guidance 2] [--classifier CLASSIFIER_RUN --classifier-scale 3] ...
      judge a run's samples by a classifier trained on its data
  jaxdiff evaluate RUN --likelihood [--estimators discrete,continuous,flow] [--labels none] [--split test]
      bits per dimension of a diffusion run or a VAE, with error bars
  jaxdiff plan CONFIG --topology v5e:4x4 [--slices 2] [--batch 256] [--what sample] [--mesh.fsdp 16] ...
      compile the step for TPUs that need not be there: does it fit, memory, FLOPs, collectives, a lower bound of its time
  jaxdiff plan CONFIG --topology v5e:4x4 --largest-batch        or --sweep
      find the largest batch that fits; or compare meshes, remat policies and batches
  jaxdiff verify FILE.py:SAMPLER [--order 2]
      hold a sampler to data whose denoiser is known: its order, bias, distance from exact samples, dtypes, compilations
  jaxdiff data NAME [--data-dir DIR] [--raw-dir DIR]
      prepare mnist or cifar10 without TensorFlow
  jaxdiff latents RUN [--out DIR] [--split train] [--flip]
      encode a data set once by the autoencoder RUN, for training with --data.latents DIR

jaxdiff COMMAND --help lists every flag of a command.
"""
