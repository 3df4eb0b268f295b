"""What a local run takes from a pod template: environment and command; the rest is named."""

from __future__ import annotations

from outlast_operator.local.template import LocalTemplate, local_template


def test_no_template_changes_nothing() -> None:
    assert local_template(None) == LocalTemplate() == local_template({})


def test_environment_and_command_are_taken() -> None:
    container = {
        "name": "trainer",
        "env": [{"name": "DATA", "value": "/data"}, {"name": "EMPTY"}],
        "command": ["python", "-m"],
        "args": ["mine"],
    }
    taken = local_template({"spec": {"containers": [container]}})
    assert taken == LocalTemplate(env={"DATA": "/data", "EMPTY": ""}, argv=["python", "-m", "mine"])
    assert LocalTemplate.from_json(taken.to_json()) == taken


def test_the_container_named_outlast_is_the_roles_wherever_it_stands() -> None:
    proxy, ours = {"name": "proxy", "command": ["proxy"]}, {"name": "outlast", "command": ["mine"], "args": ["--fast"]}
    taken = local_template({"spec": {"containers": [proxy, ours]}})
    assert (taken.argv, taken.ignored) == (["mine", "--fast"], ["spec.containers[0]"])


def test_everything_else_is_named() -> None:
    container = {
        "image": "mine:1",
        "args": ["--fast"],
        "env": [{"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
        "resources": {"limits": {"nvidia.com/gpu": 1}},
    }
    template = {
        "metadata": {"labels": {}},
        "spec": {"nodeSelector": {}, "containers": [container, {"name": "sidecar"}]},
    }
    taken = local_template(template)
    assert taken.argv is None
    assert taken.env == {}
    assert sorted(taken.ignored) == [
        "metadata",
        "spec.containers[0].args (without command)",
        "spec.containers[0].env[0] (SECRET: valueFrom)",
        "spec.containers[0].image",
        "spec.containers[0].resources",
        "spec.containers[1]",
        "spec.nodeSelector",
    ]
