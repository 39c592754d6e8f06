"""Rules of matrix products and einsum against the dense Jacobian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agreement import agree, each_alone, random
from ntkscope import NTK
from reference import dense
from zoo import Function

Run = Callable[[Any, Tensor], Tensor]

#: The function, the shape of the input, the shapes of the parameters w (and v).
PRODUCTS: dict[str, tuple[Run, tuple[int, ...], tuple[tuple[int, ...], ...]]] = {
    "addmm": (lambda m, x: torch.addmm(m.v, x, m.w), (5, 3), ((3, 4), (4,))),
    "addmm-scaled": (lambda m, x: torch.addmm(m.v, x, m.w, beta=2, alpha=0.5), (5, 3), ((3, 4), (4,))),
    "addmm-row": (lambda m, x: torch.addmm(m.v, x, m.w), (5, 3), ((3, 4), (1, 4))),
    "addmm-sequence": (
        lambda m, x: torch.addmm(m.v, x.reshape(-1, 3), m.w).view(*x.shape[:2], 4),
        (2, 5, 3),
        ((3, 4), (4,)),
    ),
    "addmm-left": (
        lambda m, x: torch.stack([torch.addmm(m.v, m.w, y) for y in x]),
        (3, 4, 2),
        ((3, 4), (3, 1)),
    ),
    "addmv": (lambda m, x: torch.stack([torch.addmv(m.v, m.w, y) for y in x]), (3, 4), ((2, 4), (2,))),
    "mv": (lambda m, x: torch.mv(x, m.w), (3, 4), ((4,),)),
    "mv-left": (lambda m, x: torch.stack([torch.mv(m.w, y) for y in x]), (3, 4), ((2, 4),)),
    "dot": (lambda m, x: torch.stack([torch.dot(m.w, y) for y in x]), (3, 4), ((4,),)),
    "outer": (lambda m, x: torch.stack([torch.outer(m.w, y) for y in x]), (3, 4), ((2,),)),
    "bmm-right": (lambda m, x: torch.bmm(x.transpose(0, 1), m.w).transpose(0, 1), (5, 2, 3), ((2, 3, 4),)),
    "bmm-left": (lambda m, x: torch.bmm(m.w, x.permute(1, 2, 0)).permute(2, 0, 1), (5, 2, 3), ((2, 4, 3),)),
    "bmm-many-positions": (
        lambda m, x: torch.bmm(x.flatten(0, 1).transpose(0, 1), m.w).transpose(0, 1).reshape(-1, 9, 2, 2),
        (2, 9, 2, 3),
        ((2, 3, 2),),
    ),
    "baddbmm": (
        lambda m, x: torch.baddbmm(m.v, x.transpose(0, 1), m.w, beta=0.5, alpha=2).transpose(0, 1),
        (5, 2, 3),
        ((2, 3, 4), (2, 1, 4)),
    ),
    "matmul-vector": (lambda m, x: x @ m.w, (2, 4, 3), ((3,),)),
    "matmul-vector-left": (lambda m, x: m.w @ x.mT, (2, 4, 3), ((3,),)),
    "matmul-left": (lambda m, x: (m.w @ x.T).T, (4, 3), ((2, 3),)),
    "matmul-left-sequence": (lambda m, x: m.w @ x, (3, 4, 2), ((5, 4),)),
    "matmul-experts": (lambda m, x: (x[:, None] @ m.w).flatten(1), (3, 4, 2), ((5, 2, 3),)),
    "matmul-broadcast": (lambda m, x: x @ m.w, (3, 2, 4, 2), ((1, 2, 3),)),
    "matmul-broadcast-input": (lambda m, x: x[:, :1] @ m.w, (3, 2, 4, 2), ((3, 2, 3),)),
    "linear-vector": (lambda m, x: F.linear(x, m.w), (2, 4, 3), ((3,),)),
    "tensordot": (lambda m, x: torch.tensordot(x, m.w, ([2, 1], [0, 2])), (3, 4, 2), ((2, 5, 4),)),
    "bilinear": (lambda m, x: F.bilinear(x, x[..., :2], m.w, m.v), (3, 4, 3), ((5, 3, 2), (5,))),
    "einsum": (lambda m, x: torch.einsum("bi,oi->bo", x, m.w), (5, 3), ((4, 3),)),
    "einsum-implicit": (lambda m, x: torch.einsum("bi, io", x, m.w), (5, 3), ((3, 4),)),
    "einsum-heads": (lambda m, x: torch.einsum("bti,hio->bhto", x, m.w), (3, 2, 3), ((2, 3, 2),)),
    "einsum-two-features": (lambda m, x: torch.einsum("bthd,hdo->bto", x, m.w), (3, 2, 3, 2), ((3, 2, 4),)),
    "einsum-mixed-axes": (lambda m, x: torch.einsum("bhti,oith->bo", x, m.w), (3, 2, 3, 2), ((4, 2, 3, 2),)),
    "einsum-groups": (lambda m, x: torch.einsum("bgti,igo->bgto", x, m.w), (3, 2, 3, 2), ((2, 2, 4),)),
    "einsum-ellipsis": (lambda m, x: torch.einsum("...i,...io->...o", x, m.w), (3, 2, 4, 3), ((4, 3, 2),)),
    "einsum-ellipsis-shared": (lambda m, x: torch.einsum("b...i,oi->b...o", x, m.w), (3, 2, 4, 3), ((2, 3),)),
    "einsum-diagonal": (lambda m, x: torch.einsum("btd,d->btd", x, m.w), (3, 2, 4), ((4,),)),
    "einsum-outer": (lambda m, x: torch.einsum("bt,d->btd", x, m.w), (3, 2), ((4,),)),
    "einsum-summed-alone": (lambda m, x: torch.einsum("bi,oik->bo", x, m.w), (3, 2), ((4, 2, 3),)),
    "einsum-input-summed-alone": (lambda m, x: torch.einsum("bit,oi->bo", x, m.w), (3, 2, 5), ((4, 2),)),
    "einsum-broadcast": (lambda m, x: torch.einsum("bti,tio->bto", x, m.w), (3, 4, 2), ((1, 2, 3),)),
    "einsum-three": (lambda m, x: torch.einsum("bti,io,bt->bo", x, m.w, x[..., 0]), (3, 4, 2), ((2, 3),)),
    "einsum-with-itself": (lambda m, x: torch.einsum("bi,oi,oj->bj", x, m.w, m.w), (3, 4), ((5, 4),)),
    "einsum-low-rank": (
        lambda m, x: torch.einsum("bti,ir,ro->bto", x, m.w, m.v),
        (3, 4, 5),
        ((5, 2), (2, 3)),
    ),
}  # fmt: skip


SEVERAL = ("addmm-sequence", "bmm-many-positions", "einsum-mixed-axes", "einsum-low-rank")


def _build(run: Run, shapes: tuple[tuple[int, ...], ...]) -> nn.Module:
    return Function(run, **dict(zip("wv", (torch.randn(shape) for shape in shapes), strict=False)))


@pytest.mark.parametrize(("run", "shape", "shapes"), PRODUCTS.values(), ids=PRODUCTS)
def test_products(run: Run, shape: tuple[int, ...], shapes: tuple[tuple[int, ...], ...]) -> None:
    each_alone(lambda: _build(run, shapes), random(*shape))


@pytest.mark.parametrize(
    "name", ["addmm-sequence", "bmm-many-positions", "einsum-mixed-axes", "einsum-low-rank"]
)
def test_every_way_to_the_numbers(name: str) -> None:
    run, shape, shapes = PRODUCTS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _build(run, shapes).double()
    ways_agree(model, random(*shape))


def ways_agree(model: nn.Module, x: Tensor) -> None:
    """Traces, norms and alignments, exact and from many random probes; reverse products."""
    ntk, expected = NTK(model, x), dense(model, x)
    assert ntk.trace("exact").value == pytest.approx(expected.trace, rel=1e-9)
    assert ntk.frobenius_norm("exact").value == pytest.approx(expected.frobenius_norm, rel=1e-9)
    assert ntk.alignment(ntk, method="exact").value == pytest.approx(1, rel=1e-9)
    assert ntk.trace("per-sample", products=400).value == pytest.approx(expected.trace, rel=0.1)
    assert ntk.frobenius_norm("per-sample", products=40).value == pytest.approx(
        expected.frobenius_norm, rel=0.2
    )
    rows = ntk.vjp(torch.eye(ntk.n, dtype=x.dtype))
    torch.testing.assert_close(rows.T @ rows, expected.kernel)


def test_an_argument_with_the_same_axis_twice_takes_the_general_way() -> None:
    model = Function(lambda m, x: torch.einsum("bi,ii->bi", x, m.w), w=torch.randn(3, 3)).double()
    ntk = agree(model, random(4, 3), {"w"})
    reason = ntk.engine.samples().jacobian.graph.why_general["w"]
    assert reason == "used by einsum in a way that its rule does not cover"


def test_complex_products_take_the_general_way() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return torch.view_as_real(x.to(torch.complex128) @ m.w).flatten(1)

    ntk = NTK(Function(run, w=torch.randn(3, 2, dtype=torch.complex128)), random(4, 3))
    assert ntk.trace("exact").value == pytest.approx(float(ntk.to_dense().trace()), rel=1e-9)
