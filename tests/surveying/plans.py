"""A small plan, made without timing."""

from thalweg.surveying import Plan

PLAN = Plan(
    steps=("point", "sharpness"),
    seed=0,
    budget=30.0,
    memory=10**8,
    threads=1,
    examples=0,
    total=0,
    eigenpairs=5,
    eigen_products=30,
    trace_products=20,
    probes=2,
    lanczos_steps=7,
    surface_points=5,
    extent=1.0,
    rho=0.05,
    sharpness_method="pgd",
    sharpness_steps=20,
    sharpness_samples=8,
    layer_products=20,
    layer_probes=8,
    gradient_examples=40,
    path_points=5,
)
