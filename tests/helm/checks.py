"""What no schema can see: whether the objects of a release fit together and are safe.

Each check is a generator of problems in words; `problems` runs them all.
"""

import importlib
import io
import re
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import cache
from typing import Any

from handler.launch import Addresses
from handler.pod_key import KEY
from tests.helm.chart import NAMESPACE, Manifest, of_kind

Check = Callable[[list[Manifest]], Iterator[str]]
CHECKS: list[Check] = []
UNITS = {"m": 1e-3, "k": 1e3, "Ki": 2**10, "M": 1e6, "Mi": 2**20, "G": 1e9, "Gi": 2**30}
DRAIN_END_SECONDS = 10
# Who answers which path; the exporter's and TorchServe's tests hold the other end.
PATHS = {8080: {"/ping"}, 9404: {"/ready", "/metrics"}}
SECRET_NAME = re.compile(r"TOKEN|PASSWORD|SECRET|ACCESS_KEY")


def check(function: Check) -> Check:
    CHECKS.append(function)
    return function


def problems(manifests: list[Manifest]) -> list[str]:
    """Everything that is wrong with a release, said in words."""
    return [f"{c.__name__}: {problem}" for c in CHECKS for problem in c(manifests)]


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """The name, and metadata and spec, of each pod or pod template."""
    for manifest in manifests:
        if manifest["kind"] == "Deployment":
            yield manifest["metadata"]["name"], manifest["spec"]["template"]
        elif manifest["kind"] == "Pod":
            yield manifest["metadata"]["name"], manifest


def containers(pod: Manifest) -> list[dict[str, Any]]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def matches(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return bool(selector) and selector.items() <= labels.items()


def quantity(value: Any) -> float:
    found = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(value))
    assert found, value
    return float(found[1]) * UNITS.get(found[2], 1)


def ports_of(pod: Manifest) -> dict[str, int]:
    return named_ports(containers(pod))


def named_ports(some: list[dict[str, Any]]) -> dict[str, int]:
    return {
        port["name"]: port["containerPort"]
        for container in some
        for port in container.get("ports", [])
    }


@check
def selectors_match(manifests: list[Manifest]) -> Iterator[str]:
    templates = [pod["metadata"]["labels"] for _, pod in pods(manifests)]
    for deployment in of_kind(manifests, "Deployment"):
        selector = deployment["spec"]["selector"]["matchLabels"]
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        name = deployment["metadata"]["name"]
        if not matches(selector, labels):
            yield f"Deployment {name} does not select its own pods"
        if sum(matches(selector, other) for other in templates) != 1:
            yield f"Deployment {name} selects pods of another"
        for spread in deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]:
            if not matches(spread["labelSelector"]["matchLabels"], labels):
                yield f"Deployment {name} spreads other pods than its own"
    for kind, path in (("Service", None), ("PodDisruptionBudget", "selector")):
        for manifest in of_kind(manifests, kind):
            selector = manifest["spec"]["selector"]
            selector = selector["matchLabels"] if path else selector
            found = sum(matches(selector, labels) for labels in templates)
            wanted = (
                len(of_kind(manifests, "Deployment"))
                if manifest["metadata"]["name"].endswith("-metrics")
                else 1
            )
            if found != wanted:
                yield f"{kind} {manifest['metadata']['name']} selects {found} kinds of pods"
    for policy in of_kind(manifests, "NetworkPolicy"):
        selector = policy["spec"]["podSelector"].get("matchLabels", {})
        found = sum(matches(selector, labels) for labels in templates)
        if found != len(of_kind(manifests, "Deployment")):
            yield "the NetworkPolicy does not select the servers, and only them"
    for monitor in of_kind(manifests, "ServiceMonitor"):
        selector = monitor["spec"]["selector"]["matchLabels"]
        services = [
            service
            for service in of_kind(manifests, "Service")
            if matches(selector, service["metadata"]["labels"])
        ]
        if len(services) != 1:
            yield f"the ServiceMonitor selects {len(services)} services"
        for service in services:
            names = {port["name"] for port in service["spec"]["ports"]}
            for endpoint in monitor["spec"]["endpoints"]:
                if endpoint["port"] not in names:
                    yield f"the ServiceMonitor scrapes the port {endpoint['port']}"


