{{- define "comd.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Of objects. Shorter than a label by as much as the longest of our own endings. */}}
{{- define "comd.fullname" -}}
{{- $name := include "comd.name" . -}}
{{- $full := printf "%s-%s" .Release.Name $name -}}
{{- if .Values.fullnameOverride -}}
{{- $full = .Values.fullnameOverride -}}
{{- else if contains $name .Release.Name -}}
{{- $full = .Release.Name -}}
{{- end -}}
{{- $full = $full | replace "." "-" -}}
{{- if not (regexMatch "^[a-z]" $full) -}}
{{- fail (printf "the release's name makes %s the name of a Service, which must begin with a letter; give the release another name, or set fullnameOverride" $full) -}}
{{- end -}}
{{- $full | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "comd.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") }}
{{ include "comd.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: comd
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- include "comd.refuseOwn" (dict "key" "commonLabels" "labels" .Values.commonLabels) }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Twice in one object a label is no YAML, and another name than the selector's is refused by the API server. */}}
{{- define "comd.refuseOwn" -}}
{{- range list "helm.sh/chart" "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" "app.kubernetes.io/version" "app.kubernetes.io/part-of" "app.kubernetes.io/managed-by" }}
{{- if hasKey ($.labels | default dict) . }}
{{- fail (printf "%s: %s: %s is the chart's own label; take it out" $.key . (get $.labels .)) }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The chart's labels and those of one kind of object: a dict of the root, the value's key, and its labels, which win over commonLabels. */}}
{{- define "comd.labelsAnd" -}}
{{- include "comd.refuseOwn" (dict "key" .key "labels" .labels) -}}
{{- merge (dict) (.labels | default dict) (include "comd.labels" .root | fromYaml) | toYaml -}}
{{- end -}}

{{/* Of the operator's pods. It may not change with the version: a Deployment's selector is immutable. */}}
{{- define "comd.selector" -}}
app.kubernetes.io/name: {{ include "comd.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{/* As comd_operator.planner.labels has them. */}}
{{- define "comd.trainerSelector" -}}
app.kubernetes.io/name: comd-trainer
app.kubernetes.io/managed-by: comd-operator
{{- end -}}

{{- define "comd.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "comd.fullname" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{- define "comd.image" -}}
{{- $repository := required "image.repository: it is not set; where is the operator's image, such as registry.example.com/comd/operator?" .Values.image.repository -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* The port on which trainers tell how they are: comd_operator.planner.defaults.TRAINER_PORT. */}}
{{- define "comd.trainerPort" -}}9400{{- end -}}

{{/* The label `job` that the Prometheus operator gives to what a PodMonitor finds. */}}
{{- define "comd.operatorJob" -}}
{{- .Values.monitoring.prometheusRule.operatorJob | default (printf "%s/%s" .Release.Namespace (include "comd.fullname" .)) -}}
{{- end -}}

{{- define "comd.trainerJob" -}}
{{- .Values.monitoring.prometheusRule.trainerJob | default (printf "%s/%s-trainer" .Release.Namespace (include "comd.fullname" .)) -}}
{{- end -}}

{{/* The operator's options as variables. Those that are empty are left out. Numbers of a values file are floats to Helm. */}}
{{- define "comd.env" -}}
{{- $defaults := .Values.defaults -}}
{{- $options := dict
  "NAMESPACES" (join "," .Values.watchNamespaces)
  "TRAINER_IMAGE" $defaults.trainerImage
  "STORAGE_URI" $defaults.storage.uri
  "STORAGE_ENDPOINT" $defaults.storage.endpoint
  "STORAGE_REGION" $defaults.storage.region
  "STORAGE_SECRET" $defaults.storage.secret
  "STORAGE_S3" (ternary (toJson $defaults.storage.s3) "" (gt (len $defaults.storage.s3) 0))
  "QUEUE" $defaults.queue
  "TOLERATIONS" (ternary (toJson $defaults.tolerations) "" (gt (len $defaults.tolerations) 0))
  "WORKERS" (.Values.workers | int64 | toString)
  "QPS" (toString .Values.qps)
  "BURST" (.Values.burst | int64 | toString)
  "PORT" (.Values.port | int64 | toString)
  "LEADER_ELECTION" "true"
  "LEASE_NAMESPACE" .Release.Namespace
  "LEASE_NAME" (include "comd.fullname" .)
  "LEASE_SECONDS" (toString .Values.leaseSeconds)
  "RESYNC_SECONDS" (toString .Values.resyncSeconds)
  "PROGRESS_SECONDS" (toString .Values.progressSeconds)
  "START_PATIENCE_SECONDS" (toString .Values.startPatienceSeconds)
  "LOG_FORMAT" .Values.logFormat
  "LOG_LEVEL" .Values.logLevel
-}}
{{- range .Values.extraEnv }}
{{- if hasKey $options (trimPrefix "COMD_OPERATOR_" .name) }}
{{- fail (printf "extraEnv: %s is set by a value of the chart's own; take it out" .name) }}
{{- end }}
{{- end }}
{{- range $name, $value := $options }}
{{- if $value }}
- name: COMD_OPERATOR_{{ $name }}
  value: {{ $value | replace "$" "$$" | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Restricted pod security, for every pod of the chart. */}}
{{- define "comd.podSecurity" -}}
runAsNonRoot: true
{{- with .Values.runAsUser }}
runAsUser: {{ int64 . }}
{{- end }}
{{- with .Values.runAsGroup }}
runAsGroup: {{ int64 . }}
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "comd.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}
