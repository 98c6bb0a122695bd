{{/*
The release's name for objects: unique in a namespace, at most 50 characters to leave room for endings.
A longer one is cut, and told from others that begin alike by its hash.
*/}}
{{- define "steno.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- $full = .Values.fullnameOverride | default $full -}}
{{- if gt (len $full) 50 -}}
{{- printf "%s-%s" ($full | trunc 41 | trimSuffix "-") ($full | sha256sum | trunc 8) -}}
{{- else -}}
{{- $full -}}
{{- end -}}
{{- end -}}

{{/* What selects this release's pods, of both tracks. */}}
{{- define "steno.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: server
{{- end -}}

{{/* Labels of all objects. */}}
{{- define "steno.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 }}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "steno.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "steno.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "steno.fullname" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end -}}

{{/* A pod's seconds to end: the drain's, and time for TorchServe to stop. */}}
{{- define "steno.graceSeconds" -}}
{{ add .Values.drain.timeoutSeconds 30 }}
{{- end -}}

{{/* The least that a container needs: nothing. */}}
{{- define "steno.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "steno.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
fsGroup: 1000
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* How many of the largest requests that TorchServe takes lie in a share of the memory. */}}
{{- define "steno.requestsThatFit" -}}
{{- $memory := include "steno.amount" .root.Values.resources.limits.memory | float64 -}}
{{- $largest := .root.Files.Get "files/config.properties" | regexFind "max_request_size=[0-9]+" | trimPrefix "max_request_size=" -}}
{{- divf (mulf $memory .share) (float64 $largest) | floor | int -}}
{{- end -}}

{{/*
Requests that may wait, each with its whole body in Java's heap, which is a quarter of the memory limit. A fifth of
the heap is left to Java. At most 64, as in the archive.
*/}}
{{- define "steno.queue" -}}
{{- if not (kindIs "invalid" .Values.server.jobQueueSize) -}}
{{- int .Values.server.jobQueueSize -}}
{{- else -}}
{{- include "steno.requestsThatFit" (dict "root" . "share" 0.2) | int | min 64 | max 1 -}}
{{- end -}}
{{- end -}}

{{/* What this pod changes in the archive's model-config.yaml (handler/archive.py merges it). */}}
{{- define "steno.settings" -}}
{{- with .Values.server -}}
minWorkers: {{ .workers }}
maxWorkers: {{ .workers }}
jobQueueSize: {{ include "steno.queue" $ }}
{{- range $key := list "batchSize" "maxBatchDelay" "responseTimeout" "startupTimeout" }}
{{- $value := index $.Values.server $key }}
{{- if not (kindIs "invalid" $value) }}
{{ $key }}: {{ int $value }}
{{- end }}
{{- end }}
{{- $handler := deepCopy .handler }}
{{- if $.Values.auth.enabled }}
{{- $_ := set $handler "token_file" "/etc/steno-tokens/tokens" }}
{{- end }}
{{- /* "auto" would serve on the CPU, and say so in a log alone, where the driver is too old or its runtime missing. */}}
{{- if and (gt (int $.Values.gpu.count) 0) (not $handler.device) }}
{{- $_ := set $handler "device" "cuda" }}
{{- end }}
{{- if $handler }}
handler:
  {{- toYaml $handler | nindent 2 }}
{{- end }}
{{- end -}}
{{- end -}}

{{/* Where the store is, and how it is opened. Only for those who read it: never the server. */}}
{{- define "steno.storeEnvironment" -}}
{{- $model := .Values.model -}}
- name: STENO_STORE
  value: {{ ternary "/store" $model.store (ne $model.claim "") | quote }}
{{- with $model.endpoint }}
- {name: AWS_ENDPOINT_URL_S3, value: {{ . | quote }}}
{{- end }}
{{- with $model.region }}
- {name: AWS_DEFAULT_REGION, value: {{ . | quote }}}
{{- end }}
{{- if $model.caConfigMap }}
- {name: AWS_CA_BUNDLE, value: /etc/steno-ca/ca.crt}
{{- end }}
{{- with $model.existingSecret }}
{{- range list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" }}
- name: {{ . }}
  valueFrom: {secretKeyRef: {name: {{ $model.existingSecret }}, key: {{ . }}}}
{{- end }}
{{- end }}
{{- end -}}

{{- define "steno.storeMounts" -}}
{{- if .Values.model.claim }}
- {name: store, mountPath: /store, readOnly: true}
{{- end }}
{{- if .Values.model.caConfigMap }}
- {name: ca, mountPath: /etc/steno-ca, readOnly: true}
{{- end }}
{{- end -}}

{{/* A quantity as a number; 0 where there is none. */}}
{{- define "steno.amount" -}}
{{- if not (kindIs "string" .) -}}
{{- /* Helm reads a plain number as a float, whose text would be 8.6e+09. */}}
{{- float64 (default 0 .) -}}
{{- else -}}
{{- $units := dict "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 -}}
{{- $unit := regexFind "[A-Za-z]+$" . -}}
{{- mulf (float64 (regexFind "^[0-9.]+" .)) (get $units $unit | default 1.0) -}}
{{- end -}}
{{- end -}}

{{/* The keys of metadata that are the chart's own, by the value in which a second one could stand. */}}
{{- define "steno.ownKeys" -}}
{{- $labels := include "steno.labels" . | fromYaml | keys | sortAlpha -}}
{{- $nginx := list -}}
{{- range list "rewrite-target" "proxy-body-size" "proxy-read-timeout" "proxy-send-timeout" "canary" "canary-weight" -}}
{{- $nginx = append $nginx (printf "nginx.ingress.kubernetes.io/%s" .) -}}
{{- end -}}
podLabels: {{ concat $labels (list "app.kubernetes.io/component" "steno/track") | toJson }}
podAnnotations: [kubectl.kubernetes.io/default-container, eks.amazonaws.com/skip-containers, checksum/config]
ingress.annotations: {{ toJson $nginx }}
{{- range list "serviceMonitor" "rules" "dashboard" }}
monitoring.{{ . }}.labels: {{ toJson $labels }}
{{- end }}
{{- end -}}

{{/* Refuses what a schema cannot say clearly. */}}
{{- define "steno.validate" -}}
{{- $v := .Values -}}
{{- $problems := list -}}
{{- if not $v.image.repository -}}
{{- $problems = append $problems "image.repository is empty: name the serving image (docs/deployment.md tells how to build one)" -}}
{{- end -}}
{{- range list "canary" "metrics" "dashboard" "helm-test" -}}
{{- if hasSuffix (printf "-%s" .) (include "steno.fullname" $) -}}
{{- $problems = append $problems (printf "the objects would be called %s, as those of the release %s end in -%s: choose another release name or fullnameOverride" (include "steno.fullname" $) (include "steno.fullname" $ | trimSuffix (printf "-%s" .)) .) -}}
{{- end -}}
{{- end -}}
{{- if regexMatch "^[0-9]|[.]" (include "steno.fullname" $) -}}
{{- $problems = append $problems (printf "the objects would be called %s, and a Service's name begins with a letter and has no dot: give fullnameOverride" (include "steno.fullname" $)) -}}
{{- end -}}
{{- if and $v.model.store $v.model.claim -}}
{{- $problems = append $problems "model.store and model.claim are both set: give one of them" -}}
{{- end -}}
{{- if not (or $v.model.store $v.model.claim) -}}
{{- $problems = append $problems "model.store is empty: name the model store, e.g. s3://models/steno" -}}
{{- end -}}
{{- if and $v.auth.enabled (not $v.auth.existingSecret) -}}
{{- $problems = append $problems "auth.existingSecret is empty: make one (kubectl create secret generic steno-tokens --from-literal=tokens=$(openssl rand -hex 32)), or set auth.enabled=false if a gateway asks for tokens" -}}
{{- end -}}
{{- if $v.service.grpc.enabled -}}
{{- if $v.auth.enabled -}}
{{- $problems = append $problems "service.grpc.enabled and auth.enabled are both true: TorchServe hands no header of a gRPC call to the handler, so its callers cannot show a token. Set auth.enabled=false and let a gateway ask (mutual TLS, its own tokens), or leave gRPC off" -}}
{{- end -}}
{{- if eq (int $v.service.port) (int $v.service.grpc.port) -}}
{{- $problems = append $problems (printf "service.port and service.grpc.port are both %d: give gRPC a port of its own" (int $v.service.port)) -}}
{{- end -}}
{{- end -}}
{{- if and (eq ($v.rollout.maxSurge | toString) "0") (eq ($v.rollout.maxUnavailable | toString) "0") -}}
{{- $problems = append $problems "rollout.maxSurge and rollout.maxUnavailable are both 0: no pod could be replaced" -}}
{{- end -}}
{{- if ge (int $v.drain.propagationSeconds) (int $v.drain.timeoutSeconds) -}}
{{- $problems = append $problems (printf "drain.timeoutSeconds is %d and propagationSeconds %d: requests need time after nobody sends new ones" (int $v.drain.timeoutSeconds) (int $v.drain.propagationSeconds)) -}}
{{- end -}}
{{- $turn := add (include "steno.graceSeconds" .) $v.rollout.startupSeconds | int -}}
{{- if lt (int $v.rollout.progressDeadlineSeconds) $turn -}}
{{- $problems = append $problems (printf "rollout.progressDeadlineSeconds is %d: a roll-out that waits for one drain (drain.timeoutSeconds, %d, and 30) and one start (rollout.startupSeconds, %d) would have failed; give at least %d" (int $v.rollout.progressDeadlineSeconds) (int $v.drain.timeoutSeconds) (int $v.rollout.startupSeconds) $turn) -}}
{{- end -}}
{{- $loading := $v.server.startupTimeout | default 300 | int -}}
{{- if ge $loading (int $v.rollout.startupSeconds) -}}
{{- $problems = append $problems (printf "rollout.startupSeconds is %d and server.startupTimeout %d: the startup probe would end a server that still loads; give rollout.startupSeconds more" (int $v.rollout.startupSeconds) $loading) -}}
{{- end -}}
{{- if gt (int $v.gpu.count) (int $v.server.workers) -}}
{{- $problems = append $problems (printf "gpu.count is %d and server.workers %d: each worker computes on one GPU, so the others would stay idle; give as many workers" (int $v.gpu.count) (int $v.server.workers)) -}}
{{- end -}}
{{- if and (gt (int $v.gpu.count) 1) (contains "/mig-" $v.gpu.resource) -}}
{{- $problems = append $problems (printf "gpu.count is %d and gpu.resource %s: TorchServe counts whole GPUs, so all workers would share the first slice; give each pod one, and more replicas" (int $v.gpu.count) $v.gpu.resource) -}}
{{- end -}}
{{- $rest := sub $v.drain.timeoutSeconds $v.drain.propagationSeconds | int -}}
{{- if and (gt $rest 0) (ge (int $v.server.maxBatchDelay) (mul 1000 $rest | int)) -}}
{{- $problems = append $problems (printf "server.maxBatchDelay is %d ms: a drain waits so long for the last batch, and has %d s for it (drain.timeoutSeconds less propagationSeconds); give less" (int $v.server.maxBatchDelay) $rest) -}}
{{- end -}}
{{- $timeout := $v.server.responseTimeout | default 1200 | int -}}
{{- if and (or $v.ingress.enabled $v.gateway.enabled) (gt $timeout (int $v.limits.requestSeconds)) -}}
{{- $problems = append $problems (printf "limits.requestSeconds is %d and server.responseTimeout %d: callers would be cut off from a batch that still runs; give limits.requestSeconds a little more, or set server.responseTimeout lower" (int $v.limits.requestSeconds) $timeout) -}}
{{- end -}}
{{- if and $v.podDisruptionBudget.enabled (eq ($v.podDisruptionBudget.maxUnavailable | toString) "0") -}}
{{- $problems = append $problems "podDisruptionBudget.maxUnavailable is 0: no node with a pod could ever be drained; give at least 1, or set podDisruptionBudget.enabled=false" -}}
{{- end -}}
{{- range $path, $own := include "steno.ownKeys" . | fromYaml -}}
{{- $given := $v -}}
{{- range splitList "." $path }}{{ $given = index $given . | default dict }}{{ end -}}
{{- range $key := $own -}}
{{- if hasKey $given $key -}}
{{- $problems = append $problems (printf "%s has %s, which the chart sets itself: leave it out" $path $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $name := list "resources" "exporterResources" "fetchResources" -}}
{{- $amounts := index $v $name -}}
{{- range $key := list "cpu" "memory" -}}
{{- $request := include "steno.amount" (index $amounts.requests $key) | float64 -}}
{{- $limit := include "steno.amount" (index $amounts.limits $key) | float64 -}}
{{- if and $limit (gt $request $limit) -}}
{{- $problems = append $problems (printf "%s requests more %s than its limit: %v and %v" $name $key (index $amounts.requests $key) (index $amounts.limits $key)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $queue := include "steno.queue" . | int -}}
{{- $most := include "steno.requestsThatFit" (dict "root" . "share" 0.25) | int -}}
{{- if and (not (kindIs "invalid" $v.server.jobQueueSize)) (gt $queue $most) -}}
{{- $problems = append $problems (printf "server.jobQueueSize is %d and resources.limits.memory %v: a quarter of it, which is Java's heap, holds %d waiting requests of 40 MiB; give no more, or more memory" $queue $v.resources.limits.memory $most) -}}
{{- end -}}
{{- if ne $v.autoscaling.by "none" -}}
{{- $wanted := mulf $v.autoscaling.queuePerWorker $v.server.workers -}}
{{- if gt $wanted (divf $queue 2.0) -}}
{{- $problems = append $problems (printf "autoscaling.queuePerWorker is %v with %d workers in a pod whose queue takes %d (server.jobQueueSize): it would be full, and callers refused, before pods are added; queuePerWorker times workers must be at most half of the queue" $v.autoscaling.queuePerWorker (int $v.server.workers) $queue) -}}
{{- end -}}
{{- if gt (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas) -}}
{{- $problems = append $problems (printf "autoscaling.minReplicas is %d and maxReplicas %d: the former must not be more" (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas)) -}}
{{- end -}}
{{- if and (eq (int $v.autoscaling.minReplicas) 0) (ne $v.autoscaling.by "keda") -}}
{{- $problems = append $problems "autoscaling.minReplicas is 0: only KEDA scales to zero (autoscaling.by=keda)" -}}
{{- end -}}
{{- if and (eq (int $v.autoscaling.minReplicas) 0) (not $v.autoscaling.keda.activationQuery) -}}
{{- $problems = append $problems "autoscaling.minReplicas is 0 and autoscaling.keda.activationQuery is empty: without pods there is no queue, so name a metric of the gateway that tells of callers" -}}
{{- end -}}
{{- if and (eq $v.autoscaling.by "keda") (or $v.autoscaling.cpuUtilization $v.autoscaling.gpuUtilization) -}}
{{- $problems = append $problems "autoscaling.cpuUtilization and gpuUtilization are for autoscaling.by=hpa: with KEDA leave them null" -}}
{{- end -}}
{{- if not (or $v.monitoring.serviceMonitor.enabled $v.monitoring.scrapedOtherwise) -}}
{{- $problems = append $problems (printf "autoscaling.by is %s and monitoring.serviceMonitor.enabled false: an autoscaler reads the queue from Prometheus. Enable it, or set monitoring.scrapedOtherwise=true if your Prometheus scrapes the pods without it" $v.autoscaling.by) -}}
{{- end -}}
{{- if and $v.autoscaling.gpuUtilization (eq (int $v.gpu.count) 0) -}}
{{- $problems = append $problems "autoscaling.gpuUtilization is set and gpu.count is 0" -}}
{{- end -}}
{{- if and $v.autoscaling.gpuUtilization (contains "/mig-" $v.gpu.resource) -}}
{{- $problems = append $problems (printf "autoscaling.gpuUtilization is set and gpu.resource %s: the DCGM exporter has no utilization of a slice; leave it null" $v.gpu.resource) -}}
{{- end -}}
{{- end -}}
{{- if $v.canary.enabled -}}
{{- if not $v.canary.version -}}
{{- $problems = append $problems "canary.version is empty: a canary serves a version of its own" -}}
{{- end -}}
{{- if and (gt (int $v.canary.weight) 0) (not (or $v.ingress.enabled $v.gateway.enabled)) -}}
{{- $problems = append $problems "canary.weight is above 0, but nothing divides the requests: enable ingress or gateway, or set the weight to 0 and call the canary's own service" -}}
{{- end -}}
{{- end -}}
{{- if and $v.ingress.enabled (not $v.ingress.host) -}}
{{- $problems = append $problems "ingress.host is empty" -}}
{{- end -}}
{{- if and $v.gateway.enabled (not $v.gateway.parentRefs) -}}
{{- $problems = append $problems "gateway.parentRefs is empty: name the Gateway that the route belongs to" -}}
{{- end -}}
{{- if $v.certificate.enabled -}}
{{- if not (and $v.ingress.host $v.ingress.tlsSecret) -}}
{{- $problems = append $problems "certificate.enabled needs ingress.host and ingress.tlsSecret: whose certificate, and where it goes" -}}
{{- end -}}
{{- if not $v.certificate.issuerRef.name -}}
{{- $problems = append $problems "certificate.issuerRef.name is empty" -}}
{{- end -}}
{{- end -}}
{{- if $v.server.handler.token_file -}}
{{- $problems = append $problems "server.handler.token_file is the chart's to set: see auth.existingSecret" -}}
{{- end -}}
{{- if $problems -}}
{{- fail (printf "\n\n%s\n" (join "\n" $problems)) -}}
{{- end -}}
{{- end -}}
