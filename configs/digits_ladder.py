"""The ladder of digits: from a teacher of 50 steps to students of one, each way that there is.

Paper: Salimans & Ho (2022), Meng et al. (2023), Song et al. (2023), Song & Dhariwal (2023), Luo et al. (2023).
Data: digits.
Cost: 38 min of CPU time; from nothing; on two cores that also did other things it took 51 minutes.
Score: in the README; and in `table.md`.
Run: jaxdiff ladder configs/digits_ladder.py
"""

from jaxdiff.app.config import Ladder

ladder = Ladder(
    students=(
        "configs/digits_guided.py",
        "configs/digits_progressive.py",
        "configs/digits_consistency.py",
        "configs/digits_consistency_training.py",
        "configs/digits_latent_consistency.py",
    )
)
