"""The ladder of digits: from a teacher of 50 steps to students of one, each way that there is.

Paper: Salimans & Ho (2022), Meng et al. (2023), Song et al. (2023), Song & Dhariwal (2023), Luo et al. (2023),
Yin et al. (2024), Geng et al. (2025), Zhang et al. (2025), Frans et al. (2024).
Data: digits.
Cost: 32 min of CPU time; from nothing, on two cores that also did other things.
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
        "configs/digits_matching.py",
        "configs/digits_mean_flow.py",
        "configs/digits_improved_mean_flow.py",
        "configs/digits_alpha_flow.py",
        "configs/digits_shortcut.py",
    )
)
