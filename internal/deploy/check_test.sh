#!/bin/sh
# Tests check.sh: copies of what it reads are broken, and must be refused, with words that
# tell of each place. No committed file is touched.
#
#	sh internal/deploy/check_test.sh
set -eu
here=$(cd "$(dirname "$0")" && pwd)
repository=$(cd "$here/../.." && pwd)
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
failed=0 places=0 copy=
fault() {
	echo "internal/deploy/check_test.sh: $*" >&2
	failed=1
}

# anew makes a copy that is whole.
anew() {
	copy=$(mktemp -d "$temporary/XXXXXX")
	mkdir -p "$copy/internal/deploy"
	cp "$repository/Dockerfile" "$copy/"
	cp -R "$here/prometheus" "$here/kubernetes" "$copy/internal/deploy/"
	: >"$copy/words"
}

# broken NAME FILE SED-SCRIPT WORDS breaks one more place of the copy.
broken() {
	places=$((places + 1))
	sed "$3" "$copy/$2" >"$temporary/changed"
	! cmp -s "$copy/$2" "$temporary/changed" || fault "$1: unchanged: the sed script fits $2 no more"
	cp "$temporary/changed" "$copy/$2"
	printf '%s\t%s\n' "$4" "$1" >>"$copy/words"
}

# refused PART: check.sh refuses the copy, and tells of each broken place.
refused() {
	if sh "$here/check.sh" "$copy" "$1" >"$temporary/said" 2>&1; then
		fault "accepted: $(cut -f 2 "$copy/words" | tr '\n' ';')"
		return
	fi
	while IFS="$(printf '\t')" read -r words name; do
		grep -qe "$words" "$temporary/said" || fault "$name: refused without \"$words\": $(cat "$temporary/said")"
	done <"$copy/words"
}

kubernetes=internal/deploy/kubernetes
prometheus=internal/deploy/prometheus

anew
broken 'the form with a shell' Dockerfile 's/^CMD .*/CMD serve/' DL3025
broken 'a version that may be any' Dockerfile 's/^FROM golang:[^ ]*/FROM golang:latest/' DL3007
refused image
anew
broken 'an instruction that there is not' Dockerfile 's/^EXPOSE/EXPOSES/' 'Dockerfile:[0-9]*:[0-9]* '
refused image

anew
broken 'a misspelt member of the configuration' $prometheus/prometheus.yml 's/scrape_interval/scrape_interwal/' 'scrape_interwal'
broken 'an expression that is none' $prometheus/rules.yml 's/expr: up{job="pixtools"} == 0/expr: up{job="pixtools" == 0/' 'could not parse expression'
refused alerts
anew
broken 'an alert that fires late' $prometheus/rules.yml 's/pixtools_dead_letters_open) > 0/pixtools_dead_letters_open) > 3/' PixToolsDeadLetters
refused alerts

anew
broken 'a file that is not there' $kubernetes/base/kustomization.yaml 's/- api.yaml/- apis.yaml/' 'apis.yaml'
refused manifests
anew
broken 'a patch of nothing' $kubernetes/overlays/example/network.yaml 's/name: pixtools-api/name: pixtools-apis/' 'no matches for Id NetworkPolicy'
broken 'a misspelt field of a pod' $kubernetes/base/role.yaml 's/minReadySeconds/minReadySecs/' 'minReadySecs'
broken 'a field of another kind' $kubernetes/base/saga.yaml 's/replicas: 2/replicas: two/' '/spec/replicas'
broken 'a version that there is not' $kubernetes/base/webhooks.yaml 's/policy\/v1/policy\/v2/' 'could not find schema for PodDisruptionBudget'
broken 'a field that is missing' $kubernetes/base/prepare.yaml 's/restartPolicy/restart/' "'restart'"
broken 'a misspelt field of KEDA' $kubernetes/base/convert.yaml 's/maxReplicaCount:/maxReplicasCount:/' 'maxReplicasCount'
broken 'a behaviour that KEDA does not know' $kubernetes/base/ml.yaml 's/currentReplicasIfHigher/whatever/' '/spec/fallback/behavior'
refused manifests

[ "$failed" = 1 ] || echo "deploy: the check found $places broken places as it must"
exit $failed