@check
def ports_exist(manifests: list[Manifest]) -> Iterator[str]:
    for service in of_kind(manifests, "Service"):
        for _, pod in pods(manifests):
            if matches(service["spec"]["selector"], pod["metadata"]["labels"]):
                # Kubernetes before 1.33 finds a sidecar's port, an init container's, by number alone.
                found = {*named_ports(pod["spec"]["containers"]), *ports_of(pod).values()}
                for port in service["spec"]["ports"]:
                    if port["targetPort"] not in found:
                        yield f"Service {service['metadata']['name']} leads to {port['targetPort']}"
    for name, pod in pods(manifests):
        if len(set(ports_of(pod).values())) != len(ports_of(pod)):
            yield f"two containers of {name} have one port"
        for container in containers(pod):
            own = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                if kind not in container:
                    continue
                probe = container[kind]["httpGet"]
                port = own.get(probe["port"], probe["port"])
                if port not in ports_of(pod).values() or probe["path"] not in PATHS.get(port, ()):
                    yield f"the {kind} of {container['name']} asks {probe}"
    for policy in of_kind(manifests, "NetworkPolicy"):
        open_ports = {
            port["port"] for rule in policy["spec"]["ingress"] for port in rule.get("ports", [])
        }
        for _, pod in pods(manifests):
            if not open_ports <= set(ports_of(pod).values()) and pod.get("kind") != "Pod":
                yield f"the NetworkPolicy opens {open_ports}"
    targets = {
        (service["metadata"]["name"], port[key])
        for service in of_kind(manifests, "Service")
        for port in service["spec"]["ports"]
        for key in ("name", "port")
    }
    for ingress in of_kind(manifests, "Ingress"):
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                backend = path["backend"]["service"]
                if (backend["name"], backend["port"]["name"]) not in targets:
                    yield f"Ingress {ingress['metadata']['name']} leads to {backend}"
    for route in of_kind(manifests, "HTTPRoute"):
        for rule in route["spec"]["rules"]:
            for backend in rule["backendRefs"]:
                if (backend["name"], backend["port"]) not in targets:
                    yield f"the HTTPRoute leads to {backend}"
            if sum(backend["weight"] for backend in rule["backendRefs"]) != 100:
                yield "the HTTPRoute's weights are not 100 together"


@check
def grpc_is_open_all_the_way_or_closed(manifests: list[Manifest]) -> Iterator[str]:
    for deployment in of_kind(manifests, "Deployment"):
        name, pod = deployment["metadata"]["name"], deployment["spec"]["template"]
        labels = pod["metadata"]["labels"]
        server = next(item for item in pod["spec"]["containers"] if item["name"] == "server")
        port = Addresses.grpc_inference
        listens = options_of(server["args"]).get("--grpc-host", Addresses.grpc_host) == "0.0.0.0"
        agree = {"the container": port in ports_of(pod).values()}
        for service in of_kind(manifests, "Service"):
            names = {item["name"] for item in service["spec"]["ports"]}
            if "http" in names and matches(service["spec"]["selector"], labels):
                agree[f"Service {service['metadata']['name']}"] = any(
                    ports_of(pod).get(item["targetPort"]) == port
                    for item in service["spec"]["ports"]
                )
        for policy in of_kind(manifests, "NetworkPolicy"):
            if matches(policy["spec"]["podSelector"]["matchLabels"], labels):
                agree["the NetworkPolicy"] = any(
                    {port, Addresses.inference} <= {item["port"] for item in rule["ports"]}
                    for rule in policy["spec"]["ingress"]
                )
        for who, opens in agree.items():
            if opens != listens:
                said = "listens beyond loopback" if listens else "does not listen"
                yield f"gRPC of {name} {said}, and {who} {'opens' if opens else 'closes'} it"
        if listens and "--open" not in server["args"]:
            yield f"gRPC of {name} is open to callers whom HTTP would ask for a token"


@check
def callers_reach_the_one_path(manifests: list[Manifest]) -> Iterator[str]:
    both = {"/predictions/asr", "/v1/audio/transcriptions"}
    for ingress in of_kind(manifests, "Ingress"):
        paths = {
            path["path"] for rule in ingress["spec"]["rules"] for path in rule["http"]["paths"]
        }
        target = ingress["metadata"]["annotations"].get(
            "nginx.ingress.kubernetes.io/rewrite-target"
        )
        kinds = {
            path["pathType"] for rule in ingress["spec"]["rules"] for path in rule["http"]["paths"]
        }
        if kinds != {"Exact"}:
            yield f"Ingress {ingress['metadata']['name']} matches by {kinds}"
        if paths != both or target != "/predictions/asr":
            yield f"Ingress {ingress['metadata']['name']}: {paths} to {target}"
    for route in of_kind(manifests, "HTTPRoute"):
        found = {}
        for rule in route["spec"]["rules"]:
            path = rule["matches"][0]["path"]["value"]
            rewrite = rule.get("filters", [{}])[0].get("urlRewrite", {}).get("path", {})
            found[path] = rewrite.get("replaceFullPath", path)
        if found != dict.fromkeys(both, "/predictions/asr"):
            yield f"HTTPRoute: {found}"


