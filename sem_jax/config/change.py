"""Reading and changing single fields of a configuration."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping
from typing import Any

from sem_jax.config.experiment import Config
from sem_jax.config.fields import ConfigError
from sem_jax.config.rules import check_rules


def lookup(config: Config, path: str) -> Any:
    """The value of a field such as "data.path"."""
    return operator.attrgetter(path)(config)


def override(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested `values` with fields such as "data.path" replaced by `changes`."""
    copy = {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}
    for path, value in changes.items():
        head, _, rest = path.partition(".")
        copy[head] = override(copy[head], {rest: value}) if rest else value
    return copy


def with_vocabulary(config: Config, vocab_size: int) -> Config:
    """The configuration with the vocabulary size of its tokenizer.

    Raises:
      ConfigError: another size is configured, or the model becomes too large with it.
    """
    if config.model.vocab_size not in (0, vocab_size):
        raise ConfigError(
            f"config.model.vocab_size = {config.model.vocab_size}, but the {config.data.tokenizer} tokenizer has "
            f"{vocab_size} ids; set it to 0 to take the tokenizer's"
        )
    changed = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=vocab_size))
    check_rules(changed)
    return changed


def with_posterior_temperature(config: Config, train_tokens: int | None) -> Config:
    """The configuration in which the thermostat "posterior" has become a fixed T = 1/N; "fixed" stays as it is.

    The loss is a mean over tokens, in nats, so exp(−loss / T) with T = 1/N is the likelihood of all N training tokens.
    A run keeps the result, not the question: what resumes or evaluates it reads the same T.

    Args:
      config: the experiment.
      train_tokens: N; None of a stream, with which the validation refuses "posterior".
    """
    if config.optimizer.thermostat == "fixed":
        return config
    assert train_tokens is not None
    optimizer = dataclasses.replace(config.optimizer, thermostat="fixed", temperature=1 / train_tokens)
    return dataclasses.replace(config, optimizer=optimizer)
