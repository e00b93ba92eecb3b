#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Renders the chart into the files that are committed:
#
#     deploy/render.sh HELM
#
# The dashboards of deploy/grafana are copied into the chart.
# deploy/orb8-daemonset.yaml is the installation with default values,
# deploy/testdata/all.yaml one with everything that is optional.

set -euo pipefail

helm=${1:?usage: deploy/render.sh HELM}
here=$(cd "$(dirname "$0")" && pwd)
chart=$here/helm/orb8

# render FILE RELEASE-NAMESPACE [HELM-FLAG...]
render() {
	local out=$1 namespace=$2
	shift 2
	{
		echo '# Made from deploy/helm/orb8 by "make generate"; do not edit.'
		"$helm" template orb8 "$chart" --namespace "$namespace" --kube-version 1.25.0 "$@" |
			grep -v '^# Source: '
	} >"$out.new"
	mv "$out.new" "$out"
}

# A chart has no files but its own.
rm -rf "$chart/dashboards"
mkdir "$chart/dashboards"
cp "$here"/grafana/*.json "$chart/dashboards/"
"$helm" lint --quiet --strict --kube-version 1.25.0 "$chart"
"$helm" lint --quiet --strict --kube-version 1.25.0 --values "$here/testdata/all-values.yaml" "$chart"
render "$here/orb8-daemonset.yaml" default
render "$here/testdata/all.yaml" observability --values "$here/testdata/all-values.yaml"
