{{/* One track's Deployment. Takes root, name, track, version, and replicas (null where an autoscaler decides). */}}
{{- define "steno.deployment" -}}
{{- $root := .root -}}
{{- $v := $root.Values -}}
{{- $server := "/tmp/server" -}}
{{- $exporter := "http://127.0.0.1:9404" -}}
{{- $key := "/models/pod.key" -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ .name }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "steno.labels" $root | nindent 4 }}
    app.kubernetes.io/component: server
    steno/track: {{ .track }}
spec:
  {{- if not (kindIs "invalid" .replicas) }}
  replicas: {{ .replicas }}
  {{- end }}
  revisionHistoryLimit: 5
  progressDeadlineSeconds: {{ $v.rollout.progressDeadlineSeconds }}
  strategy:
    type: RollingUpdate
    rollingUpdate:
      maxSurge: {{ $v.rollout.maxSurge }}
      maxUnavailable: {{ $v.rollout.maxUnavailable }}
  selector:
    matchLabels:
      {{- include "steno.selector" $root | nindent 6 }}
      steno/track: {{ .track }}
  template:
    metadata:
      labels:
        {{- include "steno.labels" $root | nindent 8 }}
        {{- with $v.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
        app.kubernetes.io/component: server
        steno/track: {{ .track }}
      annotations:
        kubectl.kubernetes.io/default-container: server
        # IRSA would give its token to every container; the server, which runs the archive's code, needs none.
        eks.amazonaws.com/skip-containers: server
        # Pods are replaced when their configuration changes.
        checksum/config: {{ include (print $root.Template.BasePath "/configmap.yaml") $root | sha256sum }}
        {{- with $v.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ include "steno.serviceAccountName" $root }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      securityContext:
        {{- include "steno.podSecurity" $root | nindent 8 }}
      {{- with $v.imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      terminationGracePeriodSeconds: {{ include "steno.graceSeconds" $root }}
      initContainers:
        - name: fetch
          image: {{ include "steno.image" $root }}
          imagePullPolicy: {{ $v.image.pullPolicy }}
          command: [/opt/venv/bin/python, -m, handler.fetch]
          args: [--output, /models, --settings, /etc/steno/settings.yaml]
          env:
            {{- include "steno.storeEnvironment" $root | nindent 12 }}
            {{- with .version }}
            - {name: STENO_VERSION, value: {{ . | quote }}}
            {{- end }}
          # Its error message is shown by `kubectl describe pod`.
          terminationMessagePolicy: FallbackToLogsOnError
          securityContext:
            {{- include "steno.containerSecurity" $root | nindent 12 }}
          resources:
            {{- toYaml $v.fetchResources | nindent 12 }}
          volumeMounts:
            - {name: models, mountPath: /models}
            - {name: config, mountPath: /etc/steno, readOnly: true}
            {{- include "steno.storeMounts" $root | nindent 12 }}
        # A sidecar: it starts before the server and ends after it, so that drains are seen.
        - name: exporter
          image: {{ include "steno.image" $root }}
          imagePullPolicy: {{ $v.image.pullPolicy }}
          restartPolicy: Always
          command: [/opt/venv/bin/python, -m, handler.exporter]
          args:
            - --port=9404
            - --served=/models/served.json
            - --key={{ $key }}
            {{- if gt (int $v.gpu.count) 0 }}
            # TorchServe runs nvidia-smi for each question.
            - --interval=5
            {{- end }}
          env:
            {{- include "steno.storeEnvironment" $root | nindent 12 }}
          ports:
            - {name: exporter, containerPort: 9404, protocol: TCP}
          livenessProbe:
            httpGet: {path: /metrics, port: exporter}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 3
          securityContext:
            {{- include "steno.containerSecurity" $root | nindent 12 }}
          resources:
            {{- toYaml $v.exporterResources | nindent 12 }}
          volumeMounts:
            - {name: models, mountPath: /models, readOnly: true}
            {{- include "steno.storeMounts" $root | nindent 12 }}
      containers:
        - name: server
          image: {{ include "steno.image" $root }}
          imagePullPolicy: {{ $v.image.pullPolicy }}
          # tini, because TorchServe ignores SIGTERM as process 1 and reaps no workers.
          command: [tini, -g, --, /opt/venv/bin/python, -m, handler.launch]
          args:
            - --model-store=/models
            - --config=/etc/steno
            - --folder={{ $server }}
            - --exporter={{ $exporter }}
            {{- if not $v.auth.enabled }}
            - --open
            {{- end }}
            {{- if $v.service.grpc.enabled }}
            - --grpc-host=0.0.0.0
            {{- end }}
          ports:
            - {name: http, containerPort: 8080, protocol: TCP}
            {{- if $v.service.grpc.enabled }}
            - {name: grpc, containerPort: 7070, protocol: TCP}
            {{- end }}
            - {name: metrics, containerPort: 8082, protocol: TCP}
          # The exporter knows whether a worker is READY; TorchServe's /ping does not.
          startupProbe:
            httpGet: {path: /ready, port: 9404}
            periodSeconds: 5
            timeoutSeconds: 3
            failureThreshold: {{ max 1 (div $v.rollout.startupSeconds 5) }}
          readinessProbe:
            httpGet: {path: /ready, port: 9404}
            periodSeconds: 5
            timeoutSeconds: 3
            failureThreshold: 2
          # Not answered, or 500: java hangs, or gave a crashing worker up after maxRetryTimeoutInSec.
          livenessProbe:
            httpGet: {path: /ping, port: http}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 6
          lifecycle:
            preStop:
              exec:
                command:
                  - /opt/venv/bin/python
                  - -m
                  - handler.drain
                  - --folder={{ $server }}
                  - --exporter={{ $exporter }}
                  - --key={{ $key }}
                  - --propagation={{ $v.drain.propagationSeconds }}
                  - --timeout={{ $v.drain.timeoutSeconds }}
          terminationMessagePolicy: FallbackToLogsOnError
          securityContext:
            {{- include "steno.containerSecurity" $root | nindent 12 }}
          resources:
            {{- $resources := deepCopy $v.resources }}
            {{- if gt (int $v.gpu.count) 0 }}
            {{- $_ := set $resources "limits" (merge (dict $v.gpu.resource (int $v.gpu.count)) ($resources.limits | default dict)) }}
            {{- end }}
            {{- toYaml $resources | nindent 12 }}
          volumeMounts:
            - {name: models, mountPath: /models, readOnly: true}
            - {name: config, mountPath: /etc/steno, readOnly: true}
            - {name: tmp, mountPath: /tmp}
            {{- if $v.auth.enabled }}
            - {name: tokens, mountPath: /etc/steno-tokens, readOnly: true}
            {{- end }}
      volumes:
        - name: models
          emptyDir: {sizeLimit: {{ $v.model.sizeLimit }}}
        - name: tmp
          emptyDir: {sizeLimit: {{ $v.server.temporarySizeLimit }}}
        - name: config
          configMap: {name: {{ include "steno.fullname" $root }}}
        {{- if $v.auth.enabled }}
        - name: tokens
          secret:
            secretName: {{ $v.auth.existingSecret }}
            defaultMode: 0440
            items: [{key: tokens, path: tokens}]
        {{- end }}
        {{- with $v.model.claim }}
        - name: store
          persistentVolumeClaim: {claimName: {{ . }}, readOnly: true}
        {{- end }}
        {{- with $v.model.caConfigMap }}
        - name: ca
          configMap: {name: {{ . }}}
        {{- end }}
      {{- with $v.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      {{- with $v.runtimeClassName }}
      runtimeClassName: {{ . }}
      {{- end }}
      {{- with $v.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- $tolerations := $v.tolerations }}
      {{- if gt (int $v.gpu.count) 0 }}
      {{- $tolerations = append $tolerations (dict "key" "nvidia.com/gpu" "operator" "Exists" "effect" "NoSchedule") }}
      {{- end }}
      {{- with $tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $v.affinity }}
      affinity:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      topologySpreadConstraints:
        {{- if kindIs "invalid" $v.topologySpreadConstraints }}
        {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
        - maxSkew: 1
          topologyKey: {{ . }}
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels:
              {{- include "steno.selector" $root | nindent 14 }}
              steno/track: {{ $.track }}
        {{- end }}
        {{- else }}
        {{- toYaml $v.topologySpreadConstraints | nindent 8 }}
        {{- end }}
{{- end -}}
