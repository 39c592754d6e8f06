"""Checkpoints are compared: any number of them, by one method, and what is known at Ctrl-C is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import save_file

import ntkscope
from ntkscope.report import KernelNumbers, measure_kernels
from terminal import fail, reference, run, succeed, weights

TWO = ("compare", "toy_models:mlp", "w1.safetensors", "w2.safetensors", "-i", "x.npz")


def _read(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(succeed(*arguments, "--json", "-"))
    return found


@pytest.mark.parametrize("method", ["auto", "exact", "sketch", "hutch++"])
def test_one_metric_is_measured_by_one_method_on_both_sides(folder: Path, method: str) -> None:
    for metric in ("trace", "frobenius_norm"):
        content = _read(*TWO, "--metrics", metric, "--method", method)
        one, two = (kernel["metrics"] for kernel in content["kernels"])
        assert list(one) == list(two) == [metric]
        assert one[metric]["method"] == two[metric]["method"]
        # What was not asked for is not paid for.
        assert content["alignments"] == []


def test_a_method_of_the_trace_alone_compares_traces(folder: Path) -> None:
    content = _read(*TWO, "--metrics", "trace", "--method", "rhutch", "--products", "9")
    assert [kernel["metrics"]["trace"]["method"] for kernel in content["kernels"]] == ["rhutch", "rhutch"]


def test_the_alignment_alone(folder: Path) -> None:
    content = _read(*TWO, "--metrics", "alignment", "--method", "exact")
    assert [kernel["metrics"] for kernel in content["kernels"]] == [{}, {}]
    expected = reference(1, folder).alignment(reference(2, folder), method="exact").value
    assert content["alignments"][0]["value"] == pytest.approx(expected, rel=1e-5)
    assert "alignment" in succeed(*TWO, "--metrics", "alignment", "--plot", "out.png")
    assert (folder / "out.png").stat().st_size > 5_000


@pytest.mark.parametrize("method", ["exact", "sketch", "hutch++"])
def test_any_number_of_checkpoints(folder: Path, method: str) -> None:
    for seed in (3, 4, 5):
        save_file(weights(seed), folder / f"w{seed}.safetensors")
    files = [f"w{seed}.safetensors" for seed in range(1, 6)]
    command = ("compare", "toy_models:mlp", *files, "-i", "x.npz", "--method", method, "--rtol", "0.2")
    content = _read(*command, "--plot", "five.png")
    names = [file.removesuffix(".safetensors") for file in files]
    assert [kernel["name"] for kernel in content["kernels"]] == names
    assert content["arguments"]["checkpoints"] == files
    pairs = [tuple(alignment["between"]) for alignment in content["alignments"]]
    assert pairs == [(a, b) for place, a in enumerate(names) for b in names[place + 1 :]]
    assert all(kernel["cost"]["products"] + kernel["cost"]["vjps"] > 0 for kernel in content["kernels"])
    if method == "exact":
        expected = reference(2, folder).alignment(reference(4, folder), method="exact").value
        found = {tuple(a["between"]): a["value"] for a in content["alignments"]}
        assert found["w2", "w4"] == pytest.approx(expected, rel=1e-5)
    with Image.open(folder / "five.png") as picture:
        assert picture.height > 800
    output = succeed(*command)
    assert "alignment with w1" in output
    assert all(name in output for name in names)


def test_one_checkpoint_is_not_compared(folder: Path) -> None:
    message = fail("compare", "toy_models:mlp", "w1.safetensors", "-i", "x.npz")
    assert message == (
        "compare takes two checkpoints or more, found one; for one there is ntkscope measure --checkpoint"
    )


def test_checkpoints_of_one_name_are_told_apart(folder: Path) -> None:
    (folder / "old").mkdir()
    save_file(weights(7), folder / "old" / "w1.safetensors")
    files = ("w1.safetensors", "old/w1.safetensors", "w1.safetensors")
    content = _read("compare", "toy_models:mlp", *files, "-i", "x.npz", "--metrics", "trace")
    names = [kernel["name"] for kernel in content["kernels"]]
    assert names == ["w1.safetensors (1)", "old/w1.safetensors", "w1.safetensors (2)"]


# Ctrl-C.


def test_ctrl_c_in_shared_work_keeps_every_kernel(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = ntkscope.measure_all

    def interrupted(kernels: Any, *, metrics: Any, **options: Any) -> Any:
        calls = iter(range(3))

        def stop(*_: Any) -> None:
            if next(calls) == 2:
                raise KeyboardInterrupt

        return original(kernels, metrics=metrics, **{**options, "progress": stop})

    monkeypatch.setattr(ntkscope, "measure_all", interrupted)
    result = run(*TWO, "--method", "sketch", "--rtol", "1e-9", "--json", "out.json")
    assert (result.exit_code, result.stderr) == (130, "ntkscope: interrupted\n")
    assert "note: " in result.stdout
    content = json.loads((folder / "out.json").read_text())
    assert [list(kernel["metrics"]) for kernel in content["kernels"]] == [
        ["trace", "frobenius_norm", "effective_rank"]
    ] * 2
    assert len(content["alignments"]) == 1


def test_ctrl_c_between_kernels_keeps_those_that_are_done(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def second(name: str, kernel: ntkscope.NTK, *rest: object, **options: object) -> object:
        if name == "w2":
            raise KeyboardInterrupt
        return KernelNumbers(name, kernel, {"trace": ntkscope.Estimate(12.5, 1.0)}, ntkscope.Cost(4)), ()

    monkeypatch.setattr("ntkscope.report.measure_kernel", second)
    result = run(*TWO, "--method", "hutch++", "--json", "out.json", "--plot", "out.png")
    assert (result.exit_code, result.stderr) == (130, "ntkscope: interrupted\n")
    assert "12.5 ± 1.0" in result.stdout
    assert [kernel["name"] for kernel in json.loads((folder / "out.json").read_text())["kernels"]] == ["w1"]
    assert (folder / "out.png").exists()


def test_ctrl_c_before_anything_is_known_is_an_interruption(folder: Path) -> None:
    def never(*_: object, **__: object) -> object:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ntkscope.report.measure_kernel", never)
        result = run(*TWO, "--method", "hutch++")
        with pytest.raises(KeyboardInterrupt):
            measure_kernels({"a": reference(1, folder)}, method="hutch++")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "ntkscope: interrupted\n")
