"""Clipping, noise and ledger in a training loop of one's own: the mean of some users' vectors, round after round.

python training_loop.py
"""

from dataclasses import replace
from pathlib import Path

import torch

from fedsim_userdp import acc
from fedsim_userdp.privacy.clipping import clip_and_sum
from fedsim_userdp.privacy.ledger import Ledger
from fedsim_userdp.privacy.noise import OperatingSystemNoise, add_noise, noise_stddev
from fedsim_userdp.privacy.streams import RunKey

DELTA, CLIP_NORM = 1e-3, 1.0


def train(vectors: torch.Tensor, run: acc.PoissonUsers, ledger_file: Path) -> tuple[torch.Tensor, float]:
    """Returns an estimate of the users' mean, shape [size], and the epsilon of everything that was released."""
    key, noise, mean = RunKey.drawn(), OperatingSystemNoise(), torch.zeros(vectors.shape[1])
    stddev = noise_stddev(run.noise_multiplier, CLIP_NORM)
    with Ledger.open(ledger_file, delta=DELTA, run="means", noise_source="os") as ledger:
        for number in range(1, run.rounds + 1):
            coins = key.generator("selection", round=number).random(len(vectors))
            updates = {"mean": vectors[coins < run.sampling_prob] - mean}  # one row a user of the cohort
            total = clip_and_sum(updates, CLIP_NORM).total
            ledger.record(number, replace(run, rounds=1))  # before the release
            noisy = add_noise(total, stddev, noise, number)["mean"]
            mean = mean + 0.5 * noisy / (run.sampling_prob * len(vectors))  # the expected cohort, never the drawn one
        return mean, ledger.epsilon()


if __name__ == "__main__":
    plan = acc.calibrate(acc.PoissonUsers(1.0, sampling_prob=0.2, rounds=20), epsilon=4.0, delta=DELTA)
    estimate, spent = train(torch.randn(500, 3) + 1.0, plan, Path("means.jsonl"))
    print(f"mean {estimate.tolist()} at epsilon {spent:.2f}, delta {DELTA}")
