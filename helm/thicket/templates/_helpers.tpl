{{/* Full name of the release's objects: at most 40 characters, so that role suffixes fit a DNS label. */}}
{{- define "thicket.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "thicket.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "thicket.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "thicket.secretName" -}}
{{- default (printf "%s-auth" (include "thicket.fullname" .)) .Values.auth.existingSecret -}}
{{- end -}}

{{- define "thicket.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Labels of every object. */}}
{{- define "thicket.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: thicket
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* What selects the pods of a role. Takes (dict "root" $ "role" NAME); "component" sets some pods of a role apart. */}}
{{- define "thicket.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ default .role .component }}
{{- end -}}

{{/* Port of a role's API; its admin port is 100 above. */}}
{{- define "thicket.port" -}}
{{- get (dict "coordinator" 7700 "embedding" 7701 "gallery" 7702 "answer" 7703) . -}}
{{- end -}}

{{/* metadata of a pod template. */}}
{{- define "thicket.podMetadata" -}}
{{- $values := index .root.Values .role -}}
labels:
  {{- include "thicket.labels" .root | nindent 2 }}
  app.kubernetes.io/component: {{ default .role .component }}
  {{- with $values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $values.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The part of a pod's spec that every role has, containers and volumes aside. */}}
{{- define "thicket.podSpec" -}}
{{- $root := .root -}}
{{- $values := index .root.Values .role -}}
serviceAccountName: {{ include "thicket.serviceAccountName" $root }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ add $root.Values.drain.delaySeconds $root.Values.drain.timeoutSeconds 10 }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "thicket.selector" . | nindent 8 }}
{{- end -}}

{{/* The part of a role's container that every role has: program, ports, probes, rights, common settings. */}}
{{- define "thicket.container" -}}
{{- $root := .root -}}
{{- $values := index .root.Values .role -}}
{{- $port := int (include "thicket.port" .role) -}}
name: {{ .role }}
image: {{ include "thicket.image" $root }}
imagePullPolicy: {{ $root.Values.image.pullPolicy }}
command: [thicket-{{ .role }}]
ports:
  - name: grpc
    containerPort: {{ $port }}
  - name: admin
    containerPort: {{ add $port 100 }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
startupProbe:
  httpGet:
    path: /startupz
    port: admin
  periodSeconds: 5
  failureThreshold: {{ .startupFailures }}
livenessProbe:
  httpGet:
    path: /livez
    port: admin
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  httpGet:
    path: /readyz
    port: admin
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 2
env:
  - name: THICKET_LISTEN
    value: 0.0.0.0:{{ $port }}
  - name: THICKET_ADMIN_LISTEN
    value: 0.0.0.0:{{ add $port 100 }}
  - name: THICKET_DRAIN_DELAY
    value: {{ printf "%ds" (int $root.Values.drain.delaySeconds) }}
  - name: THICKET_DRAIN_TIMEOUT
    value: {{ printf "%ds" (int $root.Values.drain.timeoutSeconds) }}
  - name: THICKET_TOKENS_FILE
    value: /etc/thicket/auth/tokens.json
  - name: THICKET_LOG
    value: {{ $root.Values.telemetry.log | quote }}
  - name: THICKET_LOG_FORMAT
    value: {{ $root.Values.telemetry.logFormat }}
  {{- with $root.Values.telemetry.otlpEndpoint }}
  - name: THICKET_OTLP_ENDPOINT
    value: {{ . | quote }}
  {{- end }}
  - name: POD_NAME
    valueFrom:
      fieldRef:
        fieldPath: metadata.name
  - name: NODE_NAME
    valueFrom:
      fieldRef:
        fieldPath: spec.nodeName
  {{- with $root.Values.etcd.endpoints }}
  - name: POD_IP
    valueFrom:
      fieldRef:
        fieldPath: status.podIP
  - name: THICKET_ETCD
    value: {{ join "," . | quote }}
  - name: THICKET_ETCD_PREFIX
    value: {{ $root.Values.etcd.prefix }}
  - name: THICKET_INSTANCE
    value: $(POD_NAME)
  - name: THICKET_ADVERTISE
    value: http://$(POD_IP):{{ $port }}
  {{- end }}
  - name: OTEL_RESOURCE_ATTRIBUTES
    value: k8s.namespace.name={{ $root.Release.Namespace }},k8s.pod.name=$(POD_NAME),k8s.node.name=$(NODE_NAME)
{{- end -}}

{{/* Volumes of every pod. The tokens are one file; only who calls other roles gets the token to do so with. */}}
{{- define "thicket.volumes" -}}
- name: tmp
  emptyDir: {}
- name: auth
  secret:
    secretName: {{ include "thicket.secretName" .root }}
    items:
      - key: tokens.json
        path: tokens.json
      {{- if or (eq .role "coordinator") .calls (and (eq .role "gallery") .root.Values.gallery.forgetAnswers) }}
      - key: token
        path: token
      {{- end }}
{{- end -}}

{{- define "thicket.mounts" -}}
- name: tmp
  mountPath: /tmp
- name: auth
  mountPath: /etc/thicket/auth
  readOnly: true
{{- end -}}

{{/* Service of a role. Headless ones let a client see every replica. */}}
{{- define "thicket.headlessService" -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "thicket.fullname" .root }}-{{ default .role .component }}
  labels:
    {{- include "thicket.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ default .role .component }}
spec:
  clusterIP: None
  selector:
    {{- include "thicket.selector" . | nindent 4 }}
  ports:
    - name: grpc
      port: {{ include "thicket.port" .role }}
      targetPort: grpc
      appProtocol: kubernetes.io/h2c
{{- end -}}
