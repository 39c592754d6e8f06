from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ntkscope.apps.loading import LoadingError, cast_inputs, load_checkpoint, load_inputs
from ntkscope.files import check_writable, write_whole

X, Y = np.arange(6.0).reshape(2, 3), np.arange(4)


# Inputs.


def test_one_array_is_the_positional_argument(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", anything=X)
    np.save(tmp_path / "b.npy", X)
    save_file({"anything": torch.from_numpy(X)}, tmp_path / "c.safetensors")
    torch.save(torch.from_numpy(X), tmp_path / "d.pt")
    for name in ("a.npz", "b.npy", "c.safetensors", "d.pt"):
        found = load_inputs(tmp_path / name)
        assert isinstance(found, torch.Tensor)
        np.testing.assert_array_equal(found.numpy(), X)


def test_named_arrays_are_keyword_arguments(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X, index=Y)
    save_file({"x": torch.from_numpy(X), "index": torch.from_numpy(Y)}, tmp_path / "b.safetensors")
    torch.save({"x": torch.from_numpy(X), "index": torch.from_numpy(Y)}, tmp_path / "c.pt")
    for name in ("a.npz", "b.safetensors", "c.pt"):
        found = load_inputs(tmp_path / name)
        assert isinstance(found, dict)
        assert set(found) == {"x", "index"}
        assert found["index"].dtype == torch.int64


def test_numbered_arrays_are_positional_in_order(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", *[np.full(2, float(number)) for number in range(11)])
    torch.save([torch.zeros(2), torch.ones(2)], tmp_path / "b.pt")
    found = load_inputs(tmp_path / "a.npz")
    assert isinstance(found, tuple)
    assert [float(tensor[0]) for tensor in found] == list(range(11))
    assert isinstance(load_inputs(tmp_path / "b.pt"), tuple)


def test_arrays_of_the_other_byte_order(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", X.astype(">f8"))
    found = load_inputs(tmp_path / "a.npy")
    assert isinstance(found, torch.Tensor)
    np.testing.assert_array_equal(found.numpy(), X)


def _pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"x": [1.0]}))


