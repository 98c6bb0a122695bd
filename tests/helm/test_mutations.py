"""Deliberate faults in the templates: the checks must find every one."""

import shutil
from pathlib import Path

import helm_python as helm
import pytest

from tests.helm.chart import CHART, CI_FILES, REQUIRED, VALUE_FILES, render, values_of
from tests.helm.checks import collisions, problems
from tests.helm.test_chart import VERSIONS, schema_problems

DEPLOYMENT = "_deployment.tpl"
# template, what stands there, what a careless hand would leave
FAULTS = [
    ("_helpers.tpl", "runAsNonRoot: true", "runAsNonRoot: false"),
    ("_helpers.tpl", "runAsUser: 1000", "runAsUser: 0"),
    ("_helpers.tpl", "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false"),
    ("_helpers.tpl", "allowPrivilegeEscalation: false\n", ""),
    ("_helpers.tpl", "capabilities: {drop: [ALL]}", "capabilities: {drop: [NET_RAW]}"),
    ("_helpers.tpl", "seccompProfile: {type: RuntimeDefault}", ""),
    ("_helpers.tpl", "{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}", "steno:latest"),
    ("_helpers.tpl", '-%s" .Release.Name $name', '-%s" "steno" $name'),
    ("_helpers.tpl", "app.kubernetes.io/component: server", "app.kubernetes.io/component: serve"),
    (DEPLOYMENT, "automountServiceAccountToken: false", "automountServiceAccountToken: true"),
    (DEPLOYMENT, "enableServiceLinks: false", "hostNetwork: true"),
    (DEPLOYMENT, "[tini, -g, --, ", "["),
    (DEPLOYMENT, "- handler.drain", "- handler.drian"),
    (
        DEPLOYMENT,
        "- --folder={{ $server }}\n            - --exporter",
        "- --folder=/tmp/x\n            - --exporter",
    ),
    (DEPLOYMENT, '"http://127.0.0.1:9404"', '"http://127.0.0.1:8080"'),
    (
        DEPLOYMENT,
        "            - --exporter={{ $exporter }}\n            {{- if",
        "            {{- if",
    ),
    (
        DEPLOYMENT,
        "--served=/models/served.json\n            - --key",
        "--served=/x\n            - --k",
    ),
    (DEPLOYMENT, "- --key={{ $key }}\n                  - --propagation", "- --propagation"),
    (DEPLOYMENT, "- --propagation=", "- --propogation="),
    ("_helpers.tpl", "add .Values.drain.timeoutSeconds 30", "30"),
    (DEPLOYMENT, "restartPolicy: Always\n", "\n"),
    (DEPLOYMENT, "httpGet: {path: /ready, port: 9404}", "httpGet: {path: /ping, port: http}"),
    (DEPLOYMENT, "httpGet: {path: /ping, port: http}", "httpGet: {path: /ping, port: htp}"),
    (DEPLOYMENT, "readinessProbe:", "redinessProbe:"),
    (DEPLOYMENT, "- {name: tmp, mountPath: /tmp}", ""),
    (
        DEPLOYMENT,
        "- {name: models, mountPath: /models, readOnly: true}\n            - {name: config",
        "- {name: models, mountPath: /models}\n            - {name: config",
    ),
    (
        DEPLOYMENT,
        'configMap: {name: {{ include "steno.fullname" $root }}}',
        "configMap: {name: steno}",
    ),
    (DEPLOYMENT, "checksum/config: {{", "checksum: {{"),
    (DEPLOYMENT, "containerPort: 8080", "containerPort: 99999"),
    (DEPLOYMENT, "containerPort: 9404", "containerPort: 8080"),
    (DEPLOYMENT, "toYaml $v.exporterResources", "toYaml (dict)"),
    (DEPLOYMENT, "emptyDir: {sizeLimit: {{ $v.model.sizeLimit }}}", "emptyDir: {}"),
    (
        DEPLOYMENT,
        "emptyDir: {sizeLimit: {{ $v.server.temporarySizeLimit }}}",
        "hostPath: {path: /tmp}",
    ),
    (DEPLOYMENT, "maxUnavailable: {{ $v.rollout.maxUnavailable }}", "maxUnavailable: 0"),
    (
        DEPLOYMENT,
        "terminationMessagePolicy: FallbackToLogsOnError\n          securityContext:",
        "terminationMessagePolicy: Logs\n          securityContext:",
    ),
    (
        DEPLOYMENT,
        "ports:\n            - {name: http",
        "env: [{name: AWS_REGION, value: x}]\n          ports:\n            - {name: http",
    ),
    (DEPLOYMENT, "eks.amazonaws.com/skip-containers: server", ""),
    ("deployment.yaml", '(eq .Values.autoscaling.by "none")', "true"),
    ("deployment.yaml", '"track" "canary"', '"track" "stable"'),
    ("service.yaml", "targetPort: http", "targetPort: 8081"),
    ("service.yaml", "\n    steno/track: {{ .track }}\n  ports", "\n  ports"),
    (DEPLOYMENT, "- --grpc-host=0.0.0.0", "- --grpc-host=127.0.0.1"),
    (DEPLOYMENT, "containerPort: 7070", "containerPort: 7071"),
    ("service.yaml", "targetPort: grpc", "targetPort: http"),
    ("networkpolicy.yaml", "- {port: 7070, protocol: TCP}", ""),
    ("service.yaml", "targetPort: 9404", "targetPort: 9405"),
    ("service.yaml", "targetPort: 9404", "targetPort: exporter"),
    ("service.yaml", "{{ $name }}-metrics", "steno-metrics"),
    ("poddisruptionbudget.yaml", "(gt (int $most) 1)", "true"),
    ("poddisruptionbudget.yaml", "steno/track: stable", "steno/track: main"),
    ("networkpolicy.yaml", "policyTypes: [Ingress, Egress]", "policyTypes: [Ingress]"),
    ("networkpolicy.yaml", "port: 8080", "port: 8081"),
    (
        "networkpolicy.yaml",
        "[{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]",
        "[{port: 54, protocol: UDP}]",
    ),
    ("networkpolicy.yaml", "- ipBlock: {cidr: {{ . | quote }}}", "- {}"),
    ("autoscaling.yaml", "kind: Deployment, name: {{ $name }}}", "kind: Deployment, name: steno}"),
    ("autoscaling.yaml", "{{- else if eq", "---\n{{- end }}\n{{- if ne"),
    ("autoscaling.yaml", "cooldownPeriod:", "coolDownPeriod:"),
    ("ingress.yaml", "rewrite-target: /predictions/asr", "rewrite-target: /"),
    ("ingress.yaml", "pathType: Exact", "pathType: exact"),
    ("ingress.yaml", "port: {name: http}", "port: {name: web}"),
    ("httproute.yaml", "replaceFullPath: /predictions/asr", "replaceFullPath: /predictions"),
    ("httproute.yaml", "(sub 100 $canary.weight)", "100"),
    ("httproute.yaml", "- name: {{ $name }}-canary", "- name: {{ $name }}-canari"),
    ("httproute.yaml", "type: ReplaceFullPath", "type: ReplaceFullpath"),
    ("httproute.yaml", "timeouts: {request:", "timeout: {request:"),
    ("httproute.yaml", "requestSeconds }}s}", "requestSeconds }}}"),
    ("servicemonitor.yaml", 'list "metrics" "exporter"', 'list "metric" "exporter"'),
    ("servicemonitor.yaml", "component: metrics", "component: server"),
    ("prometheusrule.yaml", "- record: steno:requests", "- recording: steno:requests"),
    ("prometheusrule.yaml", '"service", "{{ $name }}-metrics"', '"service", "steno-metrics"'),
    ("certificate.yaml", "dnsNames:", "dnsName:"),
    ("serviceaccount.yaml", 'name: {{ include "steno.serviceAccountName" . }}', "name: steno"),
    ("tests/transcribe.yaml", "--clip=", "--file="),
    ("tests/transcribe.yaml", 'include "steno.podSecurity" .', 'print "{}"'),
]


