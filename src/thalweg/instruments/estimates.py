"""What a stochastic estimate is: a value, its standard error and what it cost."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A Monte Carlo estimate.

    Args:
        value: The estimate.
        stderr: Its standard error, estimated from the same probes; 0.0 where the value
            is exact, NaN where one probe leaves it unknown.
        products: Operator products spent.
        method: How it was made.
        converged: Whether the error that was asked for is met.
        note: What a reader should know, or "".
    """

    value: float
    stderr: float
    products: int
    method: str
    converged: bool = True
    note: str = ""
