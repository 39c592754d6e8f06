from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import ntkscope
from ntkscope.report import KernelNumbers
from terminal import fail, reference, run, succeed

# What works.


def test_measure_prints_the_three_numbers(folder: Path) -> None:
    output = succeed("measure", "toy_models:mlp", "--inputs", "x.npz", "--checkpoint", "w1.safetensors")
    assert "state 5×3 (n=15), 83 parameters, float32, cpu" in output
    for metric in ("trace", "Frobenius norm", "effective rank"):
        assert metric in output
    assert f"{reference(1, folder).trace('exact').value:.4g}"[:4] in output


def test_measure_writes_documented_json(folder: Path) -> None:
    succeed(
        *("measure", "toy_models:mlp", "-i", "x.npz", "--checkpoint", "w1.safetensors"),
        *("--method", "exact", "--json", "out.json"),
    )
    content = json.loads((folder / "out.json").read_text())
    assert list(content) == ["schema_version", "command", "versions", "arguments", "kernels", "alignments"]
    assert content["schema_version"] == 1
    assert content["command"] == "measure"
    assert content["versions"]["ntkscope"] == ntkscope.__version__
    assert content["versions"]["torch"] == torch.__version__
    assert content["arguments"]["factory"] == "toy_models:mlp"
    (kernel,) = content["kernels"]
    assert (kernel["n"], kernel["n_params"], kernel["output_shape"]) == (15, 83, [5, 3])
    expected = reference(1, folder).measure(method="exact")
    for name in ("trace", "frobenius_norm", "effective_rank"):
        assert kernel["metrics"][name]["value"] == pytest.approx(getattr(expected, name).value, rel=1e-5)
        assert kernel["metrics"][name]["stderr"] == 0
        read = ntkscope.Estimate.from_dict(kernel["metrics"][name])
        assert (read.method, read.quantity) == (expected[name].method, name)


def test_json_to_stdout_is_all_there_is(folder: Path) -> None:
    output = succeed("measure", "toy_models:with_inputs", "--metrics", "trace", "--json", "-")
    assert list(json.loads(output)["kernels"][0]["metrics"]) == ["trace"]


def test_measure_draws_a_picture(folder: Path) -> None:
    succeed("measure", "toy_models:with_inputs", "--plot", "out.png")
    with Image.open(folder / "out.png") as picture:
        assert picture.width > 600
        assert picture.height > 300


def test_the_same_seed_gives_the_same_model_and_numbers(folder: Path) -> None:
    command = ("measure", "toy_models:with_inputs", "--method", "hutch++", "--products", "12", "--json", "-")
    first, again, other = (
        json.loads(succeed(*command, "--seed", seed))["kernels"][0]["metrics"]["trace"]["value"]
        for seed in ("3", "3", "4")
    )
    assert first == again != other


def test_one_metric_by_its_own_method(folder: Path) -> None:
    command = ("measure", "toy_models:with_inputs", "--metrics", "trace", "--method", "rhutch")
    assert "rhutch" in succeed(*command, "--products", "9")


def test_several_arrays_are_keyword_arguments(folder: Path) -> None:
    command = ("measure", "toy_models:Two", "--inputs", "two.npz", "--json", "-")
    content = json.loads(succeed(*command, "--output", "sum"))
    assert content["kernels"][0]["output_shape"] == [5, 3]


def test_recurrent_models_by_axis_and_output(folder: Path) -> None:
    command = ("measure", "toy_models:gru", "--metrics", "trace", "--json", "-", "--output", "0")
    along = json.loads(succeed(*command, "--batch-dim", "1", "--method", "exact"))
    whole = json.loads(succeed(*command, "--batch-dim", "none", "--method", "exact"))
    values = [content["kernels"][0]["metrics"]["trace"]["value"] for content in (along, whole)]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_a_layer_and_a_dtype(folder: Path) -> None:
    command = ("measure", "toy_models:with_inputs", "--layer", "0", "--dtype", "float64", "--json", "-")
    (kernel,) = json.loads(succeed(*command))["kernels"]
    assert kernel["output_shape"] == [4, 8]
    assert kernel["dtype"] == "float64"


def test_models_are_put_in_eval_mode(folder: Path) -> None:
    succeed("measure", "toy_models:dropout")
    assert "it is random (dropout?)" in fail("measure", "toy_models:dropout", "--train-mode")


def test_compare_gives_the_alignment(folder: Path) -> None:
    output = succeed(
        *("compare", "toy_models:mlp", "w1.safetensors", "w2.safetensors", "-i", "x.npz"),
        *("--method", "exact", "--json", "both.json", "--plot", "both.png"),
    )
    assert "alignment" in output
    content = json.loads((folder / "both.json").read_text())
    assert [kernel["name"] for kernel in content["kernels"]] == ["w1", "w2"]
    (alignment,) = content["alignments"]
    assert alignment["between"] == ["w1", "w2"]
    expected = reference(1, folder).alignment(reference(2, folder), method="exact").value
    assert alignment["value"] == pytest.approx(expected, rel=1e-5)
    norms = [kernel["metrics"]["frobenius_norm"]["value"] for kernel in content["kernels"]]
    assert norms[1] == pytest.approx(reference(2, folder).frobenius_norm("exact").value, rel=1e-5)
    assert (folder / "both.png").stat().st_size > 10_000


