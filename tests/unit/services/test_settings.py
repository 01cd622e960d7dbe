"""Settings from flags and environment."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from pydantic_settings import CliApp

from services.restorer.embedded import EmbeddedSettings


def test_flags_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMIR_PORT", "1234")
    monkeypatch.setenv("VLMIR_GRACE_S", "2.5")
    settings = CliApp.run(EmbeddedSettings, ["--port", "0", "--bundle", "x"])
    assert (settings.port, settings.grace_s, settings.bundle) == (0, 2.5, "x")


def test_it_listens_to_this_machine_alone_by_default() -> None:
    assert EmbeddedSettings().host == "127.0.0.1"


@pytest.mark.parametrize("wrong", [{"port": 65536}, {"workers": 0}, {"log_level": "LOUD"}])
def test_nonsense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        EmbeddedSettings.model_validate(wrong)
