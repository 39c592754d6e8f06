"""Measurement: metrics by their names, for type checkers, people, programs and files."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
from collections.abc import Mapping
from pathlib import Path

import pytest

from ntkscope import Cost, Estimate, Measurement, results

TRACE = Estimate(2.0, 0.1, "a <b>", "trace", cost=Cost(5))
NORM = Estimate(3.0, math.inf, "sketch", "frobenius_norm")


def _measurement(others: int = 2) -> Measurement:
    cosines = [Estimate(0.5 + index / 10, 0.01, quantity="alignment") for index in range(others)]
    return Measurement({"trace": TRACE, "frobenius_norm": NORM}, {"alignment": cosines}, Cost(7, seconds=1.0))


def test_it_is_a_mapping_of_names() -> None:
    found = _measurement()
    assert isinstance(found, Mapping)
    assert list(found) == ["trace", "frobenius_norm", "alignment"]
    assert len(found) == 3
    assert found["trace"] is found.trace is TRACE
    assert found["alignment"][1] is found.alignment[1]
    assert "trace" in found
    assert "effective_rank" not in found
    assert found.get("effective_rank") is None
    assert dict(found)["frobenius_norm"] is found.frobenius_norm
    assert hasattr(found, "trace")
    assert not hasattr(found, "effective_rank")


MISSING = (
    "'effective_rank' was not measured; this measurement holds trace, frobenius_norm, alignment; "
    r"measure a metric alone by the kernel's method of its name, such as ntk.trace\(\)"
)


def test_what_was_not_measured_says_so() -> None:
    found = _measurement()
    with pytest.raises(KeyError, match=MISSING):
        found["effective_rank"]
    with pytest.raises(AttributeError, match=MISSING):
        _ = found.effective_rank
    with pytest.raises(AttributeError, match="'trase' was not measured"):
        found.trase  # noqa: B018
    with pytest.raises(AttributeError, match="'trace' was not measured; this measurement holds nothing"):
        _ = Measurement().trace


def test_metrics_of_the_future_need_no_change_here() -> None:
    found = Measurement({"entropy": Estimate(1.5)}, {"inner_product": [Estimate(4.0)]})
    assert found["entropy"].value == found.entropy.value == 1.5  # type: ignore[attr-defined]
    assert found.inner_product[0].value == 4.0  # type: ignore[attr-defined]
    assert [name for name, _ in found.rows()] == ["entropy", "inner product"]
    assert Measurement.from_dict(found.to_dict()) == found


def test_it_is_frozen_and_keeps_what_it_was_given() -> None:
    estimates, cosines = {"trace": TRACE}, [NORM]
    found = Measurement(estimates, {"alignment": cosines})
    estimates["frobenius_norm"] = NORM
    cosines.append(TRACE)
    assert list(found) == ["trace", "alignment"]
    assert found.alignment == [NORM]
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.cost = Cost(1)  # type: ignore[misc]
    with pytest.raises(AttributeError):
        found.trace = NORM  # type: ignore[misc]


@pytest.mark.parametrize(
    ("estimates", "pairs", "name"),
    [
        ({"others": TRACE}, {}, "others"),
        ({"cost": TRACE}, {}, "cost"),
        ({}, {"cost": [TRACE]}, "cost"),
        ({"x": TRACE}, {"x": []}, "x"),
    ],
)
def test_names_are_not_given_twice(
    estimates: dict[str, Estimate], pairs: dict[str, list[Estimate]], name: str
) -> None:
    with pytest.raises(ValueError, match=f"a metric cannot be named '{name}' here, it is taken"):
        Measurement(estimates, pairs)


def test_copies_and_pickles_are_equal() -> None:
    found = _measurement()
    assert copy.copy(found) == copy.deepcopy(found) == pickle.loads(pickle.dumps(found)) == found
    assert found != found.map(lambda estimate: dataclasses.replace(estimate, note="other"))
    assert found != dataclasses.replace(found, cost=Cost())
    assert found != dict(found)


def test_map_and_with_estimates() -> None:
    found = _measurement()
    noted = found.map(lambda estimate: dataclasses.replace(estimate, note="seen"))
    assert {estimate.note for _, estimate in noted.rows()} == {"seen"}
    assert noted.cost == found.cost
    assert noted.map(lambda estimate: dataclasses.replace(estimate, note="")) == found
    more = found.with_estimates({"trace": NORM, "effective_rank": TRACE}, Cost(9))
    assert list(more) == ["trace", "frobenius_norm", "effective_rank", "alignment"]
    assert (more.trace, more.effective_rank, more.cost) == (NORM, TRACE, Cost(9))
    assert found.with_estimates({}) == found


def test_rows_and_text() -> None:
    names = ["trace", "frobenius norm", "alignment[0]", "alignment[1]"]
    assert [name for name, _ in _measurement().rows()] == names
    assert [name for name, _ in _measurement(1).rows()][-1] == "alignment"
    lines = repr(_measurement(1)).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["trace", "frobenius norm", "alignment", "together"]
    assert lines[0] == f"trace           {TRACE}"
    assert lines[-1] == "together        7 products, 1 s"
    long = Measurement({"a_name_of_twenty_one": TRACE})
    assert str(long).splitlines() == [f"a name of twenty one  {TRACE}", f"together{' ' * 14}0 s"]


def test_html_is_escaped() -> None:
    html = _measurement()._repr_html_()
    assert "a &lt;b&gt;" in html
    assert "<b>a" not in html
    assert "frobenius norm" in html
    assert html.count("<tr>") == 5


# Files.


def test_to_dict_is_json() -> None:
    data = json.loads(json.dumps(_measurement().to_dict(), allow_nan=False))
    assert list(data) == ["trace", "frobenius_norm", "alignment", "cost"]
    assert data["trace"]["value"] == 2.0
    assert len(data["alignment"]) == 2
    assert data["cost"]["products"] == 7


@pytest.mark.parametrize("others", [0, 1, 3])
def test_from_dict_is_inverse_to_to_dict(others: int) -> None:
    found = _measurement(others)
    assert Measurement.from_dict(found.to_dict()) == found
    assert Measurement.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found
    assert list(Measurement.from_dict(found.to_dict())) == list(found)


def test_broken_dicts_name_the_field() -> None:
    data = _measurement().to_dict()
    for broken, message in (
        (None, "a measurement must be a dict, found None"),
        ({"trace": data["trace"]}, "a measurement lacks the field 'cost'; its fields are 'trace'"),
        (data | {"trace": 3}, "the metric 'trace' cannot be read: an estimate must be a dict, found 3"),
        (data | {"alignment": [{}]}, "the metric 'alignment' cannot be read: an estimate lacks the field"),
    ):
        with pytest.raises(ValueError, match=message):
            Measurement.from_dict(broken)


# Type checkers.

USER = """
from ntkscope.results import Estimate, Measurement