def test_spectrum_shows_eigenvalues(folder: Path) -> None:
    output = succeed(
        "spectrum", "toy_models:with_inputs", "--json", "out.json", "--plot", "out.png", "--dtype", "float64"
    )
    assert "eigenvalue 10" in output
    content = json.loads((folder / "out.json").read_text())
    assert content["command"] == "spectrum"
    found = content["spectrum"]
    assert found["eigenvalues"] == sorted(found["eigenvalues"], reverse=True)
    assert ntkscope.Estimate.from_dict(found["estimates"]["trace"]).stderr == 0
    assert sum(found["eigenvalues"]) <= found["estimates"]["trace"]["value"] * (1 + 1e-9)
    with Image.open(folder / "out.png") as picture:
        assert picture.width > 600


def test_explain_names_the_ways(folder: Path) -> None:
    output = succeed("explain", "toy_models:with_inputs", "--metric", "trace")
    assert "exact (per sample)" in output
    assert "→" in output


def test_version_and_help(folder: Path) -> None:
    assert succeed("--version") == f"ntkscope {ntkscope.__version__} (torch {torch.__version__})\n"
    for arguments in ((), ("--help",)):
        assert "compare" in succeed(*arguments)


# What does not.

BAD_FACTORIES = {
    "toy_models": "expected package.module:factory, found 'toy_models'; for a function make()",
    "toy_models.py:mlp": "expected a module, found the file 'toy_models.py'; write toy_models:mlp",
    "no_such_module:make": "no module named 'no_such_module'; looked in",
    "toy_broken:make": "module 'toy_broken' does not import: ModuleNotFoundError: No module named",
    "toy_models:make": "module 'toy_models' has no attribute 'make'; it has Slow, Two, dropout",
    "toy_models:number": "toy_models:number is a int, expected a function without arguments",
    "toy_models:fails": "the factory toy_models:fails failed: RuntimeError: no weights today (toy_models.py,",
    "toy_models:returns_list": "the factory toy_models:returns_list returned a list, expected a torch.nn",
}


@pytest.mark.parametrize(("factory", "message"), BAD_FACTORIES.items())
def test_bad_factories(folder: Path, factory: str, message: str) -> None:
    assert message in fail("measure", factory, "--inputs", "x.npz")


BAD_OPTIONS = {
    "--inputs no.npz": "inputs no.npz does not exist",
    "--inputs wide.npz": "the model failed on the inputs ((5, 7) torch.float32): RuntimeError: mat1 and mat2",
    "--metrics trace,size": "unknown metric 'size'; choose from trace, frobenius_norm, effective_rank",
    "--metrics ,": "unknown metric ','; choose from trace",
    "--method magic": "unknown method 'magic'; choose from auto, exact, fhutch",
    "--method rhutch": "method 'rhutch' is for trace alone; add --metrics trace, or choose from auto, exact",
    "--products 1": "--products 1 is too small: this method needs at least",
    "--products 50 --rtol 0.1": "--products and --rtol exclude each other",
    "--rtol -1": "--rtol must be positive, found -1.0",
    "--seed -1": "Invalid value for '--seed'",
    "--batch-dim first": "--batch-dim must be a number or none, found 'first'",
    "--dtype int8": "unknown dtype 'int8'; choose from float64, float32, bfloat16, float16",
    "--device nowhere": "device 'nowhere' cannot be used here",
    "--layer nine": "the model has no submodule 'nine'; its submodules are: 0, 1, 2",
    "--output logits": "--output logits: the model returned one tensor; leave --output out",
    "--checkpoint none.safetensors": "checkpoint none.safetensors does not exist",
    "--json no/out.json": "cannot write no/out.json: there is no folder no",
    "--json .": "cannot write .: it is a folder",
    "--plot out.txt": "cannot write out.txt: its name must end in .png or .pdf or .svg",
    "--json same.png --plot ./same.png": "--json and --plot are the same file same.png",
    "--json link --plot linked.png": "--json and --plot are the same file linked.png",
    "--json x.npz": "--inputs and --json are the same file x.npz; name another one by --json",
    "--json w2.safetensors --checkpoint w2.safetensors": "--checkpoint and --json are the same file",
    "--json kept.json": "cannot write kept.json: it is read-only; make it writable or name another file",
    "--plot kept.png": "cannot write kept.png: it is read-only; make it writable or name another file",
    "--colour red": "No such option: --colour",
}


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS.items())
def test_bad_options(folder: Path, options: str, message: str) -> None:
    (folder / "link").symlink_to("linked.png")
    for name in ("kept.json", "kept.png"):
        (folder / name).write_text("kept")
        (folder / name).chmod(0o444)
    command = ["measure", "toy_models:mlp", "--inputs", "x.npz", *options.split()]
    assert message in fail(*command)
    assert (folder / "kept.json").read_text() == "kept"


