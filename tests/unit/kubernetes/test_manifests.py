"""What pods, Services and secrets are made of: the user's template kept, ours added, names that follow from a start."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from outlast.api.job import read_spec
from outlast.api.spec import JobSpec
from outlast.api.spec_fields import Claim
from outlast_operator.kubernetes.manifests import children
from outlast_operator.kubernetes.manifests.names import JobRef, is_owned, pod_name
from outlast_operator.kubernetes.manifests.pods import Images, pod_count, process_config, process_pod, with_slots
from outlast_operator.planner.actions import StartProcess

JOB = JobRef("mnist", "team", "uid-1")
IMAGES = Images("trainer:1", "redis:1")
SERVER = StartProcess("server-1", "server", shard=0, index=1)
WORKER = StartProcess("worker-0", "worker", slot=0, incarnation=3)
EVALUATOR = StartProcess("evaluator", "evaluator")
Json = dict[str, Any]


def spec(**parts: Any) -> JobSpec:
    raw: Json = {
        "training": {"task": "outlast.tasks.fashion_mnist", "stopAfter": {"updates": 10}},
        "recovery": {"strategy": "Chain"},
    }
    return read_spec({**raw, **parts})


def pod(action: StartProcess = SERVER, template: Json | None = None, job: JobRef = JOB, **parts: Any) -> Json:
    role = "servers" if action.role == "server" else "workers"
    if template is not None:
        parts[role] = {"replicas": 3, "template": template}
    return process_pod(job, spec(**parts), IMAGES, action)


def container(made: Json) -> Json:
    return next(c for c in made["spec"]["containers"] if c["name"] in ("outlast", "mine"))


def environment(made: Json) -> dict[str, Any]:
    return {e["name"]: e.get("value", e.get("valueFrom")) for e in container(made)["env"]}


def with_container(**fields: Any) -> Json:
    return {"spec": {"containers": [{"name": "outlast", **fields}]}}


@pytest.mark.parametrize(
    ("image", "policy"),
    [
        ("outlast/trainer:1", "Never"),
        ("registry.example/outlast/trainer:1", "IfNotPresent"),
        ("mine:1", "IfNotPresent"),
    ],
)
def test_an_image_that_no_registry_of_ours_serves_is_never_pulled(image: str, policy: str) -> None:
    """Whoever registers the name with the default registry would run code in every job."""
    made = process_pod(JOB, spec(), Images(image, "r"), SERVER)
    assert container(made)["imagePullPolicy"] == policy
    redis = children.redis_pod(JOB, spec(), Images("t", image), None)
    assert redis["spec"]["containers"][0]["imagePullPolicy"] == policy
    assert container(pod(template=with_container(image=image)))["imagePullPolicy"] == policy
    assert container(pod(template=with_container(image=image, imagePullPolicy="Always")))["imagePullPolicy"] == "Always"


LOST = {"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30}
NOT_READY = {"key": "node.kubernetes.io/not-ready", **LOST}
UNREACHABLE = {"key": "node.kubernetes.io/unreachable", **LOST}
GPU = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
PATIENT = {**UNREACHABLE, "tolerationSeconds": 600}
ANY_EFFECT = {"key": "node.kubernetes.io/not-ready", "operator": "Exists"}
OTHER_EFFECT = {**ANY_EFFECT, "effect": "NoSchedule"}


@pytest.mark.parametrize(
    ("theirs", "merged"),
    [
        (None, [NOT_READY, UNREACHABLE]),
        ([], [NOT_READY, UNREACHABLE]),
        ([GPU], [GPU, NOT_READY, UNREACHABLE]),
        ([GPU, PATIENT], [GPU, PATIENT, NOT_READY]),
        ([ANY_EFFECT], [ANY_EFFECT, UNREACHABLE]),
        ([OTHER_EFFECT], [OTHER_EFFECT, NOT_READY, UNREACHABLE]),
        ([{"operator": "Exists"}], [{"operator": "Exists"}, NOT_READY, UNREACHABLE]),
    ],
    ids=["none", "an empty list", "others", "one of these", "of any effect", "of another effect", "of any taint"],
)
@pytest.mark.parametrize("role", ["server", "worker", "redis"])
def test_tolerations_are_merged_by_key_and_effect(role: str, theirs: list[Json] | None, merged: list[Json]) -> None:
    template = {"spec": {} if theirs is None else {"tolerations": theirs}}
    if role == "redis":
        job = spec(recovery={"strategy": "Hybrid"}, servers={"template": template})
        made = children.redis_pod(JOB, job, IMAGES, None)
    else:
        made = pod(SERVER if role == "server" else WORKER, template)
    assert made["spec"]["tolerations"] == merged


def test_a_pod_belongs_to_its_job_and_says_what_it_is() -> None:
    meta = pod()["metadata"]
    assert is_owned(pod(), JOB)
    assert not is_owned(pod(), replace(JOB, uid="uid-2"))
    assert not is_owned(pod(), replace(JOB, namespace="other"))
    assert meta["namespace"] == "team"
    assert meta["labels"]["outlast.dev/job-name"] == "mnist"
    assert (meta["labels"]["outlast.dev/role"], meta["labels"]["outlast.dev/shard"]) == ("server", "0")
    assert meta["annotations"]["outlast.dev/process"] == "server-1"


def test_the_same_start_has_the_same_name_and_another_start_another() -> None:
    first = pod_name(JOB, "server-1", None)
    assert first == pod_name(JOB, "server-1", None)
    others = [
        pod_name(JOB, "server-1", "uid-of-the-old-pod"),
        pod_name(JOB, "server-1", None, 2),
        pod_name(JobRef("mnist", "team", "uid-2"), "server-1", None),
    ]
    assert len({first, *others}) == 4
    assert all(name.startswith("mnist-server-1-") for name in (first, *others))


def test_the_longest_names_fit() -> None:
    longest = JobRef("j" * 45, "n", "u")
    assert len(pod_name(longest, "worker-9999", "x", 99999)) <= 63


@pytest.mark.parametrize(
    ("template", "path", "expected"),
    [
        pytest.param(None, ("spec", "restartPolicy"), "Never", id="never restarted in place"),
        pytest.param({"spec": {"restartPolicy": "Always"}}, ("spec", "restartPolicy"), "Never", id="not even if asked"),
        pytest.param(None, ("spec", "terminationGracePeriodSeconds"), 30, id="time to hand over"),
        pytest.param(
            {"spec": {"terminationGracePeriodSeconds": 90}},
            ("spec", "terminationGracePeriodSeconds"),
            90,
            id="the user's time to hand over",
        ),
        pytest.param(
            {"spec": {"nodeSelector": {"a": "b"}}}, ("spec", "nodeSelector"), {"a": "b"}, id="what we do not know stays"
        ),
        pytest.param(
            {"spec": {"priorityClassName": "high"}}, ("spec", "priorityClassName"), "high", id="the user's priority"
        ),
        pytest.param({"spec": {"affinity": {}}}, ("spec", "affinity"), {}, id="the user's affinity, even an empty one"),
        pytest.param(None, ("spec", "hostname"), "server-1", id="a stable host name"),
        pytest.param(None, ("spec", "subdomain"), "mnist-servers", id="in the headless Service"),
        pytest.param(None, ("spec", "automountServiceAccountToken"), False, id="no way to the API server"),
        pytest.param(
            None, ("spec", "dnsConfig", "options", 0), {"name": "timeout", "value": "1"}, id="DNS is not waited for"
        ),
        pytest.param(
            {"spec": {"dnsConfig": {"options": []}}}, ("spec", "dnsConfig", "options"), [], id="the user's resolver"
        ),
    ],
)
def test_the_pod(template: Json | None, path: tuple[str, ...], expected: Any) -> None:
    found: Any = pod(template=template)
    for key in path:
        found = found[key]
    assert found == expected


def test_replicas_of_a_chain_prefer_different_nodes() -> None:
    preferred = pod()["spec"]["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    term = preferred[0]["podAffinityTerm"]
    assert term["labelSelector"]["matchLabels"] == {
        "outlast.dev/job-name": "mnist",
        "outlast.dev/role": "server",
        "outlast.dev/shard": "0",
    }
    assert "affinity" not in pod(WORKER)["spec"]


def test_pods_meet_the_restricted_standard() -> None:
    made = pod()
    assert made["spec"]["securityContext"]["runAsNonRoot"] is True
    assert made["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    security = container(made)["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["allowPrivilegeEscalation"] is False
    assert security["readOnlyRootFilesystem"] is True


def test_the_users_security_context_wins_field_by_field() -> None:
    made = pod(template=with_container(securityContext={"readOnlyRootFilesystem": False}))
    assert container(made)["securityContext"]["readOnlyRootFilesystem"] is False
    assert container(made)["securityContext"]["allowPrivilegeEscalation"] is False


def test_our_container_is_the_one_of_that_name_else_the_first() -> None:
    sidecar, ours = {"name": "sidecar", "image": "s:1"}, {"name": "outlast", "image": "mine:2"}
    made = pod(template={"spec": {"containers": [sidecar, ours]}})
    assert made["spec"]["containers"][0] == sidecar
    assert container(made)["image"] == "mine:2"
    first = pod(template={"spec": {"containers": [{"name": "mine", "image": "mine:3"}, sidecar]}})
    assert "OUTLAST_CONFIG" in environment(first)
    assert first["spec"]["containers"][1] == sidecar


def test_defaults_and_what_the_user_says_of_the_container() -> None:
    assert container(pod())["image"] == "trainer:1"
    assert container(pod())["command"] == ["python", "-m", "outlast.pod"]
    made = pod(WORKER, with_container(command=["run-me"], resources={"limits": {"nvidia.com/gpu": 1}}))
    assert container(made)["command"] == ["run-me"]
    assert container(made)["resources"] == {"limits": {"nvidia.com/gpu": 1}}


def test_the_evaluator_takes_the_workers_template_but_not_their_gpus() -> None:
    template = with_container(resources={"limits": {"nvidia.com/gpu": 1}}, env=[{"name": "DATA", "value": "/d"}])
    made = pod(EVALUATOR, workers={"template": template})
    assert "nvidia.com/gpu" not in json.dumps(container(made)["resources"])
    assert environment(made)["DATA"] == "/d"


def test_secrets_come_by_reference_and_stand_nowhere_else() -> None:
    made = pod(WORKER, recovery={"strategy": "Hybrid"})
    assert environment(made)["OUTLAST_TOKEN"] == {"secretKeyRef": {"name": "mnist-token", "key": "token"}}
    assert environment(made)["OUTLAST_REDIS_PASSWORD"] == {"secretKeyRef": {"name": "mnist-redis", "key": "password"}}
    config = json.loads(environment(made)["OUTLAST_CONFIG"])
    assert config["token"] == ""
    assert config["redis_url"] == "redis://mnist-redis:6379/0"


def test_the_users_environment_is_kept_but_for_names_of_ours() -> None:
    theirs = [{"name": "HOME", "value": "/home/me"}, {"name": "OUTLAST_TOKEN", "value": "guess"}]
    found = environment(pod(template=with_container(env=theirs)))
    assert found["HOME"] == "/home/me"
    assert found["OUTLAST_TOKEN"] != "guess"


def test_the_configuration_of_a_worker_and_a_server() -> None:
    worker = json.loads(environment(pod(WORKER))["OUTLAST_CONFIG"])
    assert (worker["slot"], worker["incarnation"], worker["listen"]) == (0, 3, None)
    assert [s["address"] for s in worker["servers"][0]][1] == "tcp:server-1.mnist-servers:7070"
    assert worker["spec"]["workers"]["template"] == {}
    server = json.loads(environment(pod(SERVER))["OUTLAST_CONFIG"])
    assert (server["listen"], server["checkpoint_dir"]) == ("tcp:0.0.0.0:7070", "/outlast/checkpoints")


@pytest.mark.parametrize(
    ("cpu", "threads"), [(None, 1), ("500m", 1), ("4", 4), (2, 2)], ids=["unsaid", "a part", "four", "as a number"]
)
def test_a_worker_computes_with_the_cpus_it_is_given(cpu: Any, threads: int) -> None:
    resources = {} if cpu is None else {"limits": {"cpu": cpu}}
    made = pod(WORKER, with_container(resources=resources))
    assert json.loads(environment(made)["OUTLAST_CONFIG"])["extras"]["threads"] == threads


def volume(made: Json, name: str) -> Json:
    return next((v for v in made["spec"]["volumes"] if v["name"] == name), {})


@pytest.mark.parametrize(
    ("storage", "claim", "source"),
    [
        ("Shared", 0, {"persistentVolumeClaim": {"claimName": "mnist-checkpoints"}}),
        ("PerServer", 0, {"persistentVolumeClaim": {"claimName": "mnist-checkpoints-server-1"}}),
        ("PerServer", 2, {"persistentVolumeClaim": {"claimName": "mnist-checkpoints-server-1-2"}}),
        ("NodeLocal", 0, {"emptyDir": {}}),
    ],
)
def test_checkpoints_go_where_it_was_chosen(storage: Any, claim: int, source: Json) -> None:
    made = pod(replace(SERVER, storage=storage, claim=claim))
    assert volume(made, "outlast-checkpoints") == {"name": "outlast-checkpoints", **source}
    config = json.loads(environment(made)["OUTLAST_CONFIG"])
    assert config["own_checkpoint_dir"] == (storage != "Shared")
    assert made["metadata"]["annotations"]["outlast.dev/claim"] == str(claim)


def test_checkpoints_go_to_the_users_volume() -> None:
    recovery = {"strategy": "Chain", "checkpoint": {"volume": {"hostPath": {"path": "/c"}}}}
    assert volume(pod(recovery=recovery), "outlast-checkpoints")["hostPath"] == {"path": "/c"}
    assert volume(pod(WORKER), "outlast-checkpoints") == {}


def test_a_claim_asks_for_what_the_spec_says() -> None:
    made = children.checkpoints_claim(JOB, "mnist-checkpoints-server-0", Claim())
    assert made["spec"] == {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10737418240"}}}
    claim = Claim(storage_class_name="fast", size=1 << 30, access_modes=["ReadWriteMany"])
    assert children.checkpoints_claim(JOB, "c", claim)["spec"] == {
        "accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1073741824"}},
        "storageClassName": "fast",
    }  # fmt: skip


def test_the_users_volumes_and_mounts_are_kept() -> None:
    template = with_container(volumeMounts=[{"name": "data", "mountPath": "/data"}])
    template["spec"]["volumes"] = [{"name": "data", "emptyDir": {}}]
    made = pod(template=template)
    assert volume(made, "data") == {"name": "data", "emptyDir": {}}
    assert {m["mountPath"] for m in container(made)["volumeMounts"]} == {"/data", "/tmp", "/outlast/checkpoints"}


def test_code_from_a_config_map_is_mounted_where_models_are() -> None:
    training = {"script": "train.py", "source": {"configMap": "code"}, "stopAfter": {"updates": 10}}
    made = pod(WORKER, training=training)
    assert volume(made, "outlast-source")["configMap"] == {"name": "code"}
    assert container(made)["workingDir"] == "/outlast/source"
    assert volume(pod(SERVER, training=training), "outlast-source") == {}


def test_a_queue_makes_a_pod_group_of_the_whole_job() -> None:
    queued = JobRef("mnist", "team", "uid-1", {"kueue.x-k8s.io/queue-name": "gpus"})
    meta = pod(job=queued)["metadata"]
    assert meta["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert meta["labels"]["kueue.x-k8s.io/pod-group-name"] == "mnist"
    assert meta["annotations"]["kueue.x-k8s.io/pod-group-total-count"] == "6"
    assert not any(key.startswith("kueue") for key in pod()["metadata"]["labels"])


@pytest.mark.parametrize(
    ("recovery", "count"),
    [({"strategy": "Chain"}, 6), ({"strategy": "Hybrid"}, 7), ({"strategy": "Stateless"}, 5)],
    ids=["chain: 3 + 2 + evaluator", "hybrid: and redis", "stateless: 1 + 2 + evaluator + redis"],
)
def test_pods_of_a_job(recovery: Json, count: int) -> None:
    assert pod_count(spec(recovery=recovery)) == count


@pytest.mark.parametrize("template", [{"spec": {"containers": "x"}}, {"spec": []}, {"metadata": {"labels": 3}}])
def test_what_is_no_template_is_named(template: Json) -> None:
    with pytest.raises(ValueError, match=r"template\."):
        pod(template=template)


MI = 1 << 20


def maxmemory(pod: Json) -> int:
    return int(pod["spec"]["containers"][0]["command"][2].split("--maxmemory ")[1].split()[0])


@pytest.mark.parametrize(("max_mi", "requested"), [(64, "129Mi"), (1024, "512Mi"), (4096, "512Mi")])
def test_redis_may_use_more_than_its_log_and_snapshots_need(max_mi: int, requested: str) -> None:
    job = spec(recovery={"strategy": "Stateless", "buffer": {"maxBytes": max_mi * MI}})
    made = children.redis_pod(JOB, job, IMAGES, None)
    resources = made["spec"]["containers"][0]["resources"]
    assert resources["requests"] == {"cpu": "100m", "memory": requested}
    limit = int(resources["limits"]["memory"].removesuffix("Mi")) * MI
    assert limit * 8 // 9 >= maxmemory(made) >= (max_mi + 2048) * MI


def test_by_default_no_container_of_redis_needs_more_than_small_limit_ranges_give() -> None:
    made = children.redis_pod(JOB, spec(recovery={"strategy": "Hybrid"}), IMAGES, None)
    assert int(made["spec"]["containers"][0]["resources"]["limits"]["memory"].removesuffix("Mi")) < 4096


def test_redis_follows_its_own_template() -> None:
    theirs = {
        "spec": {
            "containers": [{"image": "redis:mine", "resources": {"limits": {"memory": "9Gi"}}}],
            "nodeSelector": {},
        }
    }
    recovery = {"strategy": "Hybrid", "buffer": {"template": theirs}}
    job = spec(recovery=recovery, servers={"template": {"spec": {"priorityClassName": "high"}}})
    made = children.redis_pod(JOB, job, IMAGES, None)
    container = made["spec"]["containers"][0]
    assert (container["name"], container["image"]) == ("redis", "redis:mine")
    assert container["resources"] == {"limits": {"memory": "9Gi"}}
    assert maxmemory(made) == 8 << 30
    assert "priorityClassName" not in made["spec"]
    assert made["spec"]["restartPolicy"] == "Always"


def test_the_container_of_redis_may_have_another_name() -> None:
    theirs = {"spec": {"containers": [{"name": "store"}]}}
    made = children.redis_pod(JOB, spec(recovery={"strategy": "Hybrid", "buffer": {"template": theirs}}), IMAGES, None)
    assert made["metadata"]["annotations"]["outlast.dev/container"] == made["spec"]["containers"][0]["name"] == "store"


def test_the_evaluator_follows_its_own_template() -> None:
    own = with_container(image="eval:1", resources={"limits": {"memory": "8Gi"}})
    job = spec(workers={"template": with_container(image="train:1")}, evaluator={"template": own})
    made = process_pod(JOB, job, IMAGES, EVALUATOR)
    assert container(made)["image"] == "eval:1"
    assert container(made)["resources"] == {"limits": {"memory": "8Gi"}}


@pytest.mark.parametrize("role", ["server", "worker", "evaluator", "redis"])
def test_every_container_has_limits_above_its_requests(role: str) -> None:
    """A quota on limits refuses one without; the default of a LimitRange may lie below what is requested."""
    action = {"server": SERVER, "worker": WORKER, "evaluator": EVALUATOR}.get(role)
    job = spec(recovery={"strategy": "Hybrid"})
    made = children.redis_pod(JOB, job, IMAGES, None) if action is None else process_pod(JOB, job, IMAGES, action)
    for container in made["spec"]["containers"]:
        resources = container["resources"]
        assert set(resources["requests"]) == set(resources["limits"]) == {"cpu", "memory"}


def test_no_template_gets_into_a_pods_environment() -> None:
    marked = {"metadata": {"annotations": {"mark": "do-not-carry"}}}
    job = spec(
        servers={"template": marked},
        workers={"template": marked},
        evaluator={"template": marked},
        recovery={"strategy": "Hybrid", "buffer": {"template": marked}},
    )
    assert "do-not-carry" not in process_config(JOB, job, SERVER).to_json()


def test_redis_keeps_what_the_job_asks_for_and_hides_its_password() -> None:
    made = children.redis_pod(JOB, spec(recovery={"strategy": "Stateless"}), IMAGES, None)
    script = made["spec"]["containers"][0]["command"][2]
    assert "--appendonly yes --appendfsync always" in script
    assert "--maxmemory-policy noeviction" in script
    assert maxmemory(made) > 1 << 30
    assert "requirepass %s" in script
    assert made["spec"]["restartPolicy"] == "Always"
    assert made["spec"]["containers"][0]["name"] == "redis"


def test_redis_runs_where_servers_may_and_is_pulled_with_their_secrets() -> None:
    where: Json = {
        "imagePullSecrets": [{"name": "registry"}],
        "nodeSelector": {"pool": "cpu"},
        "tolerations": [{"key": "dedicated", "operator": "Exists"}],
        "priorityClassName": "training",
    }
    theirs = {**where, "containers": [{"name": "outlast", "image": "mine:1", "env": [{"name": "A", "value": "b"}]}]}
    job = spec(recovery={"strategy": "Stateless"}, servers={"template": {"spec": theirs}})
    made = children.redis_pod(JOB, job, IMAGES, None)["spec"]
    its = {**where, "tolerations": [*where["tolerations"], NOT_READY, UNREACHABLE]}
    assert {field: made[field] for field in where} == its
    assert made["containers"][0]["image"] == IMAGES.redis
    assert "A" not in {e["name"] for e in made["containers"][0]["env"]}


def test_a_redis_that_is_evicted_waits_until_its_data_is_applied_or_its_grace_is_over() -> None:
    made = children.redis_pod(JOB, spec(recovery={"strategy": "Stateless"}), IMAGES, None)["spec"]
    (command, seconds) = made["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert (command, int(seconds) < made["terminationGracePeriodSeconds"] <= 60) == ("sleep", True)
    service = children.redis_endpoint(JOB)["spec"]
    assert service["publishNotReadyAddresses"], "a server that rebuilds finds a Redis that is to end"


def test_redis_prefers_a_node_without_a_server() -> None:
    made = children.redis_pod(JOB, spec(recovery={"strategy": "Stateless"}), IMAGES, None)["spec"]
    (term,) = made["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert term["podAffinityTerm"]["labelSelector"]["matchLabels"].items() <= pod()["metadata"]["labels"].items()


@pytest.mark.parametrize(
    ("strategy", "replicas", "shards", "at_least"),
    [("Chain", 3, 1, [2]), ("Chain", 2, 2, [1, 1]), ("Hybrid", 3, 2, [2, 2])],
)
def test_a_shard_with_several_servers_has_a_budget(
    strategy: str, replicas: int, shards: int, at_least: list[int]
) -> None:
    job = spec(recovery={"strategy": strategy}, servers={"replicas": replicas, "shards": shards})
    budgets = children.disruption_budgets(JOB, job)
    assert [b["spec"]["minAvailable"] for b in budgets] == at_least
    assert {b["spec"]["unhealthyPodEvictionPolicy"] for b in budgets} == {"AlwaysAllow"}
    for shard in range(shards):
        made = process_pod(JOB, job, IMAGES, StartProcess(f"server-{shard}", "server", shard=shard))
        selected = [
            b for b in budgets if b["spec"]["selector"]["matchLabels"].items() <= made["metadata"]["labels"].items()
        ]
        assert [b["metadata"]["name"] for b in selected] == [f"mnist-shard-{shard}"], "two budgets end every eviction"


@pytest.mark.parametrize("strategy", ["Checkpoint", "Stateless"])
def test_the_only_server_of_a_shard_has_no_budget(strategy: str) -> None:
    job = spec(recovery={"strategy": strategy}, servers={"shards": 2})
    assert children.disruption_budgets(JOB, job) == []


def test_a_server_is_told_its_grace_period_and_answers_for_its_readiness() -> None:
    made = pod(template={"spec": {"terminationGracePeriodSeconds": 90}})
    extras = json.loads(environment(made)["OUTLAST_CONFIG"])["extras"]
    assert extras["grace_s"] == 90.0
    default = json.loads(environment(pod())["OUTLAST_CONFIG"])["extras"]
    assert default["grace_s"] == pod()["spec"]["terminationGracePeriodSeconds"]
    asked = container(made)["readinessProbe"]["httpGet"]
    assert asked == {"path": "/readyz", "port": extras["readiness_port"]}


def test_services_find_servers_before_they_are_ready() -> None:
    headless = children.servers_headless(JOB)["spec"]
    assert (headless["clusterIP"], headless["publishNotReadyAddresses"]) == ("None", True)
    labels = pod()["metadata"]["labels"]
    assert headless["selector"].items() <= labels.items(), "it selects the servers"
    assert headless["selector"]["outlast.dev/named"] == "true"
    assert children.redis_endpoint(JOB)["metadata"]["name"] == "mnist-redis"


def test_a_secret_gives_its_value_back() -> None:
    assert children.secret_value(children.token(JOB, "s3cret"), "token") == "s3cret"


def test_further_slots_are_told_by_an_annotation() -> None:
    assert with_slots({2: 5, 1: 3}) == {"metadata": {"annotations": {"outlast.dev/slots": '{"1": 3, "2": 5}'}}}


def test_services_do_not_lead_to_the_pods_of_a_deleted_job_of_the_name() -> None:
    anew = JobRef("mnist", "team", "uid-2")
    for service in (children.servers_headless(anew), children.redis_endpoint(anew)):
        selector = service["spec"]["selector"]
        role = selector["outlast.dev/role"]
        made = {"server": pod, "redis": lambda job: children.redis_pod(job, spec(), IMAGES, None)}[role]
        assert selector.items() <= made(job=anew)["metadata"]["labels"].items()
        assert not selector.items() <= made(job=JOB)["metadata"]["labels"].items()


@pytest.mark.parametrize(
    ("names", "noted"),
    [([], None), (["outlast"], None), (["proxy", "outlast"], None), (["trainer", "proxy"], "trainer")],
    ids=["no template", "ours by name", "ours is not the first", "ours is the first"],
)
def test_a_pod_says_which_container_runs_our_process(names: list[str], noted: str | None) -> None:
    made = pod(template={"spec": {"containers": [{"name": name} for name in names]}})
    assert made["metadata"]["annotations"].get("outlast.dev/container") == noted
    ours = next(c for c in made["spec"]["containers"] if c["name"] == (noted or "outlast"))
    assert ours["command"] == ["python", "-m", "outlast.pod"]
