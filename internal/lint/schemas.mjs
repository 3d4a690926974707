// Asks parsers that are not ours about schemas/asyncapi.yaml and schemas/openapi.json,
// and compares each channel of the first with its corpus: every message that was ever
// released has an example there, as its record. Run by schemas/check.sh, which sets NODE_MODULES.
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
  const ajv = addFormats(new Ajv({ strict: false }))
  const counts = []
  for (const [channel, corpus] of [['jobs', 'corpus/'], ['deadLetters', 'corpus/deadletters/']]) {
    const described = new Map()
    for (const message of document.channels().get(channel)?.messages().all() ?? []) {
      described.set(message.json()['x-protobuf-message'], message)
    }
    const seen = new Set()
    for (const file of readdirSync(new URL(corpus, schemas)).filter((name) => name.endsWith('.json')).sort()) {
      const name = 'schemas/' + corpus + file
      const record = JSON.parse(readFileSync(new URL(corpus + file, schemas)))
      const type = record.headers.ce_type
      seen.add(type)
      if (!described.has(type)) {
        faults.push(`schemas/asyncapi.yaml, channel ${channel}, does not describe ${type}, which is in ${name}`)
        continue
      }
      const message = described.get(type)
      const valid = ajv.compile(message.headers().json())
      if (!valid(record.headers)) faults.push(`schemas/asyncapi.yaml: headers of ${name}: ${ajv.errorsText(valid.errors)}`)
      const key = message.bindings().get('kafka').value().key
      if (!ajv.validate(key, record.key)) faults.push(`schemas/asyncapi.yaml: key of ${name}: ${ajv.errorsText()}`)
    }
    for (const type of described.keys()) {
      if (!seen.has(type)) faults.push(`schemas/asyncapi.yaml, channel ${channel}, describes ${type}, of which schemas/${corpus} has no example`)
    }
    counts.push(`${channel}: ${described.size} messages described, ${seen.size} of them with examples`)
  }
  if (faults.length === 0) for (const count of counts) console.log(`schemas: ${count}`)
}

for (const fault of faults) console.error(fault)
process.exitCode = faults.length ? 1 : 0
