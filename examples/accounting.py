"""The accountant alone: how much noise a budget asks for, what a run costs, and the run for another tool.

python accounting.py
"""

from fedsim_userdp import acc


def plan(epsilon: float, delta: float) -> acc.PoissonUsers:
    """Returns 200 rounds with 5% of the users, with the least noise that keeps the budget."""
    return acc.calibrate(acc.PoissonUsers(1.0, sampling_prob=0.05, rounds=200), epsilon=epsilon, delta=delta)


if __name__ == "__main__":
    run = plan(epsilon=3.0, delta=1e-5)
    print(f"noise multiplier {run.noise_multiplier:.4f}")
    print(f"epsilon {acc.epsilon(run, 1e-5):.4f} by {acc.methods(run)[0]}, {acc.epsilon(run, 1e-5, 'rdp'):.4f} by RDP")
    print(f"neighbours: {run.adjacency.value}")
    print(run.event())  # of Google's dp_accounting
