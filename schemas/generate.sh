#!/bin/sh
# Writes anew what is made of other files; `make generate` runs it, schemas/check.sh
# finds what is stale.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
sh "$root/internal/lint/install.sh" schemas
PATH="$root/build/tools:$root/build/npm/node_modules/.bin:$PATH"
(cd "$root/schemas" && buf generate && buf build -o descriptors.binpb)
eval "$(sh "$root/internal/native/env.sh")"
(cd "$root" && go build -o build/bin/pixtools ./cmd/pixtools)
"$root/build/bin/pixtools" openapi >"$root/build/openapi.json" # beside, since a failure must not leave half a file
mv "$root/build/openapi.json" "$root/schemas/openapi.json"
(cd "$root" && go run ./internal/configdoc)
