"""The run's settings from the environment of a container: ``RUN_NUM_SERVER_ROUNDS=3`` is ``num-server-rounds = 3``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from fl_precode.federation.config import Settings, Value

PREFIX = "RUN_"


def settings_from_environment(environment: Mapping[str, str]) -> Settings:
    """Settings from the variables that begin with ``RUN_``; an empty one keeps its default.

    Raises:
        fl_precode.federation.config.SettingsError: Naming everything that is wrong.

    >>> settings_from_environment({"RUN_MODEL": "mlp", "RUN_NUM_CLIENTS": "2", "RUN_DEFENCE": ""}).num_clients
    2
    """
    kinds = {field.name.replace("_", "-"): type(field.default) for field in fields(Settings)}
    values: dict[str, Value] = {}
    for name, text in environment.items():
        if name.startswith(PREFIX) and text:
            key = name.removeprefix(PREFIX).lower().replace("_", "-")
            values[key] = _converted(text, kinds.get(key, str))
    return Settings.from_run_config(values)


def _converted(text: str, kind: type) -> Value:
    try:
        return kind(text)  # type: ignore[no-any-return]
    except ValueError:
        return text  # the settings say what was expected
