#!/bin/sh
# Checks what PixTools is deployed with; `make lint` runs it. No engine and no cluster is
# needed: each file is read by the program that its users read it with, or held against the
# schema that they do.
#
#	sh internal/deploy/check.sh [ROOT [PART...]]
#
# ROOT is another copy of the repository's Dockerfile and internal/deploy. The parts:
#
# image: the Dockerfile, by hadolint.
# alerts: Prometheus' configuration, its alerts and their tests, by promtool.
# manifests: the Kustomize base and each overlay are built, and every object is held against the
# schemas of Kubernetes, of the oldest version that we name and of the newest, and KEDA's
# against those of its own CRDs. What has no schema is a fault, and so is a field that a
# schema does not have.
#
# What no schema says (selectors, variables, groups, ports) the tests do:
# cmd/pixtools/kubernetes_test.go. docker-compose.yml: compose_test.go.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
repository=$(cd "$here/../.." && pwd)
root=${1:-$repository}
[ $# = 0 ] || shift
sh "$repository/internal/lint/install.sh" deploy
tools=$repository/build/tools/deploy
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
failed=0
fault() {
	echo "internal/deploy/check.sh: $*" >&2
	failed=1
}

check_image() {
	"$tools/hadolint" "$root/Dockerfile" || fault "hadolint found the faults above"
}

# promtool WHAT FILE WORDS: it says much where all is well.
promtool() {
	# shellcheck disable=SC2086 # a list of words
	"$tools/promtool" $1 "$root/internal/deploy/prometheus/$2" >"$temporary/said" 2>&1 && return
	cat "$temporary/said" >&2
	fault "$3"
}

check_alerts() {
	# Where rules lie is a path inside the container: they are checked below.
	promtool 'check config --syntax-only' prometheus.yml "promtool refuses prometheus.yml"
	promtool 'check rules' rules.yml "promtool refuses rules.yml"
	promtool 'test rules' rules_test.yml "alerts do not fire as rules_test.yml says"
}

check_manifests() {
	built=$temporary/built
	mkdir "$built"
	for kustomization in "$root"/internal/deploy/kubernetes/base "$root"/internal/deploy/kubernetes/overlays/*; do
		name=$(basename "$kustomization")
		"$tools/kustomize" build "$kustomization" >"$temporary/$name.yaml" || { fault "kustomize does not build $name"; continue; }
		mv "$temporary/$name.yaml" "$built/"
	done
	[ -n "$(ls "$built")" ] || return 0
	for schemas in "$tools"/schemas/v*; do
		version=${schemas##*/v}
		"$tools/kubeconform" -strict -kubernetes-version "$version" \
			-schema-location "$schemas/{{ .ResourceKind }}{{ .KindSuffix }}.json" \
			-schema-location "$tools/schemas/keda/{{ .ResourceKind }}_{{ .ResourceAPIVersion }}.json" \
			"$built"/*.yaml || fault "Kubernetes $version or KEDA would refuse what is above"
	done
}

for part in ${*:-image alerts manifests}; do
	"check_$part"
done
[ "$failed" = 1 ] || echo "deploy: ${*:-image, alerts and manifests}: nothing to find"
exit $failed
