"""The diffusion: schedule and marginals, solvers, training objectives. Imports no network."""

from vlmir.diffusion.irsde import IRSDE, PREDICTIONS
from vlmir.diffusion.objectives import NORMS, OBJECTIVES, loss, target
from vlmir.diffusion.sampling import Sampling, Solver, drive, time_grid
from vlmir.diffusion.solvers import SOLVERS, solver_named

__all__ = [
    "IRSDE",
    "NORMS",
    "OBJECTIVES",
    "PREDICTIONS",
    "SOLVERS",
    "Sampling",
    "Solver",
    "drive",
    "loss",
    "solver_named",
    "target",
    "time_grid",
]
