"""The pods' entry point: secrets join the configuration, and the last words are left where they are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from outlast import pod
from outlast.api.config import ENVIRONMENT_VARIABLE, ProcessConfig


def config(role: str = "worker", redis_url: str | None = "redis://job-redis:6379/0") -> str:
    return ProcessConfig("job", "uid", "", role, f"{role}-0", {}, ((),), redis_url=redis_url).to_json()


def environment(**more: str) -> dict[str, str]:
    return {ENVIRONMENT_VARIABLE: config(), "OUTLAST_TOKEN": "t0ken", **more}


def test_secrets_join_the_configuration() -> None:
    made = pod.pod_config(environment(OUTLAST_REDIS_PASSWORD="p/w"), "/errors")
    assert made.token == "t0ken"
    assert made.redis_url == "redis://:p%2Fw@job-redis:6379/0"
    assert made.extras["errors_dir"] == "/errors"


def test_a_ledger_is_kept_where_it_is_asked_for() -> None:
    assert pod.pod_config(environment(), "/errors").ledger_dir is None
    assert pod.pod_config(environment(OUTLAST_LEDGER_DIR="/audit"), "/errors").ledger_dir == "/audit"


@pytest.mark.parametrize(
    ("url", "password", "expected"),
    [
        (None, "p", None),
        ("redis://host:1/0", None, "redis://host:1/0"),
        ("redis://:own@host:1/0", "p", "redis://:own@host:1/0"),
        ("rediss://host:1/0", "p", "rediss://:p@host:1/0"),
    ],
    ids=["no Redis", "no password", "its own password", "with TLS"],
)
def test_the_password_of_redis(url: str | None, password: str | None, expected: str | None) -> None:
    assert pod.with_password(url, password) == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"OUTLAST_TOKEN": "t"}, "OUTLAST_CONFIG is not set"),
        ({ENVIRONMENT_VARIABLE: config()}, "OUTLAST_TOKEN is not set"),
        ({ENVIRONMENT_VARIABLE: "{", "OUTLAST_TOKEN": "t"}, "cannot be read"),
        ({ENVIRONMENT_VARIABLE: config("cook"), "OUTLAST_TOKEN": "t"}, "role 'cook' is none of"),
    ],
    ids=["no configuration", "no token", "no JSON", "no role"],
)
def test_a_pod_made_wrongly_says_what_is_missing(given: dict[str, str], words: str) -> None:
    with pytest.raises(pod.PodError, match=words):
        pod.pod_config(given, "/errors")


def test_a_wrong_pod_ends_for_good_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last_words = tmp_path / "termination-log"
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setenv(pod.TERMINATION_VARIABLE, str(last_words))
    monkeypatch.setattr(pod.faulthandler, "enable", lambda: None)
    assert pod.main() == 3
    assert "OUTLAST_CONFIG is not set" in last_words.read_text()


def test_what_a_process_reported_is_its_reason(tmp_path: Path) -> None:
    (tmp_path / "worker-0.json").write_text(json.dumps({"error": "no such task", "kind": "task"}))
    assert pod.reported_error(str(tmp_path), "worker-0") == "no such task"
    assert pod.reported_error(str(tmp_path), "worker-1") == ""


def test_long_last_words_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "t"
    pod.write_termination("x" * 10_000, str(path))
    assert len(path.read_bytes()) == 4096
