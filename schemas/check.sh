#!/bin/sh
# Checks the public contract; `make test` and `make lint` run it. It changes no committed file.
#
#	sh schemas/check.sh
#
# 1. The Protobuf files keep to buf's rules, and break nothing that was released.
# 2. What is generated from them is what is committed: events/*.pb.go, descriptors.binpb.
# 3. openapi.json is what the binary says, and a parser that is not ours accepts it.
# 4. docs/configuration.md and .env.example are what the fields of the configuration say.
# 5. asyncapi.yaml is accepted by AsyncAPI's own parser and describes every record of the
#    corpus.
#
# released/v1.binpb is the schema as consumers know it, made by
#
#	cd schemas && buf build --exclude-source-info -o released/v1.binpb
#
# It is replaced when a release is cut, and at no other time: then what was added since is
# a promise too. The check against it is what allows that, so it is never replaced to make
# this script pass. What must break goes into a new package, pixtools.events.v2, beside
# the old one, and the log keeps both.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
sh "$root/internal/native/install.sh"
sh "$root/internal/lint/install.sh" schemas
PATH="$root/build/tools:$root/build/npm/node_modules/.bin:$PATH"
cd "$root/schemas"
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
failed=0
fault() {
	echo "schemas/check.sh: $*" >&2
	failed=1
}

buf lint || fault "buf lint found the faults above"
buf format --diff --exit-code || fault "not formatted; run buf format -w in schemas/"
sh breaking.sh || fault "the schema breaks what was released; see the comment in this file"

mkdir "$temporary/schemas"
buf generate --output "$temporary/schemas"
for file in "$temporary"/events/*.pb.go; do
	cmp -s "$file" "$root/events/$(basename "$file")" || fault "events/$(basename "$file") is stale; run make generate"
done
for file in "$root"/events/*.pb.go; do
	[ -f "$temporary/events/$(basename "$file")" ] || fault "events/$(basename "$file") is generated from nothing; delete it"
done
buf build -o "$temporary/descriptors.binpb"
cmp -s "$temporary/descriptors.binpb" descriptors.binpb || fault "descriptors.binpb is stale; run make generate"

# Built anew each time: an old binary would tell of an old API. Go's cache makes it short.
eval "$(sh "$root/internal/native/env.sh")"
(cd "$root" && go build -o build/bin/pixtools ./cmd/pixtools)
"$root/build/bin/pixtools" openapi >"$temporary/openapi.json"
cmp -s "$temporary/openapi.json" openapi.json || fault "openapi.json is stale; run make generate"
(cd "$root" && go run ./internal/configdoc -check) || failed=1

NODE_MODULES="$root/build/schemas/node_modules" node "$root/internal/lint/schemas.mjs" || failed=1
exit $failed
