"""Canaries: which private names a new torch has lost, and that each loss is survived as compat.py says."""

from __future__ import annotations

import ast
import copy
import importlib.util
import operator
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import ntkscope
from ntkscope.engines.torch import compat
from ntkscope.engines.torch.graph import recorder
from ntkscope.engines.torch.modes import plain_recurrences

ROOT = Path(ntkscope.__file__).parent
COMPAT = Path(compat.__file__)
MODE = "torch.utils._python_dispatch.TorchDispatchMode"

#: Every private or undocumented name that compat.py takes from torch, and what it is for.
PRIVATE = {
    "torch._ops.OpOverload": "to tell operators from other functions in a recorded graph",
    "torch.ops.aten.add.Tensor._schema.arguments": "to bind an operator's arguments by their names",
    "torch.ops.aten.add.Tensor._schema.is_mutable": "to find the operations that write in place",
    "torch.ops.aten._to_copy.default": "to know a cast as it is recorded below autograd",
    "torch.overrides.TorchFunctionMode": "to run fused recurrent layers by plain operations",
    MODE: "to count what a forward pass computes, and to record it",
    f"{MODE}._should_skip_dynamo": "to keep torch's compiler from being loaded by our modes",
    "torch._pack_padded_sequence": "to keep sequences that are packed apart",
    "torch._pad_packed_sequence": "to keep sequences that are packed apart",
    "torch.utils._pytree.tree_flatten": "to take inputs apart",
    "torch.utils._pytree.tree_leaves": "to take inputs apart",
    "torch.utils._pytree.tree_map_only": "to record an operation's arguments",
    "torch.utils._pytree.tree_unflatten": "to put inputs together",
    "torch.utils.flop_counter.flop_registry": "to predict what a product costs",
    "torch._dispatch.python.enable_pre_dispatch": "to record operations as modules call them",
    "torch._dispatch.python.enable_python_dispatcher": "to record operations as modules call them",
    "torch._subclasses.schema_check_mode.SchemaCheckMode": "to be admitted as a mode before dispatch",
    "torch._C.DispatchKey.PreDispatch": "to record operations as modules call them",
    "torch.UntypedStorage._cdata": "to see which recorded values share memory",
    "torch.nn.modules.batchnorm._NormBase": "to find layers with running averages",
    "torch._decomp.decomposition_table": "to run fused recurrent layers by plain operations",
    "torch._decomp.decompositions_for_jvp": "to load forward mode's rules without their warning",
    "torch._C._functorch.is_functorch_wrapped_tensor": "to tell tensors without memory in a recording",
    "torch._C._functorch.peek_interpreter_stack": "to tell whether a transformation is at work",
    "torch.Tensor._is_zerotensor": "to tell the zeros of forward mode, which have no memory",
    "torch._C._functorch._set_vmap_fallback_warning_enabled": "to silence the loops under vmap",
    "torch.Tensor._post_accumulate_grad_hooks": "to keep an optimizer inside of a backward pass from a step",
    "torch.distributed.fsdp.FSDPModule._get_fsdp_state": "to set gradients apart that wait to be reduced",
}

#: Set on an instance, so that only what it does can be tested.
_BY_BEHAVIOUR = {"_dispatch_key", "_fsdp_param_group", "_fsdp_param_groups"}


def _resolve(name: str) -> Any:
    """The object of a dotted name; modules on the way are imported."""
    parts = name.split(".")
    found: Any = importlib.import_module(parts[0])
    for index, part in enumerate(parts[1:], 2):
        if not hasattr(found, part):
            with warnings.catch_warnings():
                # The rules of forward mode warn of torch's own use of torch.jit.
                warnings.simplefilter("ignore", DeprecationWarning)
                importlib.import_module(".".join(parts[:index]))
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", PRIVATE)
def test_torch_still_has(name: str) -> None:
    if name.endswith("_should_skip_dynamo") and "__init_subclass__" not in vars(_resolve(MODE)):
        return  # This torch leaves its modes alone: nothing to skip.
    try:
        _resolve(name)
    except (ImportError, AttributeError) as error:
        pytest.fail(
            f"torch {torch.__version__} has no {name} any more ({error}). We use it {PRIVATE[name]}; "
            "engines/torch/compat.py says what is lost without it and is where to name another",
            pytrace=False,
        )


