"""Where the samples lie in the outputs of layers, which is read off gradients and not taken on trust.

With a probe for some samples alone, nothing reaches the rows of the others. A code with as many ones for
every sample tells each from all others. Samples that are coupled show themselves here.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ntkscope.engines.torch.hooks.axes import COUPLED
from ntkscope.engines.torch.hooks.gradients import Group, Hooked
from ntkscope.engines.torch.memory import is_out_of_memory
from ntkscope.engines.torch.modes import CHECK_SEED

__all__ = ["Seen", "called", "codes", "find_places"]


def codes(count: int) -> Tensor:
    """A code of zeros and ones for each of so many samples, none of which covers another: (c, count)."""
    length = next(n for n in itertools.count(2) if math.comb(n, n // 2) >= count)
    words = itertools.islice(itertools.combinations(range(length), length // 2), count)
    code = torch.zeros(length, count, dtype=torch.bool)
    for sample, word in enumerate(words):
        code[list(word), sample] = True
    return code


@dataclass
class Seen:
    """What a pass has shown of the layers.

    Attributes:
        order: Their names and the shapes of one sample's input and δ, as they came.
        lowest: The least precise dtype of a δ.
        wrong: Layers at which a sample's gradient reached another's rows.
    """

    order: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    lowest: torch.dtype = torch.float64
    wrong: set[str] = field(default_factory=set)


def find_places(hooked: Hooked, at_once: int) -> Seen:
    """Finds where the samples lie in every layer's output, and how often each parameter is used.

    Args:
        hooked: The model; its places and uses are filled in.
        at_once: Copies of the batch in a pass.

    Raises:
        ValueError: If there is a layer where they do not lie apart, or processes differ.
    """
    exchange = hooked.exchange
    code = codes(max(exchange.counts))[:, : hooked.batch].to(hooked.device)
    seen = _looked(hooked, code, at_once, "")
    while wrong := set().union(*exchange.objects(seen.wrong)):
        # In the order of the forward pass: where the samples lie decides what the layers after it are given.
        names = list(hooked.places)
        first = next(name for name in names if name in wrong)
        for name in names[names.index(first) + 1 :]:
            del hooked.places[name]
        if first in seen.wrong:
            hooked.places[first] = hooked.places[first][1:]
        seen = _looked(hooked, code, at_once, first)
    orders = exchange.objects(seen.order)
    if any(order != seen.order for order in orders):
        raise ValueError(
            "the processes use the model's layers in different orders, or on samples of different shapes; "
            "bring all samples to one shape (padding)"
        )
    work: Counter[Group] = Counter()
    for name, inputs, outputs in seen.order:
        for group in hooked.groups(name):
            hooked.uses[group] = hooked.uses.get(group, 0) + 1
            work[group] += math.prod(inputs) + math.prod(outputs)
    hooked.output_size = sum(math.prod(outputs) for _, _, outputs in seen.order)
    hooked.owners.update(_shared_out(work, exchange.size))
    return seen


def _shared_out(work: Mapping[Group, int], processes: int) -> dict[Group, int]:
    """Every group's process: the largest work first, each to the one that has the least."""
    loads, owners = [0] * processes, {}
    for group in sorted(work, key=lambda group: (-work[group], group)):
        owners[group] = loads.index(min(loads))
        loads[owners[group]] += work[group]
    return owners


def _looked(hooked: Hooked, code: Tensor, at_once: int, moved: str) -> Seen:
    """One look, of which all processes know whether it has failed.

    Args:
        hooked: The model.
        code: Of the samples.
        at_once: Copies of the batch in a pass.
        moved: The layer whose samples are looked for at another place than before.
    """
    seen, problem = Seen(), None
    try:
        if moved and not hooked.places[moved]:
            raise ValueError("there is no other place")
        seen = _seen(hooked, code, at_once)
    except Exception as error:
        problem = error
        if moved and not is_out_of_memory(error):
            # An output that is repeated for samples does not fit where there are samples in it already.
            problem = ValueError(
                f"the gradient of one sample reaches other samples in the output of {called(hooked, moved)}"
                f": {COUPLED}, or the layer does not have them along an axis of its output"
            )
    hooked.exchange.agree(problem)
    return seen


def _seen(hooked: Hooked, code: Tensor, at_once: int) -> Seen:
    """One look at all layers with probes for some samples alone."""
    state = hooked.state
    seen = Seen()
    generator = torch.Generator().manual_seed(CHECK_SEED)
    rows = hooked.to_rows(state, 1)
    for start in range(0, len(code), at_once):
        here = code[start : start + at_once]
        z = torch.randn(len(here), *rows.shape[1:], generator=generator, dtype=torch.float64)
        z = z.to(state.device, state.dtype) * here.reshape(*here.shape, *[1] * (z.dim() - 2))
        seen.order.clear()

        def arrived(name: str, x: Tensor, delta: Tensor, here: Tensor = here) -> None:
            seen.order.append((name, tuple(x.shape[1:]), tuple(delta.shape[2:])))
            seen.lowest = max(seen.lowest, delta.dtype, key=lambda dtype: torch.finfo(dtype).eps)
            reached = delta.detach().abs().flatten(2).amax(2)
            limit = 16 * torch.finfo(delta.dtype).eps * float(reached.max())
            if not float((reached * ~here).max()) <= limit:
                seen.wrong.add(name)

        hooked.run(z, arrived)
    return seen


def called(hooked: Hooked, module: str) -> str:
    """A module by its name and class."""
    found: nn.Module | None = hooked.modules.get(module)
    kind = "" if found is None else f" ({type(found).__name__})"
    return f"the module {module!r}{kind}"
