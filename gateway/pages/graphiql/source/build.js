// What the build adds to Vite: the licences of what is bundled, files packed by gzip, and the digests of the sources.
import { createHash } from 'node:crypto'
import { readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'

const SOURCE = import.meta.dirname
const LICENCE_FILES = /^(licen[cs]e(-mit)?|notice|third-?party-?notices)(\.(md|txt))?$/i

// These publish no text of their licence; another package of the same repository or author has it.
const LICENCE_OF = {
  '@graphiql/plugin-doc-explorer': 'graphiql',
  '@graphiql/plugin-explorer': 'graphiql',
  '@graphiql/plugin-history': 'graphiql',
  'react-compiler-runtime': 'react',
  'react-remove-scroll-bar': 'react-remove-scroll',
}

// The folders of the packages that the page and its workers, which are built one by one, are made of.
const bundled = new Set()

// Collects the packages that a bundle is made of.
export function notices() {
  return {
    name: 'notices',
    generateBundle(_options, bundle) {
      for (const chunk of Object.values(bundle)) {
        for (const id of chunk.moduleIds ?? []) {
          const folder = /^\0?(.*\/node_modules\/(?:@[^/]+\/)?[^/]+)\//.exec(id)?.[1]
          if (folder) bundled.add(folder)
        }
      }
    },
  }
}

// Writes THIRD_PARTY.txt and sources.sha256, and leaves all but the page itself as `.gz` alone.
export function pack() {
  return {
    name: 'pack',
    writeBundle({ dir }) {
      writeFileSync(join(dir, 'THIRD_PARTY.txt'), thirdParty())
      for (const name of readdirSync(dir)) {
        if (name === 'index.html') continue
        writeFileSync(join(dir, `${name}.gz`), gzipSync(readFileSync(join(dir, name)), { level: 9 }))
        rmSync(join(dir, name))
      }
      writeFileSync(join(dir, 'sources.sha256'), digests())
    },
  }
}

function thirdParty() {
  const parts = [...bundled].map((folder) => {
    const { name, version, license } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'))
    const texts = licenceTexts(folder)
    if (!texts.length && name in LICENCE_OF) texts.push(...licenceTexts(join(SOURCE, 'node_modules', LICENCE_OF[name])))
    if (!texts.length) throw new Error(`${name} has no text of its licence, ${license}.`)
    return [`${name} ${version} (${license})`, ...texts.map((text) => text.trim())].join('\n\n')
  })
  const rule = `\n\n${'='.repeat(80)}\n\n`
  return `${['GraphiQL, as Tollgate serves it, contains these packages.', ...new Set(parts.sort())].join(rule)}\n`
}

function licenceTexts(folder) {
  return readdirSync(folder)
    .filter((name) => LICENCE_FILES.test(name))
    .sort()
    .map((name) => readFileSync(join(folder, name), 'utf8').replaceAll('\r\n', '\n'))
}

// In the form of `sha256sum`, so that a test can tell whether the assets were built from the sources beside them.
function digests() {
  return readdirSync(SOURCE)
    .filter((name) => name !== 'node_modules')
    .sort()
    .map((name) => `${createHash('sha256').update(readFileSync(join(SOURCE, name))).digest('hex')}  ${name}\n`)
    .join('')
}