def found_in(path: Path) -> list[str]:
    """What the checks find in a chart, by any of the shipped values; the first findings only."""
    with helm.Chart.load(path) as mutant:
        rendered = []
        for values in [*VALUE_FILES, *CI_FILES]:
            try:
                manifests = render(values_of(values), source=mutant)
            except helm.HelmError as error:
                return [str(error)]
            if faults := problems(manifests):
                return faults
            rendered.append(manifests)
        # The schemas are slower.
        for manifests in rendered:
            if faults := [p for m in manifests for p in schema_problems(m, VERSIONS[0])]:
                return faults
        required = [render(REQUIRED, source=mutant, release=name) for name in ("one", "other")]
        return collisions(*required)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(CHART, tmp_path_factory.mktemp("mutants") / "steno"))


def test_the_chart_itself_has_none(copy: Path) -> None:
    assert found_in(copy) == []


@pytest.mark.parametrize(
    ("template", "good", "bad"),
    FAULTS,
    ids=[f"{n:02}-{fault[0]}" for n, fault in enumerate(FAULTS)],
)
def test_a_fault_is_found(copy: Path, template: str, good: str, bad: str) -> None:
    path = copy / "templates" / template
    text = path.read_text()
    assert good in text, "this fault is no longer possible"
    path.write_text(text.replace(good, bad))
    try:
        assert found_in(copy) != []
    finally:
        path.write_text(text)