@check
def volumes_and_references_exist(manifests: list[Manifest]) -> Iterator[str]:
    config_maps = {manifest["metadata"]["name"] for manifest in of_kind(manifests, "ConfigMap")}
    accounts = {manifest["metadata"]["name"] for manifest in of_kind(manifests, "ServiceAccount")}
    for name, pod in pods(manifests):
        declared = {volume["name"] for volume in pod["spec"].get("volumes", [])}
        mounted = {
            mount["name"] for item in containers(pod) for mount in item.get("volumeMounts", [])
        }
        if declared != mounted:
            yield f"{name} mounts {sorted(mounted)} of the volumes {sorted(declared)}"
        for volume in pod["spec"].get("volumes", []):
            if volume["name"] in {"config", "clip"}:
                if volume["configMap"]["name"] not in config_maps:
                    yield f"{name} mounts the ConfigMap {volume['configMap']['name']}"
            elif "emptyDir" in volume and not volume["emptyDir"].get("sizeLimit"):
                yield f"the volume {volume['name']} of {name} has no limit"
        account = pod["spec"].get("serviceAccountName")
        if accounts and account and account not in accounts:
            yield f"{name} runs as {account}, which there is not"
    for deployment in of_kind(manifests, "Deployment"):
        metadata = deployment["spec"]["template"]["metadata"]
        if not re.fullmatch("[0-9a-f]{64}", metadata["annotations"].get("checksum/config", "")):
            yield "a change of the configuration would not reach the pods"


@check
def writable_only_where_needed(manifests: list[Manifest]) -> Iterator[str]:
    for name, pod in pods(manifests):
        for container in containers(pod):
            writable = {
                mount["mountPath"]
                for mount in container.get("volumeMounts", [])
                if not mount.get("readOnly")
            }
            wanted = {"fetch": {"/models"}, "server": {"/tmp"}}.get(container["name"], set())
            if writable != wanted:
                yield f"{container['name']} of {name} can write to {sorted(writable)}"


@check
def resources_are_bounded(manifests: list[Manifest]) -> Iterator[str]:
    for name, pod in pods(manifests):
        for container in containers(pod):
            where = f"{container['name']} of {name}"
            resources = container.get("resources", {})
            requests, limits = resources.get("requests", {}), resources.get("limits", {})
            if not {"cpu", "memory"} <= requests.keys() or "memory" not in limits:
                yield f"{where} has no request or no limit"
            for key in requests.keys() & limits.keys():
                if quantity(requests[key]) > quantity(limits[key]):
                    yield f"{where} requests more {key} than its limit"


@check
def nothing_has_rights(manifests: list[Manifest]) -> Iterator[str]:
    for name, pod in pods(manifests):
        spec = pod["spec"]
        security = spec.get("securityContext", {})
        if not security.get("runAsNonRoot") or security.get("runAsUser", 0) < 1:
            yield f"{name} may run as root"
        if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{name} has no seccomp profile"
        if spec.get("automountServiceAccountToken") is not False:
            yield f"{name} gets a token of the cluster"
        if any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
            yield f"{name} shares the host's namespaces"
        for volume in spec.get("volumes", []):
            if "hostPath" in volume:
                yield f"{name} mounts the host's {volume['hostPath']}"
        for container in containers(pod):
            own = container.get("securityContext", {})
            if (
                own.get("allowPrivilegeEscalation") is not False
                or own.get("readOnlyRootFilesystem") is not True
                or own.get("capabilities", {}).get("drop") != ["ALL"]
                or own.get("capabilities", {}).get("add")
                or own.get("privileged")
                or own.get("runAsUser") == 0
            ):
                yield f"{container['name']} of {name} has rights: {own}"


