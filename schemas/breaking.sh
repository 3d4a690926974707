#!/bin/sh
# Compares a schema with what was released, and names what breaks its consumers:
#
#	sh schemas/breaking.sh [DIRECTORY]
#
# DIRECTORY holds buf.yaml, the .proto files and released/; it is that of this file unless
# another is named. check.sh runs this; gate_test.sh tests that it refuses what it must.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
PATH="$here/../build/npm/node_modules/.bin:$PATH"
cd "${1:-$here}"
exec buf breaking --against released/v1.binpb
