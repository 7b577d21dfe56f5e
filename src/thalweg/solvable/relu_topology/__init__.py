"""Invariant sets of two-layer homogeneous networks, and what they obstruct."""

from thalweg.solvable.relu_topology.betti import (
    PoincarePolynomial,
    poincare_polynomial,
)
from thalweg.solvable.relu_topology.conservation import (
    ComplexWeightsError,
    Invariants,
    conserved_matrix,
    invariants,
)
from thalweg.solvable.relu_topology.drift import (
    DriftHistory,
    decay_time,
    decayed,
    drift_rate,
    predict_drift,
)
from thalweg.solvable.relu_topology.ensembles import EnsembleRun, train_ensemble
from thalweg.solvable.relu_topology.exchange import rescale, transport
from thalweg.solvable.relu_topology.floors import Floor, loss_floor
from thalweg.solvable.relu_topology.initialization import (
    lock_probability,
    lock_table,
    obstruction_probability,
    variance_ratio,
)
from thalweg.solvable.relu_topology.labels import (
    Components,
    EffectiveComponents,
    components,
    effective_components,
)
from thalweg.solvable.relu_topology.layer_pairs import LayerPair
from thalweg.solvable.relu_topology.monitoring import (
    CrossingRisk,
    Monitor,
    crossing_risk,
)
from thalweg.solvable.relu_topology.reachability import (
    NeuronCount,
    Reachability,
    Verdict,
    count_neurons,
    reachable,
)
from thalweg.solvable.relu_topology.reinitialization import (
    Reinitialization,
    reinit_unlocked,
)
from thalweg.solvable.relu_topology.scanning import Scan, ScannedPair, scan

__all__ = [
    # conserved quantities
    "ComplexWeightsError",
    "Invariants",
    "conserved_matrix",
    "invariants",
    # topology of the invariant set
    "Components",
    "EffectiveComponents",
    "PoincarePolynomial",
    "components",
    "effective_components",
    "poincare_polynomial",
    # equivalent networks
    "rescale",
    "transport",
    # training
    "EnsembleRun",
    "train_ensemble",
    # leaving the invariant set
    "DriftHistory",
    "decay_time",
    "decayed",
    "drift_rate",
    "predict_drift",
    # torch models
    "CrossingRisk",
    "LayerPair",
    "Monitor",
    "Scan",
    "ScannedPair",
    "crossing_risk",
    "scan",
    # random starts
    "Reinitialization",
    "lock_probability",
    "lock_table",
    "obstruction_probability",
    "reinit_unlocked",
    "variance_ratio",
    # obstruction
    "Floor",
    "NeuronCount",
    "Reachability",
    "Verdict",
    "count_neurons",
    "loss_floor",
    "reachable",
]