def read(m: Measurement) -> float:
    estimate: Estimate = m["trace"]
    several: list[Estimate] = m["alignment"]
    future = m["some_day"]
    return m.trace.value + m.alignment[0].value + estimate.value + len(several) + float(future)
"""
MISSPELT = """
from ntkscope.results import Measurement

def read(m: Measurement) -> None:
    print(m.trase)
    print(m["trace"].vlaue)
    print(m.alignment.value)
"""
CALLER = """
from ntkscope import NTK, Options, measure_all

def read(ntk: NTK) -> float:
    near = Options(rtol=0.1, seed=3)
    one = ntk.trace(method="hutch++", rtol=0.1).value + ntk.trace(options=near, seconds=2.0).value
    two = ntk.effective_rank("sketch", 60, 1, trace_method="per-sample").value
    m = ntk.measure([ntk], metrics=("trace", "inner_product"), options=near)
    several = measure_all([ntk, ntk], "exact")
    return one + two + m.trace.value + several[0].alignment[0].value + ntk.metric("trace", rtol=0.1).value
"""
WRONG_CALLS = """
from ntkscope import NTK, Options, measure_all

def read(ntk: NTK) -> None:
    ntk.trace(method="hutch+")
    ntk.trace(rtoll=1)
    ntk.frobenius_norm("rhutch")
    ntk.effective_rank(trace_method="hutch++")
    ntk.trace(rtol="1%")
    ntk.trace(options={"rtol": 0.1})
    Options(rtoll=0.1)
    measure_all([ntk], methd="exact")
    ntk.measure().trace.vlaue
"""


def _check_types(folder: Path, sources: list[Path], codes: dict[str, str]) -> dict[str, list[str]]:
    """What ``mypy --strict`` says of each piece of code, line by line."""
    api = pytest.importorskip("mypy.api")
    files = [folder / f"{name}.py" for name in codes]
    for file, code in zip(files, codes.values(), strict=True):
        file.write_text(code)
    # What the sources import besides themselves need not be read: it takes long, and is not asked.
    options = ["--strict", "--follow-imports=skip", "--no-error-summary", "--config-file="]
    cache = ["--cache-dir", str(folder / "cache")]
    output, errors, _ = api.run([*options, *cache, *map(str, sources), *map(str, files)])
    assert errors == ""
    lines = output.splitlines()
    return {
        file.stem: [line for line in lines if line.startswith(str(file)) and ": error:" in line]
        for file in files
    }


def test_user_code_passes_a_strict_type_checker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = Path(results.__file__).parent
    monkeypatch.setenv("MYPYPATH", str(package.parents[1]))
    found = _check_types(tmp_path, [*package.glob("*.py")], {"user": USER, "misspelt": MISSPELT})
    assert found["user"] == []
    assert ["has no attribute" in line for line in found["misspelt"]] == [True, True, True], found


def test_misspelt_methods_and_options_are_caught_by_a_strict_type_checker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(results.__file__).parents[1]
    monkeypatch.setenv("MYPYPATH", str(root.parent))
    sources = [root / name for name in ("__init__.py", "ntk.py", "settings.py")]
    sources += [*(root / "results").glob("*.py"), *(root / "verbs").glob("*.py")]
    found = _check_types(tmp_path, sources, {"caller": CALLER, "wrong": WRONG_CALLS})
    assert found["caller"] == []
    expected = {
        "5": "incompatible type \"Literal['hutch+']\"",
        "6": 'Unexpected keyword argument "rtoll"',
        "7": "incompatible type \"Literal['rhutch']\"",
        "8": "incompatible type \"Literal['hutch++']\"",
        "9": 'Argument "rtol" to "trace" of "MetricVerbs" has incompatible type "str"',
        "10": 'Argument "options" to "trace" of "MetricVerbs" has incompatible type "dict[str, float]"',
        "11": 'Unexpected keyword argument "rtoll" for "Options"',
        "12": 'Unexpected keyword argument "methd"',
        "13": '"Estimate" has no attribute "vlaue"',
    }
    said = {line.split(":")[1]: line for line in found["wrong"]}
    assert said.keys() == expected.keys(), found["wrong"]
    for number, words in expected.items():
        assert words in said[number]
