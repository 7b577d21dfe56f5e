"""The peers' operators on the subject."""

import torch
from torch.nn import functional

from benchmarks.subject import Subject


def curvlinops_hessian(s: Subject):
    from curvlinops import HessianLinearOperator

    return HessianLinearOperator(*_arguments(s), check_deterministic=False)


def curvlinops_ggn(s: Subject):
    from curvlinops import GGNLinearOperator

    return GGNLinearOperator(*_arguments(s), check_deterministic=False)


def _arguments(s: Subject):
    loss = torch.nn.CrossEntropyLoss()
    return s.model, loss, list(s.model.parameters()), [(s.x, s.y)]


def eigenthings_hessian(s: Subject):
    from hessian_eigenthings import HessianOperator, supervised_loss

    loss = supervised_loss(functional.cross_entropy)
    return HessianOperator(s.model, [(s.x, s.y)], loss)


def pyhessian_hessian(s: Subject):
    from pyhessian import hessian

    loss = torch.nn.CrossEntropyLoss()
    return hessian(s.model, loss, data=(s.x, s.y), cuda=False)
