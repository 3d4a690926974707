#!/bin/sh
# Installs, once, what checks this repository and is not needed to build it:
#
#	sh internal/lint/install.sh go        build/tools/golangci-lint
#	sh internal/lint/install.sh schemas   build/tools/protoc-gen-go, build/schemas/node_modules
#	sh internal/lint/install.sh           both
#
# golangci-lint has a go.mod of its own: in ours its hundreds of modules would choose
# the versions of what we ship. Building it takes minutes, the first time.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
here=$root/internal/lint
GOLANGCI=v2.15.0

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

for part in ${*:-go schemas}; do
	case $part in
		go | schemas) "install_$part" ;;
		*)
			echo "internal/lint/install.sh: $part is no part; there are go and schemas" >&2
			exit 2
			;;
	esac
done