def test_results_may_go_into_a_device(folder: Path) -> None:
    # By a link of our own, so that a mistake would not break the machine.
    (folder / "null").symlink_to("/dev/null")
    succeed("measure", "toy_models:with_inputs", "--metrics", "trace", "--json", "null")
    assert (folder / "null").is_symlink()
    assert Path("/dev/null").is_char_device()


def test_comparing_a_checkpoint_with_itself_is_fine_but_not_writing_over_it(folder: Path) -> None:
    command = ("compare", "toy_models:mlp", "w1.safetensors", "w1.safetensors", "-i", "x.npz")
    assert "alignment" in succeed(*command)
    before = (folder / "w1.safetensors").read_bytes()
    assert "checkpoint 1 and --json are the same file w1.safetensors" in fail(
        *command, "--json", "w1.safetensors"
    )
    assert (folder / "w1.safetensors").read_bytes() == before


def test_missing_inputs(folder: Path) -> None:
    message = "toy_models:mlp returned no inputs; name a file of them with --inputs"
    assert fail("measure", "toy_models:mlp") == message


def test_outputs_that_are_not_there(folder: Path) -> None:
    message = "--output third: the model returned a dict without it"
    assert message in fail("measure", "toy_models:Two", "--inputs", "two.npz", "--output", "third")


def test_states_of_several_parts_name_the_option(folder: Path) -> None:
    message = fail("measure", "toy_models:gru", "--batch-dim", "1")
    assert message == (
        "the model returned a tuple of (Tensor, Tensor), expected one tensor; "
        "choose the state, such as --output 0"
    )


def test_unknown_commands_and_metrics(folder: Path) -> None:
    assert "No such command 'mesure'" in fail("mesure")
    assert "unknown metric 'rank'" in fail("explain", "toy_models:with_inputs", "--metric", "rank")
    assert "'rhutch' is for trace alone; add --metrics trace, or choose" in fail(
        *(
            "compare",
            "toy_models:mlp",
            "w1.safetensors",
            "w2.safetensors",
            "-i",
            "x.npz",
            "--method",
            "rhutch",
        )
    )


def test_outputs_are_checked_before_anything_is_computed(folder: Path) -> None:
    assert "there is no folder" in fail("measure", "toy_models:fails", "--json", "none/out.json")


def test_debug_shows_the_traceback(folder: Path) -> None:
    result = run("measure", "toy_models:fails", "--debug")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert "no weights today" in result.stderr


def test_unexpected_errors_are_one_line_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr("ntkscope.report.measure_kernel", broken)
    assert fail("measure", "toy_models:with_inputs") == "KeyError: 'oops' (--debug shows where)"


def test_what_was_known_at_ctrl_c_is_printed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(name: str, kernel: ntkscope.NTK, *rest: object, **options: object) -> object:
        estimate = ntkscope.Estimate(12.5, 1.0, "sketch", "trace", note="interrupted")
        return KernelNumbers(name, kernel, {"trace": estimate}, ntkscope.Cost(4)), ()

    monkeypatch.setattr("ntkscope.report.measure_kernel", interrupted)
    result = run("measure", "toy_models:with_inputs", "--json", "out.json")
    assert (result.exit_code, result.stderr) == (130, "ntkscope: interrupted\n")
    assert "12.5 ± 1.0" in result.stdout
    assert "note: trace: interrupted" in result.stdout
    assert (folder / "out.json").exists()


# Real processes.


def _start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ntkscope", *arguments]
    pipe = subprocess.PIPE
    # Torch 2.6 leaves a temporary directory of its own to the interpreter's end.
    warnings = "error,ignore:Implicitly cleaning up <TemporaryDirectory:ResourceWarning"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": warnings}
    return subprocess.Popen(
        command,
        cwd=folder,
        stdout=pipe,
        stderr=pipe,
        text=True,
        env=environment,
        # Tests that run in the background of a shell inherit that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_a_real_process_fails_in_one_line(folder: Path) -> None:
    process = _start(folder, "measure", "toy_models:mlp", "--inputs", "none.npz")
    output, error = process.communicate(timeout=120)
    assert (process.returncode, output) == (2, "")
    assert error == "ntkscope: inputs none.npz does not exist\n"


def test_a_real_process_succeeds_without_a_word_on_stderr(folder: Path) -> None:
    process = _start(folder, "measure", "toy_models:with_inputs", "--plot", "out.png")
    output, error = process.communicate(timeout=120)
    assert (process.returncode, error) == (0, "")
    assert "effective rank" in output


def test_ctrl_c_is_one_line_and_130(folder: Path) -> None:
    process = _start(folder, "measure", "toy_models:slow")
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    # The first one waits for the pass, which takes a minute.
    for _ in range(2):
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error == "ntkscope: interrupted\n"
