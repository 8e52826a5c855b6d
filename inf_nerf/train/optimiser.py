"""Adam per node: a node that no sample touched is skipped, and keeps its own moments and step count.

Weights of the heads may decay, decoupled from their gradients (AdamW); entries of tables never do, because most of them
have no gradient in most steps, and would be forgotten.
"""

import torch
from torch import Tensor, nn

from inf_nerf.config import TrainConfig
from inf_nerf.field.field import Field


class NodeAdam:
    """Adam over the nodes' parameter views and the appearance table."""

    def __init__(self, config: TrainConfig, field: Field, appearance: nn.Parameter) -> None:
        self._config = config
        self._field = field
        self._appearance = appearance
        self._keys = field.keys.tolist()
        self._nodes = [field.parameters_of(node) for node in range(len(field.keys))]
        heads = [parameter for node in self._nodes for name, parameter in node.items() if name != "table"]
        others = [node["table"] for node in self._nodes]
        if appearance.numel():
            others.append(appearance)
        self._adam = torch.optim.AdamW(
            [{"params": others, "weight_decay": 0.0}, {"params": heads, "weight_decay": config.weight_decay}],
            lr=config.lr_init,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,
        )

    def renewed(self) -> "NodeAdam":
        """The optimiser of the nodes that the field holds now; those that were held before keep their state.  This one
        is of no use then."""
        before = dict(zip(self._keys, self._nodes, strict=True))
        other = NodeAdam(self._config, self._field, self._appearance)
        for key, parameters in zip(other._keys, other._nodes, strict=True):
            for name, parameter in before.get(key, {}).items():
                if parameter in self._adam.state:
                    other._adam.state[parameters[name]] = self._adam.state.pop(parameter)
        if self._appearance in self._adam.state:
            other._adam.state[self._appearance] = self._adam.state[self._appearance]
        return other

    def step(self, rate: float, nodes: Tensor | None = None, appearance: bool = True) -> None:
        """Update with the gradients at hand at the learning ``rate``, and clear them.

        ``nodes`` [M] bool restricts it to these nodes (None: all), and without ``appearance`` that is left as it is.
        """
        for group in self._adam.param_groups:
            group["lr"] = rate
        kept = None if appearance else self._appearance.grad
        if not appearance:
            self._appearance.grad = None
        self._field.expose_gradients(nodes)
        self._adam.step()
        self._field.clear_gradients(nodes)
        self._appearance.grad = kept

    def clear(self) -> None:
        """Forget the gradients."""
        self._field.clear_gradients()
        self._appearance.grad = None

    def state_of(self, node: int) -> dict[str, Tensor]:
        """Moments and step count of one node, flat names; empty before its first update."""
        return self._flat(self._nodes[node])

    def load_state(self, node: int, state: dict[str, Tensor]) -> None:
        self._restore(self._nodes[node], state)

    def appearance_state(self) -> dict[str, Tensor]:
        """Moments and step count of the appearance table."""
        return self._flat({"appearance": self._appearance})

    def load_appearance_state(self, state: dict[str, Tensor]) -> None:
        self._restore({"appearance": self._appearance}, state)

    def _flat(self, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        return {
            f"{name}.{entry}": value
            for name, parameter in parameters.items()
            for entry, value in self._adam.state.get(parameter, {}).items()
        }

    def _restore(self, parameters: dict[str, nn.Parameter], state: dict[str, Tensor]) -> None:
        for name, parameter in parameters.items():
            entries = {key.split(".", 1)[1]: value for key, value in state.items() if key.startswith(f"{name}.")}
            if entries:
                self._adam.state[parameter] = {
                    key: value.to(parameter.device, copy=True) for key, value in entries.items()
                }
