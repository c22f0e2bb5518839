"""The ladder of CIFAR-10, at the papers' settings: each recipe says what its paper reached.

Paper: Salimans & Ho (2022), Meng et al. (2023), Song et al. (2023), Song & Dhariwal (2023).
Data: cifar10.
Cost: for a pod; see the recipes.
Score: not measured; the papers' figures are FID by Inception's features, the table's are by a classifier trained here.
Run: jaxdiff data cifar10 && jaxdiff ladder configs/cifar10_ladder.py
"""

from jaxdiff.app.config import Ladder

ladder = Ladder(
    students=(
        "configs/cifar10_guided.py",
        "configs/cifar10_progressive.py",
        "configs/cifar10_consistency.py",
        "configs/cifar10_consistency_training.py",
    ),
    guidance=(1.0, 1.5),
    num=10_000,
    epochs=20,
)
