{{- define "orb8.namespace" -}}
{{- if .Values.namespace -}}
{{- .Values.namespace -}}
{{- else if eq .Release.Namespace "default" -}}
orb8-system
{{- else -}}
{{- .Release.Namespace -}}
{{- end -}}
{{- end -}}

{{- define "orb8.serviceAccount" -}}
{{- .Values.serviceAccount.name | default "orb8-agent" -}}
{{- end -}}

{{- define "orb8.image" -}}
{{- if .Values.image.digest -}}
{{- .Values.image.repository }}@{{ .Values.image.digest -}}
{{- else -}}
{{- .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion -}}
{{- end -}}
{{- end -}}

{{- define "orb8.selector" -}}
app.kubernetes.io/name: orb8
app.kubernetes.io/component: agent
{{- end -}}

{{- define "orb8.labels" -}}
{{ include "orb8.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}
