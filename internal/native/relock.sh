#!/bin/sh
# Writes package-lock.json anew after a version in package.json was changed.
#
# Of Scalar one file is wanted, its standalone browser script, which has everything
# built in, and of onnxruntime-node one library. Scalar's package lists some 270 others
# for people who bundle it themselves, onnxruntime-node's those of its own installer;
# they are struck from the lock, so that `npm ci` fetches one archive and checks one
# checksum in their place.
set -eu
cd "$(dirname "$0")"
rm -f package-lock.json
npm install --package-lock-only --ignore-scripts --no-audit --no-fund --omit-lockfile-registry-resolved
node - <<'JS'
const fs = require('fs')
const lock = JSON.parse(fs.readFileSync('package-lock.json', 'utf8'))
const direct = { ...lock.packages[''].dependencies, ...lock.packages[''].optionalDependencies }
const keep = (path) => {
  const name = path.replace(/^node_modules\//, '')
  return path === '' || name in direct || name.startsWith('@bufbuild/buf-')
}
for (const path of Object.keys(lock.packages)) {
  if (!keep(path)) { delete lock.packages[path]; continue }
  const entry = lock.packages[path]
  delete entry.funding
  if (path === 'node_modules/@scalar/api-reference' || path === 'node_modules/onnxruntime-node') {
    delete entry.dependencies
    delete entry.engines
  }
}
fs.writeFileSync('package-lock.json', JSON.stringify(lock, null, 2) + '\n')
JS
