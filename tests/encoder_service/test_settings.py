"""The encoder's settings: what they become, and what they refuse."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from pydantic import ValidationError

from encoder_service.limits import FetchLimits, ImageLimits, QueueLimits
from encoder_service.settings import EncoderSettings


def _settings(**values: Any) -> EncoderSettings:
    return EncoderSettings.model_validate(values)


def test_the_defaults_are_those_of_the_parts() -> None:
    """Without settings the limits are the ones that the parts document."""
    settings = _settings()
    assert settings.image_limits == ImageLimits()
    assert settings.queue_limits == QueueLimits()
    fetch, default = settings.fetch_limits, FetchLimits()
    assert (fetch.enabled, fetch.allow_http, fetch.max_bytes) == (True, False, default.max_bytes)
    assert (fetch.connect_timeout_s, fetch.total_timeout_s) == (5, 15)
    assert fetch.max_redirects == 3


def test_lists_are_written_with_commas() -> None:
    """Formats and hosts are given as text, the way flags and variables are."""
    settings = _settings(image_formats="png, gif", url_allowed_hosts="minio:9000, 10.0.0.0/8")
    assert settings.image_limits.formats == ("PNG", "GIF")
    assert settings.fetch_limits.allowed_hosts.allow("minio", 9000, ipaddress.ip_address("192.168.0.1"))
    assert settings.fetch_limits.allowed_hosts.allow("any", 8080, ipaddress.ip_address("10.1.1.1"))


def test_variables_name_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each setting is read from its environment twin."""
    monkeypatch.setenv("SAMOVAR_IMAGE_MAX_BYTES", "1000")
    monkeypatch.setenv("SAMOVAR_URL_FETCH", "false")
    settings = EncoderSettings()
    assert settings.image_limits.max_bytes == settings.fetch_limits.max_bytes == 1000
    assert not settings.fetch_limits.enabled


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_formats": "EPS"},
        {"image_formats": ""},
        {"image_formats": "PNG,PSD"},
        {"image_max_aspect": 2049},
        {"image_max_pixels": 178_956_971},
        {"url_allowed_hosts": "http://host"},
        {"encoder_queue_images": 0},
        {"device": "tpu"},
        {"port": 70_000},
    ],
)
def test_a_value_that_cannot_work_is_refused_at_start(wrong: dict[str, Any]) -> None:
    """Unknown formats, unreadable hosts and bounds that the model cannot hold are errors, not surprises."""
    with pytest.raises(ValidationError):
        _settings(**wrong)
