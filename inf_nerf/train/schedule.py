"""The learning rate in the course of a training."""

from inf_nerf.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, share: float) -> float:
    """The rate of a step, of which ``step`` came before it in this budget; ``share`` in [0, 1] of the budget is used.

    ``exponential`` (the paper's) stays at ``lr_init`` for ``lr_decay_start`` steps and reaches ``lr_final`` after
    ``lr_decay_steps`` more, or with the budget.  ``step`` multiplies by ``lr_gamma`` every ``lr_every`` steps, down to
    ``lr_final``.
    """
    since = step - config.lr_decay_start
    if config.schedule == "step":
        return max(config.lr_final, config.lr_init * config.lr_gamma ** max(0, since // config.lr_every))
    if config.lr_decay_steps is not None:
        decayed = since / config.lr_decay_steps
    else:
        begun = min(1.0, config.lr_decay_start / config.steps)
        decayed = (share - begun) / (1 - begun) if begun < 1 else 0.0
    return config.lr_init * (config.lr_final / config.lr_init) ** min(1.0, max(0.0, decayed))
