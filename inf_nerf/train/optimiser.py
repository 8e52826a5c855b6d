"""Adam per node: a node that no sample touched is skipped, and keeps its own moments and step count."""

import torch
from torch import Tensor, nn

from inf_nerf.config import TrainConfig
from inf_nerf.field.field import Field


class NodeAdam:
    """Adam over the nodes' parameter views and the appearance table, with the exponential schedule of the paper."""

    def __init__(self, config: TrainConfig, field: Field, appearance: nn.Parameter) -> None:
        self._config = config
        self._field = field
        self._appearance = appearance
        self._nodes = [field.parameters_of(node) for node in range(len(field.keys))]
        parameters = [parameter for node in self._nodes for parameter in node.values()]
        if appearance.numel():
            parameters.append(appearance)
        self._adam = torch.optim.Adam(
            parameters, lr=config.lr_init, betas=(config.beta1, config.beta2), eps=config.eps, fused=True
        )

    def rate(self, progress: float) -> float:
        """The learning rate at a share in [0, 1] of the budget."""
        return self._config.lr_init * (self._config.lr_final / self._config.lr_init) ** min(1.0, progress)

    def step(self, progress: float, nodes: Tensor | None = None, appearance: bool = True) -> float:
        """Update with the gradients at hand and clear them; ``progress`` in [0, 1] sets the rate, which is returned.

        ``nodes`` [M] bool restricts it to these nodes (None: all), and without ``appearance`` that is left as it is.
        """
        rate = self.rate(progress)
        for group in self._adam.param_groups:
            group["lr"] = rate
        kept = None if appearance else self._appearance.grad
        if not appearance:
            self._appearance.grad = None
        self._field.expose_gradients(nodes)
        self._adam.step()
        self._field.clear_gradients(nodes)
        self._appearance.grad = kept
        return rate

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
