"""Settings that lie in files, as containers are given their secrets; and the sample's, with which nothing starts."""

import os
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SecretsSettingsSource

from prefix_store.errors import StoreError

FOLDER: Final = "PREFIX_SECRET_FILES"
SAMPLE: Final = "changethis"


def in_files(settings: type[BaseSettings], given: PydanticBaseSettingsSource) -> PydanticBaseSettingsSource:
    """Where settings are looked for last: files named as they are (`prefix_database_url`) in `PREFIX_SECRET_FILES`.

    Raises:
        StoreError: the variable names no folder, or a file in it cannot be read or is empty.
    """
    folder = os.environ.get(FOLDER)
    if not folder:
        return given
    if not Path(folder).is_dir():
        raise StoreError(f"{FOLDER} names no folder: {folder}")
    for path in Path(folder).glob("prefix_*"):
        if not path.resolve().is_relative_to(Path(folder).resolve()):
            raise StoreError(
                f"{FOLDER}: {path} leads out of the folder and is not followed; put the file itself there"
            )
        if not os.access(path, os.R_OK):
            raise StoreError(f"{FOLDER}: this process may not read {path}; see its owner and mode")
        if not path.read_text().strip():
            raise StoreError(f"{FOLDER}: {path} is empty; write the setting's value into it or remove it")
    return SecretsSettingsSource(settings, secrets_dir=folder)


def no_sample(value: Any) -> Any:
    """A setting as it is.

    Raises:
        ValueError: it holds the sample's secret, which everybody knows.
    """
    held = value.get_secret_value() if isinstance(value, SecretStr) else value
    if isinstance(held, str) and SAMPLE in held:
        raise ValueError(
            f"holds the sample's secret, {SAMPLE!r}; make your own: python -m deploy.secret_making"
        )
    return value