@check
def secrets_are_given_by_name(manifests: list[Manifest]) -> Iterator[str]:
    for secret in of_kind(manifests, "Secret"):
        yield f"the chart makes the secret {secret['metadata']['name']}"
    for name, pod in pods(manifests):
        for container in containers(pod):
            environment = {item["name"] for item in container.get("env", [])}
            for item in container.get("env", []):
                if SECRET_NAME.search(item["name"]) and "value" in item:
                    yield f"{item['name']} stands in {name} for all to read"
            if container["name"] == "server" and environment:
                yield f"the server, which runs the archive's code, sees {sorted(environment)}"
    for deployment in of_kind(manifests, "Deployment"):
        annotations = deployment["spec"]["template"]["metadata"]["annotations"]
        if annotations.get("eks.amazonaws.com/skip-containers") != "server":
            yield "on EKS the server would get the role's token"


@check
def images_are_pinned(manifests: list[Manifest]) -> Iterator[str]:
    for name, pod in pods(manifests):
        for container in containers(pod):
            image = container["image"]
            tag = image.rpartition("/")[2].partition(":")[2]
            if "@sha256:" not in image and tag in ("", "latest"):
                yield f"{container['name']} of {name} runs {image}"


@check
def the_pod_ends_without_loss(manifests: list[Manifest]) -> Iterator[str]:
    for deployment in of_kind(manifests, "Deployment"):
        spec = deployment["spec"]["template"]["spec"]
        server = next(item for item in spec["containers"] if item["name"] == "server")
        exporter = next(item for item in spec["initContainers"] if item["name"] == "exporter")
        if server["command"][:3] != ["tini", "-g", "--"]:
            yield "process 1 is not tini, which hands signals on to the whole group"
        hook = server.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
        drain = options_of(hook)
        if "handler.drain" not in hook:
            yield "there is no preStop that drains"
            continue
        if drain["--folder"] != options_of(server["args"])["--folder"]:
            yield "the drain looks for workers in another folder than the server's"
        address = f"http://127.0.0.1:{exporter['ports'][0]['containerPort']}"
        if drain["--exporter"] != address:
            yield f"the drain tells {drain['--exporter']}"
        if options_of(server["args"]).get("--exporter") != address:
            yield "a server that is started again stays unready: its exporter does not hear of it"
        keys = {
            f"{options_of(server['args'])['--model-store']}/{KEY}",
            drain.get("--key"),
            options_of(exporter["args"]).get("--key"),
        }
        if len(keys) > 1:
            yield f"the exporter does not believe the drain or the server: their keys are {keys}"
        timeout = float(drain.get("--timeout", 0))
        if float(drain.get("--propagation", 0)) >= timeout:
            yield "the drain is over before anybody has heard of it"
        needed = timeout + DRAIN_END_SECONDS
        if spec["terminationGracePeriodSeconds"] < needed:
            yield "Kubernetes kills the pod while it drains"
        if exporter.get("restartPolicy") != "Always":
            yield "the exporter is no sidecar: the server would never start"
        for container in (spec["initContainers"][0], server):
            if container.get("terminationMessagePolicy") != "FallbackToLogsOnError":
                yield f"`kubectl describe` would not say why {container['name']} ended"
        names = [item["name"] for item in spec["initContainers"]]
        if names != ["fetch", "exporter"]:
            yield f"the init containers run in the order {names}"
        rolling = deployment["spec"]["strategy"]["rollingUpdate"]
        if str(rolling["maxSurge"]) == str(rolling["maxUnavailable"]) == "0":
            yield "no pod can be replaced"


@check
def probes_tell_the_truth(manifests: list[Manifest]) -> Iterator[str]:
    for deployment in of_kind(manifests, "Deployment"):
        for server in deployment["spec"]["template"]["spec"]["containers"]:
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                if kind not in server:
                    yield f"{server['name']} has no {kind}"
            for kind in ("startupProbe", "readinessProbe"):
                if server.get(kind, {}).get("httpGet", {}).get("path") != "/ready":
                    yield f"the {kind} does not ask whether a worker is READY"
            if server.get("livenessProbe", {}).get("httpGet", {}).get("path") == "/ready":
                yield "a pod that drains would be killed"


@check
def one_autoscaler_at_most(manifests: list[Manifest]) -> Iterator[str]:
    scalers = of_kind(manifests, "HorizontalPodAutoscaler") + of_kind(manifests, "ScaledObject")
    deployments = {item["metadata"]["name"]: item for item in of_kind(manifests, "Deployment")}
    if len(scalers) > 1:
        yield f"{len(scalers)} autoscalers"
    for scaler in scalers:
        target = deployments.get(scaler["spec"]["scaleTargetRef"]["name"])
        if target is None:
            yield "the autoscaler's target is not there"
        elif "replicas" in target["spec"]:
            yield "each upgrade would set back what the autoscaler chose"
    for name, deployment in deployments.items():
        if "replicas" not in deployment["spec"] and not scalers:
            yield f"nobody says how many pods {name} has"


