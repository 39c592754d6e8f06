"""What the terminal offers: completion, help that loads nothing, seeds and JSON everywhere, its own words."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer

import ntkscope
from ntkscope.apps import options
from ntkscope.apps.cli import app
from ntkscope.errors import argument, said, words_of_the_terminal
from terminal import fail, reference, run, succeed, weights

COMMANDS = ("measure", "compare", "spectrum", "explain", "track", "report", "demo", "paper")


def _modules(*arguments: str, **environment: str) -> tuple[str, set[str]]:
    """What a command prints, and the modules that it has loaded at its end."""
    script = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('\\n'.join(sys.modules), file=sys.stderr))\n"
        f"sys.argv = ['ntkscope', *{list(arguments)!r}]\n"
        "from ntkscope.apps.cli import main\n"
        "main()\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    return process.stdout, set(process.stderr.split())


@pytest.mark.parametrize("arguments", [(), *((name,) for name in COMMANDS)], ids=str)
def test_help_loads_neither_torch_nor_numpy(arguments: tuple[str, ...]) -> None:
    # By what is loaded, not by the clock: torch alone takes longer than half a second.
    output, loaded = _modules(*arguments, "--help")
    assert "Usage:" in output
    assert "ntkscope.apps.cli" in loaded
    assert not loaded & {"torch", "numpy", "scipy", "matplotlib", "safetensors"}


def _completed(words: str) -> set[str]:
    output, loaded = _modules(
        _NTKSCOPE_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(len(words.split(" ")) - 1)
    )
    assert "torch" not in loaded
    return set(output.split())


def test_completion() -> None:
    assert _completed("ntkscope me") == {"measure"}
    assert _completed("ntkscope measure m:f --pro") == {"--products"}
    assert _completed("ntkscope measure m:f --metrics trace,fro") == {"trace,frobenius_norm"}
    assert _completed("ntkscope compare m:f --metrics al") == {"alignment"}
    assert _completed("ntkscope explain m:f --metric mea") == {"measure"}
    assert _completed("ntkscope measure m:f --method sk") == {"sketch"}
    assert _completed("ntkscope measure m:f --dtype b") == {"bfloat16"}


def test_completion_can_be_installed() -> None:
    assert "--install-completion" in succeed("--help")


def test_every_command_takes_a_seed_and_all_that_give_numbers_json() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert set(commands) == set(COMMANDS)
    for name, command in commands.items():
        known = {option for parameter in command.params for option in parameter.opts}
        # A report draws what was measured.
        assert ("--seed" in known) == (name != "report"), name
        # The others write files of their own.
        assert ("--json" in known) == (name not in {"paper", "report", "track"}), name


# explain.


def test_explain_takes_a_checkpoint_and_gives_json(folder: Path) -> None:
    command = (
        "explain",
        "toy_models:mlp",
        "-i",
        "x.npz",
        "--checkpoint",
        "w1.safetensors",
        "--metric",
        "trace",
    )
    assert "→" in succeed(*command)
    content = json.loads(succeed(*command, "--json", "-"))
    assert (content["command"], content["schema_version"]) == ("explain", 1)
    assert content["plan"]["choice"] == content["plan"]["ways"][0]["name"]
    assert content["arguments"]["checkpoint"] == "w1.safetensors"
    assert "→" in succeed(*command, "--json", "plan.json")
    assert json.loads((folder / "plan.json").read_text())["plan"]["quantity"] == "trace"
    assert "checkpoint none.pt does not exist" in fail(*command[:4], "--checkpoint", "none.pt")


# Checkpoints.


def test_lightning_checkpoints(folder: Path) -> None:
    torch.save({"epoch": 3, "state_dict": weights(1), "callbacks": {"a": {"best": 0.5}}}, folder / "w.ckpt")
    command = ("measure", "toy_models:mlp", "-i", "x.npz", "--metrics", "trace", "--method", "exact")
    content = json.loads(succeed(*command, "--checkpoint", "w.ckpt", "--json", "-"))
    expected = reference(1, folder).trace("exact").value
    assert content["kernels"][0]["metrics"]["trace"]["value"] == pytest.approx(expected, rel=1e-5)


PREFIXES = {
    "module.": "as DataParallel and DistributedDataParallel saves them",
    "model.": "as a LightningModule, and a trainer that holds the model as .model, saves them",
    "_orig_mod.": "as torch.compile saves them",
}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_are_named_in_the_hint(folder: Path, prefix: str) -> None:
    state = {prefix + name: value for name, value in weights(1).items()} | {"loss.weight": torch.ones(2)}
    torch.save({"state_dict": state}, folder / "w.ckpt")
    message = fail("measure", "toy_models:mlp", "-i", "x.npz", "--checkpoint", "w.ckpt")
    assert f"its keys begin with '{prefix}', {PREFIXES[prefix]}" in message
    assert f"key.removeprefix('{prefix}')" in message


def test_a_prefix_of_the_model_is_named_too(folder: Path) -> None:
    (folder / "toy_wrapped.py").write_text(
        "import torch, toy_models\ndef make():\n    return torch.nn.DataParallel(toy_models.mlp())\n"
    )
    message = fail("measure", "toy_wrapped:make", "-i", "x.npz", "--checkpoint", "w1.safetensors")
    assert "the model's keys begin with 'module.'" in message
    assert "let the factory return the model inside" in message


def test_other_keys_have_no_hint(folder: Path) -> None:
    torch.save({"other": torch.ones(2)}, folder / "w.pt")
    message = fail("measure", "toy_models:mlp", "-i", "x.npz", "--checkpoint", "w.pt")
    assert "begin with" not in message


# Words.

#: What is wrong, and the option that the message names.
WRONG = {
    "measure toy_models:with_inputs --products 1": "use --products 8 or more",
    "measure toy_models:gru --batch-dim 7 --output 0": "--batch-dim 7 is not an axis of an input of shape",
    "measure toy_models:gru --batch-dim 1": "choose the state, such as --output 0",
    "measure toy_models:dropout --train-mode": "leave --train-mode out, or make its randomness an input",
    "measure toy_models:gru --batch-dim none --output 0 --method per-sample": "axis by --batch-dim",
    "measure toy_models:huge --method sketch": "--dtype float64",
    "measure toy_models:with_inputs --products 9 --rtol 0.1": "--products and --rtol exclude each other",
}


@pytest.mark.parametrize(("command", "words"), WRONG.items())
def test_errors_name_options_and_no_arguments_in_python(folder: Path, command: str, words: str) -> None:
    message = fail(*command.split())
    assert words in message
    assert not re.search(r"\b(products|rtol|method|batch_dim|outputs|layer|seed|dtype|model)=", message), (
        message
    )
    assert "model.double()" not in message
    assert "model.eval()" not in message


def test_python_keeps_its_own_words(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"products=1 is too small: .* use products=3 or more"):
        reference(1, folder).trace("hutch++", products=1)
    run("measure", "toy_models:with_inputs", "--products", "1")
    assert argument("products", 1) == "products=1"
    with words_of_the_terminal():
        assert argument("memory_budget", 1) == "--memory-budget 1"
        assert said("a", "b") == "b"
    assert said("a", "b") == "a"


def test_methods_of_the_options_are_those_of_the_library() -> None:
    assert options.methods() == ntkscope.measure.METHODS
