import numpy as np
import pytest

from ntkscope.operators.composed import as_map
from ntkscope.runs.grams import Grams
from ntkscope.runs.orthonormal import extend_basis


def basis_of(*blocks, dtype=np.float64):
    space = as_map(np.eye(len(blocks[0]), dtype=dtype))
    grams = Grams(space)
    spanned, scale = [], 0.0
    for block in blocks:
        scale = max(scale, np.linalg.norm(block, axis=0).max())
        fresh, columns = extend_basis(space, grams, "Q", block.astype(dtype), scale)
        grams.append("Q", fresh, len(columns))
        spanned.append(sorted(columns))
    return np.hstack(grams.pieces("Q")) if grams.width("Q") else np.zeros((len(blocks[0]), 0)), spanned


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-13), (np.float32, 2e-6)])
def test_orthonormal_and_of_the_same_span(dtype, tolerance):
    rng = np.random.default_rng(0)
    graded = rng.normal(size=(200, 30)) * 10.0 ** -np.arange(0, 3, 0.1)
    other = rng.normal(size=(200, 10))
    Q, spanned = basis_of(graded, other, dtype=dtype)
    assert [len(columns) for columns in spanned] == [30, 10]
    np.testing.assert_allclose(Q.T @ Q, np.eye(40), atol=tolerance)
    for block in (graded, other):
        assert np.abs(block - Q @ (Q.T @ block)).max() < 20 * tolerance


def test_directions_far_below_the_root_of_epsilon_are_found():
    rng = np.random.default_rng(0)
    vectors, _ = np.linalg.qr(rng.normal(size=(100, 20)))
    block = vectors * 10.0 ** -np.arange(0, 10, 0.5) @ np.linalg.qr(rng.normal(size=(20, 20)))[0]
    Q, _ = basis_of(block)
    assert Q.shape == (100, 20)
    np.testing.assert_allclose(Q.T @ Q, np.eye(20), atol=1e-13)
    np.testing.assert_allclose(Q @ (Q.T @ vectors[:, :15]), vectors[:, :15], atol=1e-6)


def test_a_rank_deficient_block_loses_columns():
    rng = np.random.default_rng(0)
    block = rng.normal(size=(60, 4)) @ rng.normal(size=(4, 9))
    Q, spanned = basis_of(block, block @ rng.normal(size=(9, 3)))
    assert Q.shape == (60, 4)
    assert [len(columns) for columns in spanned] == [4, 0]
    assert basis_of(np.zeros((5, 2)))[0].shape == (5, 0)
