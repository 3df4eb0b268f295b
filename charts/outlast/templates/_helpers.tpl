{{- define "outlast.fullname" -}}
{{- if contains "outlast" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}{{ printf "%s-outlast" (.Release.Name | trunc 42 | trimSuffix "-") }}{{ end }}
{{- end }}

{{- /* Names of what has no namespace: releases of one name in two namespaces must not meet. */ -}}
{{- define "outlast.clusterName" -}}
{{ include "outlast.fullname" . }}-{{ .Release.Namespace }}
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

{{- /* The operator's image, which the hooks run too. */ -}}
{{- define "outlast.image" -}}
image: {{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy | default (hasPrefix "outlast/" .Values.image.repository | ternary "Never" "IfNotPresent") }}
{{- end }}

{{- /* What a hook's pod shares with the operator's: where it may run, and as whom. */ -}}
{{- define "outlast.hookPod" -}}
restartPolicy: Never
enableServiceLinks: false
securityContext: {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* Labels of a hook's objects. Not the selector's: no Service and no budget of the operator may count its pods. */ -}}
{{- define "outlast.hookLabels" -}}
app.kubernetes.io/name: outlast-hook
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: outlast
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /*
How the TrainingJob resource is delivered. `release`: as one of the release's objects. `hook`: it exists and this release
does not own it, so Helm would refuse to touch it; a Job brings it up to date. Without a cluster to ask (helm template)
`release`. Never change from `release` to `hook` for the owner: Helm removes what leaves a release's manifest.
*/ -}}
{{- define "outlast.crdDelivery" -}}
{{- if .Values.crds.install -}}
{{- $live := lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" "trainingjobs.outlast.dev" -}}
{{- $owner := ($live.metadata).annotations | default dict -}}
{{- if not $live -}}
release
{{- else if and (eq (get $owner "meta.helm.sh/release-name") .Release.Name) (eq (get $owner "meta.helm.sh/release-namespace") .Release.Namespace) -}}
release
{{- else -}}
hook
{{- end -}}
{{- end -}}
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
    - create # for checkpoints, when the job names no volume of its own
    - patch # enlarge a claim that is too small for the model
    - delete # one that a server gave up, once it has a fresh one
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs:
    - list # which of them does the job have, and does it want those?
    - create # a drain may take one caught-up server of a shard at a time
    - update # the number follows the spec; put back what was changed by hand
    - delete # no budget outlasts the servers that it protects
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs:
    - list # which does the job have, and do others close its namespace?
    - create # open the job's ports where a namespace denies by default
    - update # the peers follow the strategy; put back what was changed by hand
    - delete # networkPolicy: None takes it away
- apiGroups: [""]
  resources: [events]
  verbs:
    - list # why a volume cannot be mounted or a claim not be bound stands in Events alone
    - create # `kubectl describe tjob` tells the story
    - patch # an event that happens again is counted, not repeated
{{- end }}

{{- /* Of the cluster's scope, so only without `namespaces`. Nothing stops without them. */ -}}
{{- define "outlast.clusterRules" -}}
- apiGroups: [""]
  resources: [nodes]
  verbs:
    - get # can the node of a claim that was given up take part in removing it?
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

{{- /*
Lets hooks' pods reach the API server where the namespace denies by default; a document of its own, or nothing. Takes
the hook, and the chart's context as `root`.
*/ -}}
{{- define "outlast.hookPolicy" }}
{{- with .root }}
{{- if .Values.networkPolicy.enabled }}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ include "outlast.fullname" . }}-{{ $.name }}
  namespace: {{ .Release.Namespace }}
  labels: {{- include "outlast.hookLabels" . | nindent 4 }}
  annotations:
    helm.sh/hook: {{ $.hook }}
    helm.sh/hook-weight: {{ $.weight | quote }}
    helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded,hook-failed
spec:
  podSelector:
    matchLabels:
      app.kubernetes.io/name: outlast-hook
      app.kubernetes.io/instance: {{ .Release.Name }}
  policyTypes: [Egress]
  egress: {{- toYaml (.Values.networkPolicy.egress | default (list dict)) | nindent 4 }}
{{- end }}
{{- end }}
{{- end }}
