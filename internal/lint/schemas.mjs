// Asks parsers that are not ours about schemas/asyncapi.yaml and schemas/openapi.json,
// and compares the first with the corpus: every event that was ever released has an
// example there, as its record. Run by schemas/check.sh, which sets NODE_MODULES.
import { readFileSync, readdirSync } from 'node:fs'
import { createRequire } from 'node:module'

const require = createRequire(process.env.NODE_MODULES + '/')
const { Parser } = require('@asyncapi/parser')
const { default: Ajv } = require('ajv')
const { default: addFormats } = require('ajv-formats')
const { Validator } = await import(require.resolve('@seriousme/openapi-schema-validator'))

const faults = []
const schemas = new URL('../../schemas/', import.meta.url)

const openapi = await new Validator().validate(JSON.parse(readFileSync(new URL('openapi.json', schemas))))
if (!openapi.valid) faults.push('schemas/openapi.json: ' + JSON.stringify(openapi.errors))

const { document, diagnostics } = await new Parser().parse(readFileSync(new URL('asyncapi.yaml', schemas), 'utf8'))
for (const d of diagnostics.filter((d) => d.severity <= 1)) {
  faults.push(`schemas/asyncapi.yaml:${d.range.start.line + 1}: ${d.message}`)
}

if (document) {
  const described = new Map()
  for (const message of document.channels().get('jobs').messages().all()) {
    described.set(message.json()['x-protobuf-message'], message)
  }
  const ajv = addFormats(new Ajv({ strict: false }))
  const seen = new Set()
  for (const file of readdirSync(new URL('corpus/', schemas)).sort()) {
    const record = JSON.parse(readFileSync(new URL('corpus/' + file, schemas)))
    const type = record.headers.ce_type
    seen.add(type)
    if (!described.has(type)) {
      faults.push(`schemas/asyncapi.yaml does not describe ${type}, which is in schemas/corpus/${file}`)
      continue
    }
    const message = described.get(type)
    const check = (schema, value, what) => {
      const valid = ajv.compile(schema.json())
      if (!valid(value)) faults.push(`schemas/asyncapi.yaml: ${what} of schemas/corpus/${file}: ${ajv.errorsText(valid.errors)}`)
    }
    check(message.headers(), record.headers, 'headers')
    const key = message.bindings().get('kafka').value().key
    if (!ajv.validate(key, record.key)) faults.push(`schemas/asyncapi.yaml: key of schemas/corpus/${file}: ${ajv.errorsText()}`)
  }
  for (const type of described.keys()) {
    if (!seen.has(type)) faults.push(`schemas/asyncapi.yaml describes ${type}, of which schemas/corpus has no example`)
  }
  if (faults.length === 0) console.log(`schemas: ${described.size} events described, ${seen.size} of them with examples`)
}

for (const fault of faults) console.error(fault)
process.exitCode = faults.length ? 1 : 0