@pytest.mark.parametrize("name", ["gru", "lstm", "rnn_tanh", "rnn_relu"])
def test_torch_still_decomposes(name: str) -> None:
    padded, packed = compat.plain_recurrence(name)
    assert callable(padded)
    assert callable(packed)


def test_a_mode_before_dispatch_sees_what_modules_call() -> None:
    seen = []

    class Watch(compat.PreDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with compat.before_dispatch(), Watch():
        nn.Linear(2, 2)(torch.ones(1, 2))
    assert torch.ops.aten.linear.default in seen, (
        f"torch {torch.__version__} no longer sends operations to a mode whose _dispatch_key is PreDispatch; "
        "without it no model can be recorded (engines/torch/compat.py)"
    )


# No private name elsewhere.


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _defined(tree: ast.AST) -> Iterator[str]:
    """Names that a file defines: functions, classes, variables and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def _mentioned(tree: ast.AST) -> Iterator[str]:
    """Attributes of whatever object, by a dot or by a string, and overridden methods."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
            yield from (str(a.value) for a in node.args[1:2] if isinstance(a, ast.Constant))


def _imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names that a file imports from torch."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "torch")


def _private_names(tree: ast.AST, ours: set[str]) -> set[str]:
    """Names in a file that are private to torch: neither public there nor defined by us."""
    parts = {part for name in PRIVATE for part in name.split(".") if _is_private(part)} | _BY_BEHAVIOUR
    imports = {name for name in _imported(tree) if name in PRIVATE or any(map(_is_private, name.split(".")))}
    return imports | {
        name for name in _mentioned(tree) if _is_private(name) and (name in parts or name not in ours)
    }


def test_no_other_file_uses_a_private_name_of_torch() -> None:
    trees = {path: ast.parse(path.read_text()) for path in ROOT.rglob("*.py") if path != COMPAT}
    ours = {name for tree in trees.values() for name in _defined(tree)}
    found = {str(path.relative_to(ROOT)): _private_names(tree, ours) for path, tree in trees.items()}
    assert {path: names for path, names in found.items() if names} == {}, "take them from compat.py"


@pytest.mark.parametrize(
    "code",
    [
        "import torch._decomp",
        "from torch.utils import _pytree as pytree",
        "from torch.overrides import TorchFunctionMode",
        "torch._C.DispatchKey",
        "nn.modules.batchnorm._NormBase",
        "operation._schema",
        "getattr(module, '_buffers')",
        "class Mode:\n    def _should_skip_dynamo(cls): ...",
    ],
)
def test_a_private_name_is_found(code: str) -> None:
    assert _private_names(ast.parse(code), set(_defined(ast.parse(code))))


def test_every_private_name_has_its_canary() -> None:
    tree = ast.parse(COMPAT.read_text())
    own = {name for name in _defined(tree) if name not in _BY_BEHAVIOUR}
    covered = {part for name in PRIVATE for part in name.split(".")} | _BY_BEHAVIOUR
    named = {name.split(".")[-1] for name in _imported(tree) if any(map(_is_private, name.split(".")))}
    assert named <= covered
    assert {name for name in _mentioned(tree) if _is_private(name) and name not in own} <= covered


# A torch without them.


def _compat_without(monkeypatch: pytest.MonkeyPatch, *names: str) -> ModuleType:
    """compat.py as it would be loaded by a torch that lacks some names."""
    for name in names:
        owner, _, last = name.rpartition(".")
        monkeypatch.delattr(_resolve(owner), last)
    spec = importlib.util.spec_from_file_location("compat_of_another_torch", COMPAT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_the_class_of_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _compat_without(monkeypatch, "torch._ops.OpOverload")
    assert isinstance(torch.ops.aten.add.Tensor, found.OpOverload)
    assert not isinstance(operator.getitem, found.OpOverload)


def test_without_flop_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not _compat_without(monkeypatch, "torch.utils.flop_counter.flop_registry").FLOP_FORMULAS


def test_without_the_base_of_batch_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _compat_without(monkeypatch, "torch.nn.modules.batchnorm._NormBase")
    assert isinstance(nn.BatchNorm2d(3), found.BATCH_NORMS)
    assert not isinstance(nn.LayerNorm(3), found.BATCH_NORMS)


def test_without_the_switch_of_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _compat_without(monkeypatch, "torch._C._functorch._set_vmap_fallback_warning_enabled")
    found.warn_of_loops_under_vmap(False)


def test_without_decompositions_a_recurrent_layer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _compat_without(monkeypatch, "torch._decomp.decomposition_table")
    with pytest.raises(NotImplementedError, match=r"no decomposition of torch\.gru.*nn\.LSTMCell"):
        found.plain_recurrence("gru")


@pytest.mark.parametrize(
    "name",
    [
        "torch._dispatch.python.enable_pre_dispatch",
        "torch._subclasses.schema_check_mode.SchemaCheckMode",
        "torch._C.DispatchKey.PreDispatch",
    ],
)
def test_without_recording_there_is_a_reason(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    reason = _compat_without(monkeypatch, name).NO_RECORDING
    assert "cannot record a model" in reason
    assert name.split(".")[-1] in reason


def test_without_modes_the_import_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImportError, match=r"ntkscope does not know torch .*TorchDispatchMode.*constraints"):
        _compat_without(monkeypatch, MODE)


def test_what_cannot_be_recorded_is_still_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = nn.Linear(3, 2).double(), torch.randn(4, 3, dtype=torch.float64)
    expected = ntkscope.NTK(model, inputs).trace(method="exact").value
    monkeypatch.setattr(recorder, "NO_RECORDING", "this torch cannot record a model")
    # Of another module: what was recorded of the first one serves its next kernels.
    kernel = ntkscope.NTK(copy.deepcopy(model), inputs)
    assert kernel.trace(method="exact").value == pytest.approx(expected)
    # Hooks on layers do for it, and by the whole batch what they do not know either.
    assert "this torch cannot record a model" in kernel.engine.samples().describe()  # type: ignore[union-attr]
    unknown = nn.Bilinear(3, 3, 2).double()
    with pytest.raises(ValueError, match="this torch cannot record a model"):
        ntkscope.NTK(unknown, (inputs, inputs)).trace(method="per-sample")


# What torch computed wrongly in some version.

_LAYERS: dict[str, Callable[[], nn.RNNBase]] = {
    "rnn": lambda: nn.RNN(3, 4),
    "gru": lambda: nn.GRU(3, 4),
    "lstm": lambda: nn.LSTM(3, 4),
    "lstm with projection": lambda: nn.LSTM(3, 4, proj_size=2),
    "lstm of two layers both ways": lambda: nn.LSTM(3, 4, 2, bidirectional=True),
}
_SEQUENCES: dict[str, Callable[[], Any]] = {
    "three samples": lambda: torch.randn(5, 3, 3),
    "one sample": lambda: torch.randn(5, 1, 3),
    "no axis of samples": lambda: torch.randn(5, 3),
    "packed": lambda: pack_padded_sequence(torch.randn(5, 3, 3), torch.tensor([5, 4, 2])),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("sequence", _SEQUENCES)
@pytest.mark.parametrize("layer", _LAYERS)
def test_plain_recurrences_return_what_fused_ones_do(layer: str, sequence: str) -> None:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model, inputs = _LAYERS[layer](), _SEQUENCES[sequence]()
        fused = compat.pytree.tree_leaves(model(inputs))
        with plain_recurrences():
            plain = compat.pytree.tree_leaves(model(inputs))
    for a, b in zip(plain, fused, strict=True):
        torch.testing.assert_close(a, b)