@check
def the_budget_lets_nodes_drain(manifests: list[Manifest]) -> Iterator[str]:
    for budget in of_kind(manifests, "PodDisruptionBudget"):
        for deployment in of_kind(manifests, "Deployment"):
            selector = budget["spec"]["selector"]["matchLabels"]
            labels = deployment["spec"]["template"]["metadata"]["labels"]
            if matches(selector, labels) and deployment["spec"].get("replicas", 2) < 2:
                yield "a budget for a single pod"
        if str(budget["spec"].get("maxUnavailable")) in ("0", "0%", "None"):
            yield "the budget lets no pod go"


@check
def the_network_is_closed(manifests: list[Manifest]) -> Iterator[str]:
    for policy in of_kind(manifests, "NetworkPolicy"):
        spec = policy["spec"]
        if set(spec["policyTypes"]) != {"Ingress", "Egress"}:
            yield f"the policy is only for {spec['policyTypes']}"
        for direction, peers in (("ingress", "from"), ("egress", "to")):
            for rule in spec.get(direction) or []:
                if not rule.get(peers) or {} in rule[peers]:
                    yield f"a rule of {direction} is for everybody"
                if not rule.get("ports"):
                    yield f"a rule of {direction} is for all ports"
        if not any(port["port"] == 53 for rule in spec["egress"] for port in rule["ports"]):
            yield "no name can be resolved"


@check
def names_are_labels(manifests: list[Manifest]) -> Iterator[str]:
    seen = set()
    for manifest in manifests:
        name = manifest["metadata"]["name"]
        if not re.fullmatch("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name):
            yield f"{manifest['kind']} {name} cannot be a name"
        if manifest["metadata"].get("namespace") != NAMESPACE:
            yield f"{manifest['kind']} {name} is not in the release's namespace"
        if (manifest["kind"], name) in seen:
            yield f"two {manifest['kind']} {name}"
        seen.add((manifest["kind"], name))


@check
def programs_know_their_options(manifests: list[Manifest]) -> Iterator[str]:
    for name, pod in pods(manifests):
        for container in containers(pod):
            lines = [[*container["command"], *container.get("args", [])]]
            hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {})
            lines += [hook["command"]] if hook else []
            for line in lines:
                if "-m" not in line or not line[line.index("-m") + 1].startswith("handler."):
                    yield f"{container['name']} of {name} runs {line}"
                    continue
                known = help_of(line[line.index("-m") + 1])
                for option in options_of(line):
                    if not re.search(rf"{option}\b", known):
                        yield f"{line} has the unknown option {option}"


@check
def queries_ask_for_this_release(manifests: list[Manifest]) -> Iterator[str]:
    services = {item["metadata"]["name"] for item in of_kind(manifests, "Service")}
    queries = [
        rule["expr"]
        for item in of_kind(manifests, "PrometheusRule")
        for group in item["spec"]["groups"]
        for rule in group["rules"]
        if "expr" in rule
    ]
    queries += [
        trigger["metadata"]["query"]
        for item in of_kind(manifests, "ScaledObject")
        for trigger in item["spec"]["triggers"]
    ]
    for query in queries:
        # A selector's, or one that label_replace sets.
        asked = set(re.findall(r'service(?:=|", )"([^"]*)"', query))
        if not asked <= services:
            yield f"{query} asks for {asked - services}"


def collisions(one: list[Manifest], other: list[Manifest]) -> list[str]:
    """What two releases in one namespace would take from each other."""
    names = [{(m["kind"], m["metadata"]["name"]) for m in release} for release in (one, other)]
    shared = [f"both have {kind} {name}" for kind, name in sorted(names[0] & names[1])]
    return shared + [
        problem
        for problem in problems(one + other)
        if problem.startswith("selectors_match: Deployment")
    ]


def options_of(line: list[str]) -> dict[str, str]:
    """The options of a command line with their values."""
    options = {}
    for word, following in zip(line, [*line[1:], ""], strict=True):
        if word.startswith("--") and word != "--":
            option, equals, value = word.partition("=")
            options[option] = value if equals else following
    return options


@cache
def help_of(module: str) -> str:
    text = io.StringIO()
    try:
        with redirect_stdout(text):
            importlib.import_module(module).main(["--help"])
    except SystemExit:
        return text.getvalue()
    except ModuleNotFoundError:
        return ""
    raise AssertionError(f"{module} has no --help")
