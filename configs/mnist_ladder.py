"""The ladder of MNIST, in the latents of configs/mnist_kl.py: from a teacher of 50 steps to students of one.

Paper: Salimans & Ho (2022), Meng et al. (2023), Song et al. (2023), Song & Dhariwal (2023), Luo et al. (2023).
Data: mnist.
Cost: 2 h on 2 CPU cores; about, from nothing.
Score: in table.md.
Run: jaxdiff data mnist && jaxdiff ladder configs/mnist_ladder.py
"""

from jaxdiff.app.config import Ladder

ladder = Ladder(
    students=(
        "configs/mnist_guided.py",
        "configs/mnist_progressive.py",
        "configs/mnist_consistency.py",
        "configs/mnist_consistency_training.py",
        "configs/mnist_latent_consistency.py",
    ),
    guidance=(1.0,),
    num=500,
    epochs=3,
)
