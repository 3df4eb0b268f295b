{{- define "outlast.fullname" -}}
{{- if contains "outlast" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}{{ printf "%s-outlast" (.Release.Name | trunc 42 | trimSuffix "-") }}{{ end }}
{{- end }}

{{- define "outlast.selector" -}}
app.kubernetes.io/name: outlast-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "outlast.labels" -}}
{{ include "outlast.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: outlast
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "outlast.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "outlast.fullname" .) }}
{{- else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{- define "outlast.monitoringKind" -}}
{{- if not (.capabilities.APIVersions.Has "monitoring.coreos.com/v1") }}
{{- fail (printf "%s is true, but this cluster has no monitoring.coreos.com/v1: install the Prometheus Operator first, or set it to false (helm template: --api-versions monitoring.coreos.com/v1)" .value) }}
{{- end }}
{{- end }}

{{- /* What the operator may do where jobs live. One list, bound by a ClusterRole or by a Role in each namespace. */ -}}
{{- define "outlast.operatorRules" -}}
- apiGroups: [outlast.dev]
  resources: [trainingjobs]
  verbs:
    - get # read a job afresh after a conflict
    - list # find the jobs when it starts
    - watch # wake a job's loop at every change
    - delete # runPolicy.ttlSecondsAfterFinished removes an ended job
- apiGroups: [outlast.dev]
  resources: [trainingjobs/status]
  verbs:
    - update # views and conditions, by compare-and-swap on resourceVersion (it cannot touch a spec)
- apiGroups: [""]
  resources: [pods]
  verbs:
    - get # read one that a watch has not shown yet
    - list # find a job's pods when it starts
    - watch # a pod's death is a failover's first sign
    - create # servers, workers, evaluator, Redis
    - patch # the label chain-role says who is head
    - delete # replace what failed; suspend; cleanPodPolicy
- apiGroups: [""]
  resources: [services]
  verbs:
    - get # is the job's own there already, and is it the job's?
    - create # headless, for the servers' stable names; one for Redis
- apiGroups: [""]
  resources: [secrets]
  verbs:
    - get # the job's token, which the operator presents to servers too (no list: others' secrets are not looked through)
    - create # a random token and Redis password for each job
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs:
    - get # is the job's own there already?
    - create # for checkpoints, when the job asks for a claim of its own
- apiGroups: [""]
  resources: [events]
  verbs:
    - create # `kubectl describe tjob` tells the story
    - patch # an event that happens again is counted, not repeated
{{- end }}

{{- define "outlast.viewRules" -}}
- apiGroups: [outlast.dev]
  resources: [trainingjobs]
  verbs: [get, list, watch] # `kubectl get tjob`, `kubectl wait`
- apiGroups: [outlast.dev]
  resources: [trainingjobs/status, trainingjobs/scale]
  verbs: [get] # what autoscalers and `kubectl get --subresource` read
{{- end }}

{{- define "outlast.editRules" -}}
- apiGroups: [outlast.dev]
  resources: [trainingjobs]
  verbs: [create, update, patch, delete, deletecollection] # `kubectl apply`, `kubectl delete`, suspend
- apiGroups: [outlast.dev]
  resources: [trainingjobs/scale]
  verbs: [update, patch] # `kubectl scale`, autoscalers
{{- end }}

{{- /* What Kubernetes' own view and edit have already, for roles that stand alone. */ -}}
{{- define "outlast.podViewRules" -}}
- apiGroups: [""]
  resources: [pods, events]
  verbs: [get, list, watch] # `kubectl outlast status`, `kubectl describe tjob`
- apiGroups: [""]
  resources: [pods/log]
  verbs: [get] # `kubectl outlast logs`
{{- end }}

{{- define "outlast.podEditRules" -}}
- apiGroups: [""]
  resources: [pods]
  verbs: [delete] # `kubectl outlast promote`: the head hands over and leaves
{{- end }}