BAD_INPUTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "none.npz": (lambda path: None, "does not exist"),
    "folder.npz": (Path.mkdir, "is not a file"),
    "empty.npz": (lambda path: path.write_bytes(b""), "is empty"),
    "data.csv": (lambda path: path.write_text("1,2"), "ends in '.csv', expected one of .npz, .npy"),
    "text.npz": (
        lambda path: path.write_text("hello"),
        "cannot be read as .npz: ValueError: it is not an npz",
    ),
    "text.npy": (
        lambda path: path.write_text("hello"),
        "cannot be read as .npy: ValueError: it is not an npy",
    ),
    "text.safetensors": (lambda path: path.write_text("hello"), "cannot be read as .safetensors"),
    "pickled.npy": (_pickled, "it is not an npy array"),
    "pickled.pt": (
        lambda path: torch.save(Path("x"), path),
        "cannot be read as plain tensors, and nothing else",
    ),
    "words.npz": (
        lambda path: np.savez(path, x=np.array(["a"])),
        "array 'x' has dtype <U1, expected numbers",
    ),
    "objects.npz": (
        lambda path: np.savez(path, x=np.array([{}])),
        "cannot be read as .npz: ValueError: Object",
    ),
    "nothing.npz": (lambda path: np.savez(path), "hold no array, expected a tensor, or a tuple or dict"),
    "number.pt": (lambda path: torch.save(3, path), "hold a int, expected a tensor, or a tuple or dict"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_inputs_say_what_is_wrong(tmp_path: Path, name: str) -> None:
    write, message = BAD_INPUTS[name]
    write(tmp_path / name)
    with pytest.raises(LoadingError) as caught:
        load_inputs(tmp_path / name)
    assert message in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_half_an_archive_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "half.npz"
    np.savez(path, x=np.zeros(1000))
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(LoadingError, match=r"half\.npz cannot be read as \.npz"):
        load_inputs(path)


def test_floating_inputs_take_the_dtype_of_the_model() -> None:
    model = nn.Linear(3, 2).to(torch.bfloat16)
    found = cast_inputs({"x": torch.from_numpy(X), "index": torch.from_numpy(Y)}, model, torch.device("cpu"))
    assert found["x"].dtype == torch.bfloat16
    assert found["index"].dtype == torch.int64


# Checkpoints.


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.table.weight


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth", "w.bin", "nested.pt"])
def test_checkpoints_fill_the_model(tmp_path: Path, name: str) -> None:
    state = {"weight": torch.full((2, 3), 2.0), "bias": torch.ones(2)}
    if name.endswith(".safetensors"):
        save_file(state, tmp_path / name)
    else:
        torch.save({"epoch": 3, "state_dict": state} if name == "nested.pt" else state, tmp_path / name)
    model = nn.Linear(3, 2)
    load_checkpoint(model, tmp_path / name)
    assert model.weight[0, 0].item() == 2.0
    assert model.bias[0].item() == 1.0


def test_a_tied_parameter_may_be_stored_once(tmp_path: Path) -> None:
    save_file({"table.weight": torch.full((5, 3), 2.0)}, tmp_path / "w.safetensors")
    model = _Tied()
    load_checkpoint(model, tmp_path / "w.safetensors")
    assert model.head.weight[0, 0].item() == 2.0


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"weight": torch.ones(2, 3)}, "does not fit the model: it lacks bias"),
        (
            {"weight": torch.ones(2, 3), "bias": torch.ones(2), "scale": torch.ones(1)},
            "does not fit the model: the model does not have scale",
        ),
        (
            {f"layer{number}.weight": torch.ones(1) for number in range(8)},
            "it lacks weight, bias; the model does not have layer0.weight, layer1.weight, layer2.weight, "
            "layer3.weight, layer4.weight, layer5.weight and 2 more",
        ),
        (
            {"weight": torch.ones(3, 2), "bias": torch.ones(2)},
            r"weight has shape (3, 2), the model's (2, 3)",
        ),
    ],
)
def test_checkpoints_of_another_model(tmp_path: Path, state: dict[str, torch.Tensor], message: str) -> None:
    save_file(state, tmp_path / "w.safetensors")
    model = nn.Linear(3, 2)
    before = model.weight.clone()
    with pytest.raises(LoadingError) as caught:
        load_checkpoint(model, tmp_path / "w.safetensors")
    assert message in str(caught.value)
    assert torch.equal(model.weight, before)


def test_whole_models_are_not_unpickled(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 2), tmp_path / "model.pt")
    with pytest.raises(LoadingError, match="cannot be read as plain tensors, and nothing else is unpickled"):
        load_checkpoint(nn.Linear(3, 2), tmp_path / "model.pt")


def test_checkpoints_that_are_no_state_dict(tmp_path: Path) -> None:
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    with pytest.raises(LoadingError, match="holds a list, expected a dict of tensors by name"):
        load_checkpoint(nn.Linear(3, 2), tmp_path / "list.pt")


# Files.


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")

    def half(target: Path) -> None:
        target.write_text("ne")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_whole(path, half)
    assert path.read_text() == "old"
    write_whole(path, lambda target: target.write_text("new"))
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o444 == 0o444
    assert [item.name for item in tmp_path.iterdir()] == ["out.json"]


def test_unwritable_places_are_found_beforehand(tmp_path: Path) -> None:
    check_writable(tmp_path / "out.json")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="there is no folder"):
        check_writable(tmp_path / "none" / "out.json")
    with pytest.raises(ValueError, match="it is a folder"):
        check_writable(tmp_path)
    with pytest.raises(ValueError, match=r"its name must end in \.png"):
        check_writable(tmp_path / "out.jpg", (".png",))


def test_folders_that_refuse_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(ValueError, match=r"cannot write .*out\.json: Permission denied"):
        check_writable(tmp_path / "out.json")
