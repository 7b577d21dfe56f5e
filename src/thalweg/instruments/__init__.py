"""How a landscape is measured: one set of instruments for every landscape."""

from thalweg.instruments.alignment import (
    Alignment,
    Heads,
    PermutationSpec,
    Repaired,
    Segment,
    align,
    infer_permutations,
    repair,
)
from thalweg.instruments.ascent import Ascent, ascend
from thalweg.instruments.barriers import Barrier, barrier
from thalweg.instruments.critical_points import CriticalPoint, find_critical_points
from thalweg.instruments.densities import smooth_density, spectral_density
from thalweg.instruments.diagonals import DiagonalEstimate, block_traces, diagonal
from thalweg.instruments.diagram_distances import (
    bottleneck_distance,
    wasserstein_distance,
)
from thalweg.instruments.directions import (
    Directions,
    Projection,
    as_directions,
    orthogonalize,
    resolve_point,
)
from thalweg.instruments.eigenpairs import Eigenpairs, top_eigenpairs
from thalweg.instruments.estimates import Estimate
from thalweg.instruments.flatness import SharpnessResult, sharpness, sharpness_table
from thalweg.instruments.intrinsic import (
    IntrinsicDimension,
    intrinsic_dimension,
)
from thalweg.instruments.lines import line
from thalweg.instruments.local_directions import (
    gradient_direction,
    hessian_directions,
    random_directions,
)
from thalweg.instruments.merge_trees import MergeTree, merge_tree
from thalweg.instruments.normalization import normalize
from thalweg.instruments.paths import Path, connect
from thalweg.instruments.planes import (
    Checkpoint,
    between,
    plane_through,
    read_point,
)
from thalweg.instruments.principal import pca_directions
from thalweg.instruments.projections import project_ball, read_norm
from thalweg.instruments.random_bases import random_basis
from thalweg.instruments.refinement import Refine
from thalweg.instruments.sample_graphs import neighbor_edges
from thalweg.instruments.spectral_sums import (
    effective_dimension,
    log_determinant,
    mass_below_zero,
    spectral_moment,
    spectral_sum,
)
from thalweg.instruments.subspace_training import SubspaceRun, train_in_subspace
from thalweg.instruments.surfaces import (
    curvature_on_plane,
    gradient_on_plane,
    surface,
    surface_at_points,
)
from thalweg.instruments.topology import Pairs, persistence
from thalweg.instruments.traces import trace
from thalweg.instruments.tracking import Tracker, track
from thalweg.instruments.trajectories import Trajectory
from thalweg.landscapes import inner, norm

__all__ = [
    # flatness
    "SharpnessResult",
    "sharpness",
    "sharpness_table",
    # critical points
    "CriticalPoint",
    "find_critical_points",
    # topology
    "MergeTree",
    "Pairs",
    "bottleneck_distance",
    "merge_tree",
    "neighbor_edges",
    "persistence",
    "wasserstein_distance",
    # trajectories, and curvature on the way
    "Tracker",
    "Trajectory",
    "track",
    # worst cases
    "Ascent",
    "ascend",
    "project_ball",
    "read_norm",
    # directions
    "Checkpoint",
    "Directions",
    "Projection",
    "as_directions",
    "between",
    "gradient_direction",
    "hessian_directions",
    "normalize",
    "orthogonalize",
    "pca_directions",
    "plane_through",
    "random_directions",
    "read_point",
    "resolve_point",
    # lines and surfaces
    "Barrier",
    "Refine",
    "barrier",
    "curvature_on_plane",
    "gradient_on_plane",
    "line",
    "surface",
    "surface_at_points",
    # random subspaces
    "IntrinsicDimension",
    "SubspaceRun",
    "intrinsic_dimension",
    "random_basis",
    "train_in_subspace",
    # paths
    "Path",
    "connect",
    # permutations of units
    "Alignment",
    "Heads",
    "PermutationSpec",
    "Repaired",
    "Segment",
    "align",
    "infer_permutations",
    "repair",
    # long vectors, summed in float64
    "inner",
    "norm",
    # spectra
    "DiagonalEstimate",
    "Eigenpairs",
    "Estimate",
    "block_traces",
    "diagonal",
    "effective_dimension",
    "log_determinant",
    "mass_below_zero",
    "smooth_density",
    "spectral_density",
    "spectral_moment",
    "spectral_sum",
    "top_eigenpairs",
    "trace",
]
