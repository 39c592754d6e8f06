"""Measurements: kernels by their names, for people, pandas and files."""

from __future__ import annotations

import builtins
import copy
import json
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch

import ntkscope
from ntkscope import Cost, Estimate, Measurement, Measurements, estimators

TRACE = Estimate(2.0, 0.1, "a <b>", "trace", cost=Cost(5))
NAMES = ("init", "step 10 <b>", "trained")


def _measurement(others: int = 2) -> Measurement:
    cosines = [Estimate(0.5 + index / 10, 0.01, quantity="alignment") for index in range(others)]
    return Measurement({"trace": TRACE}, {"alignment": cosines}, Cost(7, seconds=1.0))


def _all(count: int = 3) -> Measurements:
    return Measurements(_measurement(count - 1) for _ in range(count))


def test_the_alignment_matrix() -> None:
    np.testing.assert_allclose(_all().alignment_matrix(), [[1, 0.5, 0.6], [0.5, 1, 0.6], [0.5, 0.6, 1]])
    np.testing.assert_allclose(_all(2).alignment_stderr(), [[0, 0.01], [0.01, 0]])
    unknown = Measurement({}, {"alignment": [Estimate(math.nan)]})
    assert np.isnan(Measurements([unknown, unknown]).alignment_stderr()[0, 1])
    assert Measurements([unknown, unknown]).to_dict()["alignment_matrix"] == [[1.0, None], [None, 1.0]]
    assert "kernel 1\ntrace" in str(_all())
    assert _all()._repr_html_().count("<table>") == 3


@pytest.mark.parametrize("found", [_all(), _all(1), Measurements(), Measurements([Measurement()])])
def test_from_dict_of_several(found: Measurements) -> None:
    for data in (found.to_dict(), json.loads(json.dumps(found.to_dict(), allow_nan=False))):
        back = Measurements.from_dict(data)
        assert back == found
        assert isinstance(back, Measurements)
        assert ("alignment_matrix" in data) == all("alignment" in one for one in found)


def test_broken_dicts_of_several_name_the_kernel() -> None:
    for broken, message in (
        ({}, "measurements lacks the field 'kernels'"),
        ({"kernels": {}}, r"the field 'kernels' \{\}, expected a list"),
        ({"kernels": [_measurement().to_dict(), {}]}, "kernel 1 cannot be read: a measurement lacks the"),
    ):
        with pytest.raises(ValueError, match=message):
            Measurements.from_dict(broken)


# Names.


def test_tables_name_the_other_kernel_not_its_place_in_a_list() -> None:
    found = _all(4)
    assert found.names == ("kernel 0", "kernel 1", "kernel 2", "kernel 3")
    rows = [name for name, _ in found[2].rows()]
    # The third in the list of kernel 2 is kernel 3.
    assert rows == ["trace", "alignment with kernel 0", "alignment with kernel 1", "alignment with kernel 3"]
    assert rows[-1] in str(found)
    assert rows[-1] in found._repr_html_()
    assert [name for name, _ in found.named("abcd")[0].rows()][-1] == "alignment with d"
    assert found.named(()) == found


def test_kernels_are_had_by_their_names() -> None:
    found = Measurements((_measurement() for _ in NAMES), NAMES)
    assert found["trained"] is found[2] is found[-1]
    assert found[0:2] == [found["init"], found[1]]
    with pytest.raises(KeyError, match="no kernel is named 'end'; the kernels are init, step 10"):
        found["end"]
    assert "step 10 &lt;b&gt;" in found._repr_html_()
    for twin in (
        copy.deepcopy(found),
        pickle.loads(pickle.dumps(found)),
        Measurements.from_dict(found.to_dict()),
    ):
        assert (twin, twin.names) == (found, NAMES)


def test_what_was_written_before_there_were_names_is_read() -> None:
    data = _all().to_dict()
    del data["names"]
    for kernel in data["kernels"]:
        del kernel["others"]
    assert Measurements.from_dict(data) == _all()


def test_wrong_names() -> None:
    with pytest.raises(ValueError, match="found 1 names for 3 kernels; give one for each"):
        _all().named(["a"])
    with pytest.raises(ValueError, match="two kernels are named 'a'; give each a name of its own"):
        _all().named(["a", "b", "a"])
    with pytest.raises(ValueError, match=r"'alignment' has 2 values, for 1 other kernels \(a\); give"):
        Measurement({}, {"alignment": [TRACE, TRACE]}, others=["a"])
    with pytest.raises(TypeError, match=r"names of kernels must be texts, found 3; use str\(3\)"):
        estimators.measure_all({3: np.eye(2)})
    broken = _all().to_dict() | {"names": [1, 2, 3]}
    with pytest.raises(ValueError, match="expected a list of texts"):
        Measurements.from_dict(broken)


def test_measure_all_takes_names() -> None:
    models = [torch.nn.Linear(3, 2), torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))]
    kernels = {name: ntkscope.NTK(model, torch.eye(3)) for name, model in zip("ab", models, strict=True)}
    found = ntkscope.measure_all(kernels, method="exact")
    assert found.names == ("a", "b")
    unnamed = ntkscope.measure_all(list(kernels.values()), method="exact")
    assert [name for name, _ in unnamed[1].rows()][-1] == "alignment with kernel 0"
    assert unnamed.named(("a", "b"))[0].others == ("b",)
    one = kernels["a"].measure({"b": kernels["b"]}, method="exact")
    assert [name for name, _ in one.rows()][-1] == "alignment with b"
    assert one.alignment[0].value == found["a"].alignment[0].value
    of_matrices = estimators.measure_all({"x": np.eye(2), "y": np.eye(2)}, method="exact")
    assert of_matrices["y"].others == ("x",)


# pandas.


def test_to_pandas_has_a_row_for_every_metric_and_pair() -> None:
    pandas = pytest.importorskip("pandas")
    found = Measurements((_measurement() for _ in NAMES), NAMES)
    table = found.to_pandas()
    assert isinstance(table, pandas.DataFrame)
    assert len(table) == 9
    assert list(table.columns[:5]) == ["kernel", "metric", "other", "value", "stderr"]
    matrix = table[table.metric == "alignment"].pivot(index="kernel", columns="other", values="value")
    expected = found.alignment_matrix()
    np.fill_diagonal(expected, math.nan)
    np.testing.assert_array_equal(matrix.loc[list(NAMES), list(NAMES)], expected)
    wide = table[table.other == ""].pivot(index="kernel", columns="metric", values="value")
    assert wide.loc["init", "trace"] == 2.0
    assert table.stderr.dtype == np.float64
    row = table.iloc[0]
    assert (row.low95, row.high95) == TRACE.interval()
    alone = found[0].to_pandas()
    assert list(alone.other) == ["", "step 10 <b>", "trained"]
    unknown = Measurement({"trace": Estimate(1.0)}).to_pandas()
    assert np.isnan(unknown.stderr[0])
    assert len(Measurements().to_pandas()) == 0


def test_without_pandas_an_error_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name == "pandas":
            raise ImportError("no pandas")
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"run pip install pandas, or take records\(\)"):
        _all().to_pandas()
    assert len(_all().records()) == 9
